"""Directives about a GPU kernel as a whole: who copies, and how blocks come to their tiles.

producer warp             one more warp issues all tensor copies, the others only compute
producer warpgroup(40)    four more, which keep 40 registers a thread and leave the rest to the others (0: no producer)
persistent                as many blocks as multiprocessors, each with tile after tile
raster(8)                 tiles in bands of 8 rows, so that neighbours in time share operands in L2
reverse q                 blocks of the grid loop over q from the last to the first
pingpong(K <= 1024)       two of what the tile levels make of a block's threads take its tiles in turn
stream(P < M)             a sum that blocks add in turns is shared out equally over all tiles, wherever parts then end
stagger(K <= 1024)        warpgroups go through pipe loops a turn apart: one's results leave beside products
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import NO_SPAN, Call, Directive, Flag, Name, Span
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import GridOrder, Producer

FLAGS = ("producer", "persistent", "raster", "reverse", "stagger", "pingpong", "stream")
WARPS = {"warp": 1, "warpgroup": 4}


@dataclass(frozen=True)
class LaunchFlags:
    """`spans` says where each flag stands."""

    producer: Producer | None = None
    order: GridOrder = GridOrder()
    staggered: bool = False
    sides: int = 1
    stream: bool = False
    spans: tuple[tuple[str, Span], ...] = ()

    def span(self, flag: str) -> Span:
        return dict(self.spans).get(flag, NO_SPAN)


def launch_flags(directives: Iterable[Directive], values: Mapping[str, int | float]) -> LaunchFlags:
    """The flags among a kernel's directives. `values` are the schedule's parameters."""
    found: dict[str, Flag] = {}
    for d in directives:
        if isinstance(d, Flag) and d.name in FLAGS:
            if d.name in found:
                raise TcError(f"`{d.name}` is said twice", d.span, "keep one line")
            found[d.name] = d
    raster = _number(found["raster"], values) if "raster" in found else 0
    if "persistent" in found and found["persistent"].args:
        raise TcError("`persistent` takes no number", found["persistent"].span, "write: persistent")
    producer = _producer(found["producer"], values) if "producer" in found else None
    order = GridOrder("persistent" in found, raster, _reversed(found.get("reverse")))
    return LaunchFlags(
        producer,
        order,
        _holds(found.get("stagger"), values),
        2 if _holds(found.get("pingpong"), values) else 1,
        _holds(found.get("stream"), values),
        tuple((n, d.span) for n, d in found.items()),
    )


def _reversed(flag: Flag | None) -> frozenset[str]:
    """The loops (not yet their variables) that `reverse` names."""
    if flag is None:
        return frozenset()
    names = [a.id for a in flag.args if isinstance(a, Name)]
    if not names or len(names) < len(flag.args):
        raise TcError("`reverse` takes the loops to reverse", flag.span, "write: reverse q")
    return frozenset(names)


def _number(flag: Flag, values: Mapping[str, int | float]) -> int:
    n = evaluate_dim(flag.args[0], dict(values)) if len(flag.args) == 1 else 0
    if int(n) != n or n < 1:
        raise TcError(f"`{flag.name}` takes one whole number of at least 1", flag.span, f"write: {flag.name}(8)")
    return int(n)


def _holds(flag: Flag | None, values: Mapping[str, int | float]) -> bool:
    return flag is not None and all(evaluate_dim(condition, dict(values)) for condition in flag.args)


def _producer(flag: Flag, values: Mapping[str, int | float]) -> Producer | None:
    match flag.args:
        case (Name(kind),) if kind in WARPS:
            return Producer(WARPS[kind])
        case (Call("warpgroup", (registers,)),):
            n = int(evaluate_dim(registers, dict(values)))
            if n == 0:
                return None
            if n % 8 == 0 and 24 <= n <= 240:
                return Producer(WARPS["warpgroup"], n)
            raise TcError(
                f"a producer cannot keep {n} registers a thread",
                flag.span,
                "write a multiple of 8 from 24 to 240, or 0 for no producer",
            )
    raise TcError("`producer` takes the warps that copy", flag.span, "write: producer warp, or: producer warpgroup(40)")
