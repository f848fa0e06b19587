"""Pipe loops whose turns go in pairs: the products that open two turns are issued, then the rest of the first turn runs
beside the second product (`ir/pairs.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcomp.codegen.llvm.emitter import Int
from tcomp.ir.pairs import of_second
from tcomp.ir.tile import Compute

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.copies.tensor_pipe import TensorPipe


def run_in_pairs(pipe: TensorPipe, product: Compute) -> None:
    """Two turns at a time, then the one that may be left."""
    em, loop, phase, ring, packs = pipe.em, pipe.loop, pipe.phase, pipe.ring, len(pipe.packs)
    others = of_second(loop.body, product)
    renamed = others[packs]
    assert isinstance(renamed, Compute)

    def pair(base: Int) -> None:
        turns = []
        for number, own in enumerate((product, renamed)):
            em.here()
            turn = em.add(base, number * loop.step)
            slot = ring.wait_full()
            with em.frame(), pipe.at(turn, slot):
                phase.compute(own)
            turns.append((turn, slot))
            ring.reading.advance()
        for body, (turn, slot) in zip((loop.body, others), turns, strict=True):
            with em.frame(), pipe.at(turn, slot):
                phase.statements(body, pipe.path, packs + 1, running=int(body is loop.body))
            ring.release(slot, pipe.loose)
            if phase.roles.now == "all":
                pipe.fill_later(turn, ring.stages)
        em.here()

    middle = _last_pair_ends(pipe)
    em.repeat(pipe.start, middle, 2 * loop.step, pair)
    em.here()
    if not (isinstance(middle, int) and isinstance(pipe.stop, int) and middle >= pipe.stop):
        em.repeat(middle, pipe.stop, loop.step, pipe.turn)


def _last_pair_ends(pipe: TensorPipe) -> Int:
    """Where the last whole pair of turns ends."""
    em, step = pipe.em, pipe.loop.step
    em.here()
    length = em.add(pipe.stop, em.mul(pipe.start, -1))
    if isinstance(length, int):
        return em.add(pipe.start, -(-length // step) // 2 * 2 * step)
    b = em.here()
    turns = b.sdiv(b.add(length, em.i64(step - 1)), em.i64(step))
    some = b.icmp_signed(">", turns, em.i64(0))
    return em.add(pipe.start, em.mul(b.select(some, b.and_(turns, em.i64(-2)), em.i64(0)), step))
