"""Walking an axis of which few points count: a warp looks at 32 of them at a time, and takes those that do in order.

    for t in 0 .. T by 32:
        wanted = ballot(guard at t + lane)              one load, one comparison for 32 points
        while wanted: t' = t + lowest bit; the statement at t'; clear the bit

So a scatter whose blocks each own some rows reads the row numbers 32 at a time, and the order of points stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.expressions import Node
from tcomp.codegen.llvm.types import I1, I32, IrValue
from tcomp.codegen.nvptx.threads.domain import AxisPlace, GpuDomain, spread_of
from tcomp.codegen.nvptx.threads.evaluation import GpuEvaluator
from tcomp.ir.tile import SERIAL, Axis

LANES = 32
LEAST = 64
"""points from which looking ahead pays"""
AHEAD = 4
"""times 32 points whose numbers are read together"""


def can_scan(domain: GpuDomain, guard: Node, axis: Axis, axes: Mapping[str, Axis]) -> bool:
    """Does the guard depend on this axis, and otherwise only on what all lanes share?"""
    shared = all(not (s.lane or s.warp) for d in guard.deps for s in [spread_of(axes[d])])
    entered = all(d == axis.name or (d in domain.places and len(domain.places[d].offsets) == 1) for d in guard.deps)
    return axis.name in guard.deps and shared and entered and axis.block >= LEAST


def scan(domain: GpuDomain, evaluator: GpuEvaluator, guard: Node, axis: Axis, body: Callable[[], None]) -> None:
    """Run `body` at each value of the axis where the guard holds, in order."""
    em = domain.gpu
    length = domain.spans[axis.name].length

    def enter(base: Int, checked: bool) -> None:
        domain.enter(axis.name, AxisPlace(em.depth, base, 0, SERIAL, (0,), (None,), (checked,), (None,), 1))

    def wanted(first: Int) -> IrValue:
        """Bit l: does the guard hold at first + l?"""
        lane = em.lane()
        em.here()
        enter(em.add(first, lane), not (isinstance(length, int) and length % LANES == 0))
        holds = evaluator.value(guard, dict.fromkeys(guard.deps, 0))
        inside = domain.mask({axis.name: 0})
        b = em.here()
        if inside is not None:
            holds = b.and_(holds, inside)
        return em.nvvm("vote.ballot.sync", I32, [em.i64(-1), holds])

    def take(first: Int, mask: IrValue) -> None:
        em.here()
        count = em.intrinsic("llvm.ctpop", I32, [mask], [I32])

        def one(_: Int, carried: Sequence[IrValue]) -> Sequence[IrValue]:
            em.here()
            at = em.intrinsic("llvm.cttz", I32, [carried[0], ir.Constant(I1, 1)], [I32])
            enter(em.add(first, at), False)
            body()
            b = em.here()
            return [b.and_(carried[0], b.sub(carried[0], em.i64(1)))]

        em.loop(0, count, 1, [mask], one)

    together = AHEAD if isinstance(length, int) and length % (LANES * AHEAD) == 0 else 1

    def some(first: Int) -> None:
        places = []
        for i in range(together):
            em.here()
            places.append(em.add(first, i * LANES))
        masks = []
        for place in places:
            with em.frame():  # what is known of one place is not of the next
                masks.append(wanted(place))
        for place, mask in zip(places, masks, strict=True):
            take(place, mask)

    em.repeat(0, length, LANES * together, some)
