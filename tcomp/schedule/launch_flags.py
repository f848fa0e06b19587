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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Protocol

from tcomp.dsl.ast import NO_SPAN, Call, Directive, Flag, Name, Span
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.ir.multicast import cluster_of, shared_packs
from tcomp.ir.tile import Compute, GridOrder, Kernel, Loop, Pack, Producer, Statement
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.tensor_copies import statements


class Clustered(Protocol):
    """A tile level, as far as clusters go."""

    @property
    def cluster(self) -> int: ...

    @property
    def span(self) -> Span: ...


class Tiled(Protocol):
    """A tile level, as far as the order of blocks goes."""

    @property
    def index(self) -> str: ...

    @property
    def variable(self) -> str: ...

    @property
    def parallel(self) -> bool: ...


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


def launch_flags(directives: Iterable[Directive], values: Mapping[str, int | float], text: str) -> LaunchFlags:
    """The flags among a kernel's directives. `values` are the schedule's parameters."""
    found: dict[str, Flag] = {}
    for d in directives:
        if isinstance(d, Flag) and d.name in FLAGS:
            if d.name in found:
                raise TcError(f"`{d.name}` is said twice", d.span, text, "keep one line")
            found[d.name] = d
    raster = _number(found["raster"], values, text) if "raster" in found else 0
    if "persistent" in found and found["persistent"].args:
        raise TcError("`persistent` takes no number", found["persistent"].span, text, "write: persistent")
    producer = _producer(found["producer"], values, text) if "producer" in found else None
    order = GridOrder("persistent" in found, raster, _reversed(found.get("reverse"), text))
    return LaunchFlags(
        producer,
        order,
        _holds(found.get("stagger"), values),
        2 if _holds(found.get("pingpong"), values) else 1,
        _holds(found.get("stream"), values),
        tuple((n, d.span) for n, d in found.items()),
    )


def _reversed(flag: Flag | None, text: str) -> frozenset[str]:
    """The loops (not yet their variables) that `reverse` names."""
    if flag is None:
        return frozenset()
    names = [a.id for a in flag.args if isinstance(a, Name)]
    if not names or len(names) < len(flag.args):
        raise TcError("`reverse` takes the loops to reverse", flag.span, text, "write: reverse q")
    return frozenset(names)


def blocks_order(flags: LaunchFlags, sequence: Sequence[Tiled], text: str) -> GridOrder:
    """The order of blocks with the variables of the grid loops it names. TcError where a reversed loop has none."""
    variables = set()
    for name in sorted(flags.order.reversed):
        own = [t.variable for t in sequence if t.parallel and t.index == name]
        if not own:
            raise TcError(
                f"`reverse` orders blocks, and loop '{name}' is not divided among blocks in this kernel",
                flags.span("reverse"),
                text,
                f"give it a grid level: {name} -> grid(64)",
            )
        variables |= set(own)
    return replace(flags.order, reversed=frozenset(variables))


def _number(flag: Flag, values: Mapping[str, int | float], text: str) -> int:
    n = evaluate_dim(flag.args[0], dict(values)) if len(flag.args) == 1 else 0
    if int(n) != n or n < 1:
        raise TcError(f"`{flag.name}` takes one whole number of at least 1", flag.span, text, f"write: {flag.name}(8)")
    return int(n)


def _holds(flag: Flag | None, values: Mapping[str, int | float]) -> bool:
    return flag is not None and all(evaluate_dim(condition, dict(values)) for condition in flag.args)


def _producer(flag: Flag, values: Mapping[str, int | float], text: str) -> Producer | None:
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
                text,
                "write a multiple of 8 from 24 to 240, or 0 for no producer",
            )
    raise TcError(
        "`producer` takes the warps that copy", flag.span, text, "write: producer warp, or: producer warpgroup(40)"
    )


def check_flags(
    kernel: Kernel, flags: LaunchFlags, sequence: Sequence[Clustered], machine: GpuMachine, text: str
) -> None:
    """TcError where a flag would mean nothing for the lowered kernel, or asks for what a block cannot have."""
    _check_clusters(kernel, [t for t in sequence if t.cluster > 1], text)
    if flags.producer is not None:
        _check_producer(kernel, flags.producer, flags.span("producer"), machine, text)
    if flags.staggered and (why := _not_apart(kernel)):
        raise TcError(
            f"`stagger` keeps the warpgroups of a product by wgmma apart, and {why}",
            flags.span("stagger"),
            text,
            "write: m -> grid(128) / warpgroup(64) / mma, and: producer warp; or leave the line out",
        )
    if flags.sides > 1 and (why := _no_sides(kernel)):
        raise TcError(
            f"`pingpong` lets two groups of threads take the tiles of a block in turn, and {why}",
            flags.span("pingpong"),
            text,
            "write: m -> grid(128) / warpgroup(64, 1) / mma, and: producer warp, persistent; or leave the line out",
        )
    if flags.stream and (flags.sides > 1 or not flags.order.persistent):
        raise TcError(
            "`stream` gives each of the blocks that stay an equal share of all tiles, and "
            + ("sides of a block take whole ones" if flags.sides > 1 else "without `persistent` a block has one tile"),
            flags.span("stream"),
            text,
            "write: persistent, without `pingpong`; or leave the line out",
        )
    grid = {s.variable for p in kernel.phases for s in statements(p) if isinstance(s, Loop) and s.level == "grid"}
    if flags.order.raster and len(grid) < 2:
        raise TcError(
            "`raster` orders the tiles of two grid loops, and this kernel has fewer",
            flags.span("raster"),
            text,
            "leave it out",
        )


def _check_clusters(kernel: Kernel, clusters: Sequence[Clustered], text: str) -> None:
    if len(clusters) > 1:
        raise TcError("a kernel has clusters along one loop", clusters[1].span, text, "leave one `cluster` out")
    buffers = {b.name: b for b in kernel.operands + kernel.tiles}
    if kernel.cluster is not None and not any(
        shared_packs(p, cluster_of(kernel.cluster, p), buffers, True, True) for p in kernel.phases
    ):
        raise TcError(
            f"the blocks of a cluster along '{kernel.cluster.variable.partition('.')[0]}' would share nothing",
            clusters[0].span,
            text,
            "stage by tma, in a pipe loop, a tile that does not depend on that loop, or leave `cluster` out",
        )


def _check_producer(kernel: Kernel, producer: Producer, span: Span, machine: GpuMachine, text: str) -> None:
    if not any(isinstance(s, Pack) and s.by == "tma" for p in kernel.phases for s in statements(p)):
        raise TcError(
            "the producer would have nothing to do: no tile of this kernel is staged by tma",
            span,
            text,
            "stage operands by tma, or leave `producer` out",
        )
    assert kernel.threads is not None
    if producer.registers and kernel.threads.warps % 4:
        raise TcError(
            f"registers are shared between warpgroups, and this kernel computes with {kernel.threads.warps} warps",
            span,
            text,
            "divide its loops among a multiple of 4 warps, or write: producer warp",
        )
    warps = kernel.threads.warps * kernel.sides + producer.warps
    pool = machine.registers_at_entry(warps)
    if producer.registers > pool:
        raise TcError(
            f"the producer cannot keep {producer.registers} registers a thread: "
            f"{warps} warps start with {pool} each, and it gives some of them up",
            span,
            text,
            f"write at most {pool}, for instance: producer warpgroup(40)",
        )


def _no_sides(kernel: Kernel) -> str:
    """What keeps a block from having sides; "" for nothing."""
    if kernel.producer is None:
        return "without a producer each would wait for the other's copies"
    if not kernel.order.persistent:
        return "without `persistent` a block has one tile"
    if kernel.staggered:
        return "`stagger` orders the warpgroups of one tile"
    if kernel.threads is None or kernel.threads.warps % 4:
        return "these threads are no whole warpgroups"
    if any(p.by != "tma" for phase in kernel.phases for p in statements(phase) if isinstance(p, Pack)):
        return "some of its tiles are not staged by tma"
    if any(_staged_within(phase) for phase in kernel.phases):
        return "some tiles are staged in every turn of a loop that is no outermost `pipe`: sides cannot count them"
    return ""


def _staged_within(body: Sequence[Statement]) -> bool:
    """Are tiles staged in loops of a block, but at the beginning of each turn of an outermost pipe loop?"""
    for s in body:
        if isinstance(s, Loop) and s.level == "grid":
            if _staged_within(s.body):
                return True
        elif isinstance(s, Loop):
            packs = sum(1 for _ in takewhile(lambda inner: isinstance(inner, Pack), s.body)) if s.level == "pipe" else 0
            if any(isinstance(inner, Pack) for inner in statements(s.body[packs:])):
                return True
    return False


def _not_apart(kernel: Kernel) -> str:
    """What keeps warpgroups from going through loops one after the other; "" for nothing. (Those that copy themselves
    would wait for each other.)"""
    computes = (s for p in kernel.phases for s in statements(p) if isinstance(s, Compute))
    if not any(c.instruction.startswith("wgmma") for c in computes):
        return "there is no such product"
    if kernel.producer is None:
        return "without a producer they copy what they wait for"
    return ""
