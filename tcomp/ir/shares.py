"""What part of its operands a thread's share of a phase touches, where that is plain: flat vectors, walked once.

    core i.0 in 0 .. N step 32 chunked:            thread t of n: elements 32 * (C * t // n) ..
      seq i.1 in i.0 .. i.0.stop step 1024:   -->                 32 * (C * (t + 1) // n) - 1 of p and of g,
        p[i] = p[i] - g[i] * lr                                   with C = N / 32, rounded up
          i in i.1 .. min(i.1 + 1024, i.0.stop)

So a phase can be cut into more shares than there are threads, which run at other times. Optimizers are such phases, and
so is the first phase of a norm (its partial sums go by blocks of the vector, not by threads).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import Binary, Call, Expr, Name, Num
from tcomp.ir.rows import within
from tcomp.ir.tile import Compute, Kernel, Loop, Scope, Statement


@dataclass(frozen=True, slots=True)
class Shares:
    """How a phase over vectors of `extent` elements is shared out: `pieces` of `step` elements, the last maybe shorter.
    `reads` and `writes` name the operands with elements; `scalars` those without, all of them only read. `fixed`:
    pieces are blocks of their own, so what a piece computes does not depend on the share that it is in."""

    extent: int
    step: int
    fixed: bool
    reads: frozenset[str]
    writes: frozenset[str]
    scalars: frozenset[str]

    @property
    def pieces(self) -> int:
        return -(-self.extent // self.step)

    def start(self, share: int, shares: int) -> int:
        """The first element of a share of so many; that of share number `shares` is the end."""
        return min(self.pieces * share // shares * self.step, self.extent)


def flat_shares(kernel: Kernel, phase: int) -> Shares | None:
    """The shares of a phase of a CPU kernel; None where they are not plain."""
    statements = kernel.phases[phase]
    if len(statements) != 1 or not isinstance(loop := statements[0], Loop):
        return None
    if loop.level != "core" or loop.start != Num(0) or not isinstance(loop.stop, Num):
        return None
    extent, found = int(loop.stop.value), list(_computes(loop.body, loop))
    if not found or any(not all(isinstance(s, Loop | Compute) for s in path) for path in found):
        return None
    operands = {o.name: o for o in kernel.operands}
    tiles = {t.name: t for t in kernel.tiles}
    reads: set[str] = set()
    writes: set[str] = set()
    for path in found:
        compute = path[-1]
        assert isinstance(compute, Compute)
        if compute.epilogue or compute.guard is not None or compute.only is not None or compute.prefetch:
            return None
        inside = _within(path, loop)
        target = compute.target
        accesses = [target, *within(compute.value)]
        for a in accesses:
            if a.tensor in operands and operands[a.tensor].shape:
                whole = operands[a.tensor].shape == (extent,)
                if (
                    not whole
                    or len(a.subscripts) != 1
                    or not isinstance(s := a.subscripts[0], Name)
                    or s.id not in inside
                ):
                    return None
            elif a is target and (a.tensor in operands or tiles[a.tensor].scope is not Scope.TEAM):
                return None
        if target.tensor in tiles and target.subscripts != (Binary("//", Name(loop.variable), Num(loop.step)),):
            return None
        (writes if target.tensor in operands else set()).add(target.tensor)
        reads |= {a.tensor for a in accesses[1:] if a.tensor in operands}
        if compute.accumulate:
            reads.add(target.tensor)
    scalars = {n for n in reads if not operands[n].shape}
    return Shares(
        extent, loop.step, not loop.chunked, frozenset(reads - scalars), frozenset(writes), frozenset(scalars)
    )


Path = tuple[Statement, ...]


def _computes(body: Sequence[Statement], *above: Statement) -> Iterator[Path]:
    """Each leaf with the loops around it, outermost first."""
    for s in body:
        if isinstance(s, Loop):
            yield from _computes(s.body, *above, s)
        else:
            yield (*above, s)


def _within(path: Path, core: Loop) -> set[str]:
    """The axes of a leaf that stay within one turn of the core loop (its share, if it is chunked)."""
    stop: Expr = Name(core.variable + ".stop") if core.chunked else Binary("+", Name(core.variable), Num(core.step))
    stops = {stop} if core.chunked else {stop, Call("min", (stop, core.stop))}
    inside: dict[str, int] = {core.variable: core.step}
    for loop in path[1:-1]:
        assert isinstance(loop, Loop)
        if loop.level == "seq" and _starts(loop.start, inside) and loop.stop in stops:
            inside[loop.variable] = loop.step
    compute = path[-1]
    assert isinstance(compute, Compute)
    axes: set[str] = set()
    for axis in compute.axes:
        if not _starts(axis.start, inside):
            continue
        assert isinstance(axis.start, Name)
        turn = Binary("+", axis.start, Num(inside[axis.start.id]))
        if axis.stop in stops or any(axis.stop == Call("min", (turn, s)) for s in stops):
            axes.add(axis.name)
    return axes


def _starts(start: Expr, inside: dict[str, int]) -> bool:
    return isinstance(start, Name) and start.id in inside
