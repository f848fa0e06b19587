"""Pipe loops whose first product, by way of tensor memory, is issued a turn ahead.

    issue S_0
    each turn: wait for S_j; issue S_j+1; P_j = softmax(S_j); wait for O; release j - 1; issue O += P_j V_j

Its result comes to registers whole, so its place in tensor memory is free as soon as it is awaited. A ring of three
holds the tiles of the turn before, whose last product may still run, of this one and of the next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.codegen.llvm.emitter import Int
from tcomp.ir.tile import Compute

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.copies.tensor_pipe import TensorPipe

STAGES = 3
"""of the ring, at least"""


def opening_of(pipe: TensorPipe) -> Compute | None:
    """The product that opens a turn of the loop, if it can be issued a turn ahead."""
    own = pipe.loop.body[len(pipe.packs) :]
    first = own[0] if own else None
    piece = pipe.phase.tensor.pieces.get(id(first))
    if pipe.ring.stages < STAGES or not isinstance(first, Compute) or piece is None:
        return None
    if piece.left is None or first.accumulate or not all(isinstance(s, Compute) for s in own):
        return None
    written = {s.target.tensor for s in own if isinstance(s, Compute)}
    return first if written.isdisjoint(piece.tiles()) else None


def run_ahead(pipe: TensorPipe, opening: Compute) -> None:
    """The turns of a loop that has at least one. The first is written apart, since nothing runs before it."""
    em, ring, groups, step = pipe.em, pipe.ring, pipe.phase.groups, pipe.loop.step

    def issue(turn: Int) -> None:
        with pipe.at(turn, ring.wait_full()):
            pipe.phase.compute(opening)

    def turn(base: Int, first: bool = False) -> None:
        slot = ring.reading.slot
        ring.reading.advance()
        groups.before({opening.target.tensor})
        em.here()
        later = em.add(base, step)
        em.when(em.here().icmp_signed("<", em.i64(later), em.i64(pipe.stop)), lambda: issue(later))
        coming = groups.pending.pop()  # (it touches no register before the next turn)
        groups.caught_up = _nothing if first else lambda: ring.release(ring.reading.before(slot))
        with pipe.at(base, slot):
            pipe.phase.statements(pipe.loop.body, pipe.path, len(pipe.packs) + 1, running=1)
        groups.pending.insert(0, replace(coming, late=True))
        if pipe.phase.roles.now == "all" and not first:
            pipe.fill_later(base, ring.stages - 1)

    issue(pipe.start)
    with em.frame():
        turn(pipe.start, first=True)
    em.here()
    em.repeat(em.add(pipe.start, step), pipe.stop, step, turn)
    em.here()
    groups.pending = [g for g in groups.pending if g.generator.node is not opening]  # (there was no turn to come)
    groups.caught_up = _nothing
    groups.before(None)
    pipe.release_before()


def _nothing() -> None:
    pass
