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

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, accesses_in
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


Path = tuple[Statement, ...]
"""A leaf behind the loops around it, outermost first."""


def flat_shares(kernel: Kernel, phase: int) -> Shares | None:
    """The shares of a phase of a CPU kernel; None where they are not plain."""
    loop = _shared_loop(kernel.phases[phase])
    paths = list(_paths(loop.body, loop)) if loop is not None else []
    if loop is None or not paths or any(not all(isinstance(s, Loop | Compute) for s in path) for path in paths):
        return None
    vectors = _Vectors(kernel, loop)
    computes = [s for path in paths if isinstance(s := path[-1], Compute)]
    if not all(_plain(c) and vectors.flat(c, _within(p, loop)) for c, p in zip(computes, paths, strict=True)):
        return None
    reads = {name for c in computes for name in vectors.read(c)}
    scalars = {name for name in reads if not vectors.operands[name].shape}
    writes = {c.target.tensor for c in computes} & vectors.operands.keys()
    return Shares(
        vectors.extent, loop.step, not loop.chunked, frozenset(reads - scalars), frozenset(writes), frozenset(scalars)
    )


def _shared_loop(phase: Sequence[Statement]) -> Loop | None:
    """The loop over all elements that is shared out among cores, if the phase is one."""
    if len(phase) == 1 and isinstance(loop := phase[0], Loop) and loop.level == "core":
        return loop if loop.start == Num(0) and isinstance(loop.stop, Num) else None
    return None


def _plain(compute: Compute) -> bool:
    """Does it compute each point of its axes, and nothing else?"""
    return compute.guard is None and compute.only is None and not (compute.epilogue or compute.prefetch)


class _Vectors:
    """A kernel's operands and tiles, and whether what touches them keeps to a turn of the loop that is shared out."""

    def __init__(self, kernel: Kernel, loop: Loop) -> None:
        assert isinstance(loop.stop, Num)
        self.operands = {o.name: o for o in kernel.operands}
        self.tiles = {t.name: t for t in kernel.tiles}
        self.loop, self.extent = loop, int(loop.stop.value)

    def flat(self, compute: Compute, inside: set[str]) -> bool:
        """Is each operand that has elements a vector walked by one of the axes `inside` the loop, and the target one of
        them, or what the team has for each turn?"""
        touched = [compute.target, *accesses_in(compute.value)]
        vectors = [a for a in touched if a.tensor in self.operands and self.operands[a.tensor].shape]
        return all(self._walked(a, inside) for a in vectors) and (
            compute.target in vectors or self._of_the_turn(compute.target)
        )

    def _walked(self, a: Access, inside: set[str]) -> bool:
        whole = self.operands[a.tensor].shape == (self.extent,) and len(a.subscripts) == 1
        return whole and isinstance(s := a.subscripts[0], Name) and s.id in inside

    def _of_the_turn(self, target: Access) -> bool:
        """Is it an element that this turn of the loop alone has, such as a block's partial sum?"""
        own = target.subscripts == (Binary("//", Name(self.loop.variable), Num(self.loop.step)),)
        return own and target.tensor in self.tiles and self.tiles[target.tensor].scope is Scope.TEAM

    def read(self, compute: Compute) -> set[str]:
        """The operands that it reads, one that it adds to among them."""
        added_to = {compute.target.tensor} if compute.accumulate else set()
        return ({a.tensor for a in accesses_in(compute.value)} | added_to) & self.operands.keys()


def _paths(body: Sequence[Statement], *above: Statement) -> Iterator[Path]:
    """Each leaf with the loops around it."""
    for s in body:
        if isinstance(s, Loop):
            yield from _paths(s.body, *above, s)
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
