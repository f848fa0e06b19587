"""One kernel for many places: a kernel, and where each of its turns has its operands, give one kernel for all of them.

    kernel scales:                              kernel scales.x48:
      in h: f32[3, 16]                            in h: f32[48, 3, 16]
      out s: f32[]                          -->   out s: f32[48, 16]
      grid once in 0 .. 1 step 1:                 grid turn.00 in 0 .. 48 step 1:
        s = 8.0 / h[0, 0]                           grid once in 0 .. 1 step 1:
                                                      s[turn.00, 0] = 8.0 / h[turn.00, 0, 0]

What each turn computes stays as it is, to the order of its sums. A turn's values in memory that blocks share become a
row of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from tcomp.dsl.ast import Access, Binary, Expr, Name, Num, accesses_in, bottom_up
from tcomp.ir.blocks import Blocks
from tcomp.ir.rewrite import map_expressions
from tcomp.ir.tile import Buffer, Compute, Kernel, Loop, Pack, RowMajor, Scope, Statement

_TURN = "turn.00"
"""(Loops over an index that a text calls `turn` are turn.0, turn.1, ...)"""


@dataclass(frozen=True)
class Rows:
    """A batched operand: `shape` of all of it, where turn i has its part at `step` * i of the first axis. A `scalar` is
    the first of a row of values. With `gaps`, what is between the parts is others'."""

    shape: tuple[int, ...]
    step: int = 1
    scalar: bool = False
    gaps: bool = False


def batchable(kernel: Kernel) -> bool:
    """Is the kernel loops over blocks (or cores' work) of statements that only read and write values?"""
    shared = [b for b in kernel.tiles if b.scope in (Scope.TEAM, Scope.WORDS)]
    if kernel.gathered or any(b.layout != RowMajor() or b.ring > 1 for b in (*kernel.operands, *shared)):
        return False
    if kernel.blocks is not None and kernel.blocks != Blocks(kernel.blocks.shape):
        return False
    parallel = all(len(p) == 1 and isinstance(p[0], Loop) and p[0].level in ("core", "grid") for p in kernel.phases)
    words = any(b.scope is Scope.WORDS for b in shared)
    statements = [s for phase in kernel.phases for s in phase]
    # (A bound that is read from memory, such as a length, has no subscripts to be one turn's.)
    counted = not any(accesses_in(e) for s in statements for e in _bounds(s))
    return parallel and not words and counted and all(map(_plain, statements))


def turns_of(kernel: Kernel) -> int:
    """The most blocks (or shares of cores) that one of its phases has: the turns of its parallel loops."""
    return max(map(_turns, (s for phase in kernel.phases for s in phase)), default=1)


def batched(kernel: Kernel, turns: int, rows: Mapping[str, Rows]) -> Kernel:
    """The kernel for so many places; operands without `rows` are the same for all. `kernel` is `batchable`."""
    own = {b.name: Rows((turns, *b.shape)) for b in kernel.tiles if b.scope is Scope.TEAM}
    at = {**own, **rows}
    lead = {n: _lead(r) for n, r in at.items()}

    def around(phase: tuple[Statement, ...]) -> tuple[Statement, ...]:
        (loop,) = phase
        assert isinstance(loop, Loop)
        return (Loop(_TURN, Num(0), Num(turns), 1, loop.level, (_moved(loop, lead),), span=loop.span),)

    def buffers(given: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
        return tuple(replace(b, shape=at[b.name].shape) if b.name in at else b for b in given)

    return replace(
        kernel,
        name=f"{kernel.name}.x{turns}",
        of=kernel.name,
        operands=buffers(kernel.operands),
        tiles=buffers(kernel.tiles),
        phases=tuple(map(around, kernel.phases)),
        reads=kernel.reads | {n for n, r in rows.items() if n in kernel.writes and r.gaps},
        inplace=frozenset(),
        flops=kernel.flops * turns,
        traffic=kernel.traffic * turns,
        functions=tuple((f, n * turns) for f, n in kernel.functions),
    )


def _turns(s: Statement) -> int:
    if not isinstance(s, Loop) or s.level not in ("core", "grid"):
        return 1
    ends = (s.start, s.stop)
    first, last = (int(e.value) if isinstance(e, Num) else 0 for e in ends)
    return -(-(last - first) // s.step) * prod(map(_turns, s.body))


def _plain(s: Statement) -> bool:
    match s:
        case Loop():
            numbers = s.level == "seq" or (isinstance(s.start, Num) and isinstance(s.stop, Num))
            return s.level in ("core", "grid", "seq") and numbers and not s.chunked and all(map(_plain, s.body))
        case Compute():
            more = (*s.prefetch, *s.epilogue, s.region, s.last, s.only, s.turns, s.ahead)
            return not s.atomic and not s.instruction and all(x is None for x in more)
        case Pack():
            return s.by in ("copy", "cp.async")
        case _:
            return False


def _bounds(s: Statement) -> Iterator[Expr]:
    """Where the loops and axes of a statement begin and end."""
    if isinstance(s, Loop):
        yield from (s.start, s.stop)
        for x in s.body:
            yield from _bounds(x)
    elif isinstance(s, Compute | Pack):
        yield from (e for a in s.axes for e in (a.start, a.stop))


def _lead(rows: Rows) -> tuple[Expr, ...]:
    turn: Expr = Name(_TURN) if rows.step == 1 else Binary("*", Name(_TURN), Num(rows.step))
    return (turn, Num(0)) if rows.scalar else (turn,)


def _moved(s: Loop, lead: Mapping[str, tuple[Expr, ...]]) -> Loop:
    """The loop with what is batched read and written in its turn's part."""

    def of(e: Expr) -> Expr:
        own = isinstance(e, Access) and e.tensor in lead
        return replace(e, subscripts=(*lead[e.tensor], *e.subscripts)) if own and isinstance(e, Access) else e

    return map_expressions(s, lambda e: bottom_up(e, of))
