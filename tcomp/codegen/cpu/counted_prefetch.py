"""Prefetching beside a reduction that a condition cuts.

    for q by 4, e:                                  n = 0
      for k in 0 .. q + 4:                          for q by 4, e:
        acc[q, e] += w[q, k] * V[k, e]     -->        for k in 0 .. q + 4:
                                                        prefetch line n * lines / steps of the next V
                                                        n += 1

Register tiles on the diagonal have few steps and those behind it none, so a tile cannot be given lines of its own as in
`prefetch.py`: half of the region would never be asked for.

Counting takes more instructions. A loop of 512-bit vectors has slots for them. One of narrower vectors has where its
tiles have few steps, since vectors run along the sum, or few on average, since the condition cuts the sum itself. Where
it cuts loops around sums that are all as long, narrower vectors lose more than they gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

from tcomp.codegen.cpu import prefetch
from tcomp.codegen.cpu.prefetch import LINE, WIDE, Prefetcher, is_affine, quotient, region, remainder
from tcomp.codegen.llvm.domain import AxisState, Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.types import I8, I64
from tcomp.ir.tile import Axis, Compute, Prefetch


def reduction_prefetchers(
    em: Emitter, scope: Scope, node: Compute, parallel: Sequence[Axis], reduced: Sequence[Axis], cut: Set[str]
) -> list[Prefetcher | CountedPrefetcher]:
    """The prefetches of what others read later; `cut` are the loops that have more turns here, fewer there."""
    made: list[Prefetcher | CountedPrefetcher] = []
    few = scope.lanes_f32 >= WIDE or reduced[-1].lanes > 1 or any(a.name in cut for a in reduced)
    for p in (p for p in node.prefetch if not p.written):
        if cut and few:
            made.append(CountedPrefetcher(em, scope, p, parallel, reduced))
        else:
            made.append(Prefetcher(em, scope, p, parallel, reduced[-1]))
    return [p for p in made if p.possible]


class CountedPrefetcher:
    """The prefetches of one `Prefetch`.

    Steps are counted from the first of the Compute to its last; a word in memory has the count from tile to tile. The
    n-th step asks for the line that is due if there are half as many steps as without the condition, but a line a step
    at most: a region of more lines is fetched in part. Where there are more steps, the last line is asked for again.
    """

    def __init__(
        self, em: Emitter, scope: Scope, node: Prefetch, parallel: Sequence[Axis], reduced: Sequence[Axis]
    ) -> None:
        self.em, self.written = em, node.written
        domain, place, self.base = region(em, scope, node)
        size = place.buffer.dtype.bytes
        dims = [(domain.axes[a].block, stride * size) for a, stride in sorted(place.counters, key=lambda c: -c[1])]
        self.possible = bool(dims) and dims[-1][1] == size and is_affine(place)
        if not self.possible:
            return
        row = dims[-1][0] * size
        begins_within = row % LINE or any(step % LINE for _, step in dims[:-1])
        self.dims = [*dims[:-1], (-(-row // LINE) + bool(begins_within), LINE)]
        self.lines = math.prod(n for n, _ in self.dims)
        tiles = math.prod(math.ceil(a.block / (a.unroll * a.lanes)) for a in parallel)
        self.steps = max(1, tiles * math.prod(a.block for a in reduced) // 2)
        self.count = em.variable()
        em.here().store(em.i64(0), self.count)

    def enter_tile(self, states: Mapping[str, AxisState]) -> None:
        """A register tile begins: nothing to do."""

    def enter(self, start: Int) -> None:
        """The innermost loop of a register tile begins at `start`."""
        b = self.em.here()
        self.ahead: Int = self.em.add(b.load(self.count, typ=I64), self.em.mul(start, -1))

    def leave(self, start: Int, stop: Int) -> None:
        """It has run from `start` to before `stop`."""
        b = self.em.here()
        done = self.em.i64(self.em.add(self.em.i64(stop), self.em.mul(start, -1)))
        done = b.select(b.icmp_signed(">", done, self.em.i64(0)), done, self.em.i64(0))
        b.store(self.em.i64(self.em.add(b.load(self.count, typ=I64), done)), self.count)

    def touch(self, state: AxisState, step: int) -> None:
        """The prefetch of this step, or of every few steps."""
        if step % max(1, min(state.unroll, self.steps // self.lines // state.lanes)):
            return
        em = self.em
        b = em.here()
        number = em.i64(em.add(em.add(state.base, self.ahead), step * state.lanes))
        if self.lines < self.steps:
            number = b.udiv(b.mul(number, em.i64(self.lines)), em.i64(self.steps))
        last = em.i64(self.lines - 1)
        at: Int = b.select(b.icmp_unsigned("<", number, last), number, last)
        offset: Int = 0
        for n, stride in reversed(self.dims[1:]):
            offset = em.add(offset, em.mul(remainder(b, at, n), stride))
            at = quotient(b, at, n)
        offset = em.add(offset, em.mul(at, self.dims[0][1]))
        prefetch.touch(em, b.gep(self.base, [em.i64(offset)], source_etype=I8), self.written)
