"""A stream's equal shares (`ir.blocks.Stream`): which part of which sums a block, or a cluster, computes on its way.

All units of all sums lie in one row, which is cut into as many pieces of one length as there are shares. Where each sum
has some whole parts of one size before that, those are dealt out first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import Known
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.ir.blocks import Stream

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator


def write_share(phase: PhaseGenerator, stream: Stream, number: Int, shares: int) -> None:
    """Share `number` of so many: a part of each turn of the phase's grid loops that it comes to."""
    em, sums = phase.em, phase.turns.clusters
    parts, size = stream.parts(sums, shares)
    rest, units = shares - parts * sums, stream.units - parts * size
    total = units * sums
    if total * shares >= 1 << 31:
        raise Unsupported(f"there are too many tiles to be cut into {shares} shares", phase.kernel.span)
    em.here()
    share: Int = em.add(em.mul(number, -1), rest - 1)  # (of the parts of one size: below zero)
    place = em.add(share, parts * sums)
    if parts:
        b = em.here()
        whole = b.icmp_signed("<", em.i64(share), em.i64(0))
        share = b.select(whole, em.i64(0), em.i64(share))
    begin, end = (_quotient(em, em.mul(em.add(share, k), total), rest) for k in (0, 1))
    first, last = _quotient(em, begin, units), _quotient(em, em.add(end, units - 1), units)
    known = Known(0, stream.units * stream.unit, stream.unit, 0)
    if parts:
        em.here()
        part = em.i64(_quotient(em, place, sums))
        own_sum = em.i64(em.add(place, em.mul(part, -sums)))
        first = em.here().select(whole, own_sum, em.i64(first))
        last = em.here().select(whole, em.i64(em.add(own_sum, 1)), em.i64(last))

    def turn(base: Int) -> None:
        b = em.here()
        before = em.mul(em.mul(base, units), -1)
        own = [em.i64(em.add(x, before)) for x in (begin, end)]
        low = b.select(b.icmp_signed(">", own[0], em.i64(0)), own[0], em.i64(0))
        high = b.select(b.icmp_signed("<", own[1], em.i64(units)), own[1], em.i64(units))
        if parts:
            low, high = (em.i64(em.add(x, parts * size)) for x in (low, high))
            start = em.i64(em.mul(part, size))
            stop = em.i64(em.add(start, size))
            b = em.here()
            low, high = b.select(whole, start, low), b.select(whole, stop, high)
        for name, value in ((stream.start, low), (stream.stop, high)):
            phase.bind(name, em.mul(value, stream.unit), known, em.depth)
        phase.turn(base)
        phase.unbind(stream.start)
        phase.unbind(stream.stop)

    em.repeat(first, last, 1, turn, nonempty=True)


def _quotient(em: GpuEmitter, value: Int, by: int) -> Int:
    """Of a number that is not negative, where the builder is."""
    return value // by if isinstance(value, int) else em.builder.udiv(value, em.i64(by))
