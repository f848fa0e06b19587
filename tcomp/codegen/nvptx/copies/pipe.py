"""Pipe loops: the copies of later turns run while a turn is computed.

    prologue: issue the packs of turns 0 .. stages - 2, a group each
    each turn: wait for its own group; barrier; issue the packs of turn + stages - 1; compute

One barrier a turn is enough: the copy issued in it goes where the turn before was read, and that is over for all
threads. Turns past the end issue empty groups, so that waiting counts the same everywhere. With one stage a turn is
barrier, packs, barrier, compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I8, I32, IrValue
from tcomp.codegen.nvptx.copies.pack import PackGenerator
from tcomp.codegen.nvptx.layout import leading_packs
from tcomp.ir.tile import Loop

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator


class PipeGenerator:
    """Writes one pipe loop at the emitter's current place."""

    def __init__(self, phase: PhaseGenerator, loop: Loop, path: tuple[int, ...], stages: int) -> None:
        self.phase, self.loop, self.path, self.stages = phase, loop, path, stages
        self.em, self.scope = phase.em, phase.scope
        self.packs = leading_packs(loop)
        self.background = any(p.by == "cp.async" for p in self.packs)
        self.stage_bytes = phase.layout.stages.get(id(loop), 0)
        self.first = {p.buffer: self.scope.roots[p.buffer] for p in self.packs}

    def generate(self) -> None:
        start, stop = self.phase.bounds(self.loop)
        if self.stages == 1:
            self.em.repeat(start, stop, self.loop.step, self._plain)
            return
        em, loop = self.em, self.loop
        for j in range(self.stages - 1):
            em.here()
            self._issue(em.add(start, j * loop.step), stop, j * self.stage_bytes)
        self.stop = stop
        em.here()
        slots = [em.i64(0), em.i64((self.stages - 1) * self.stage_bytes)]
        em.loop(start, stop, loop.step, slots, self._turn)
        self.phase.await_copies(0)

    def _plain(self, base: Int) -> None:
        self.em.barrier()
        self.phase.bind_turn(self.loop, base)
        for p in self.packs:
            PackGenerator(self.em, self.scope, p).generate()
        if self.background:
            self.phase.commit()
            self.phase.await_copies(0)
        self.em.barrier()
        self.phase.statements(self.loop.body, self.path, len(self.packs))
        self.phase.unbind(self.loop.variable)

    def _turn(self, base: Int, slots: Sequence[IrValue]) -> Sequence[IrValue]:
        em, loop = self.em, self.loop
        reading, writing = slots
        if not self.scope.facts.of(loop.stop).multiple_of(loop.step):
            base = em.opaque(base)  # addresses that are kept inside cannot go on from turn to turn: no registers for it
        self.phase.await_copies(self.stages - 2)
        em.barrier()
        self._issue(em.add(base, (self.stages - 1) * loop.step), self.stop, writing)
        self._at(reading, em.depth)
        self.phase.bind_turn(loop, base)
        self.phase.statements(loop.body, self.path, len(self.packs))
        self.phase.unbind(loop.variable)
        self._at(0, 0)
        b = em.here()
        following = []
        for slot in slots:
            moved = b.add(slot, em.i64(self.stage_bytes))
            last = b.icmp_signed("==", moved, em.i64(self.stages * self.stage_bytes))
            following.append(b.select(last, em.i64(0), moved))
        return following

    def _issue(self, turn: Int, stop: Int, slot: Int) -> None:
        """Copies of a turn into a slot, if there is such a turn; a group in any case."""
        em = self.em

        def packs() -> None:
            self._at(slot, em.depth)
            self.phase.bind_turn(self.loop, turn)
            for p in self.packs:
                PackGenerator(em, self.scope, p).generate()
            self.phase.unbind(self.loop.variable)
            self._at(0, 0)

        if isinstance(turn, int) and isinstance(stop, int):
            if turn < stop:
                with em.frame():
                    packs()
        else:
            b = em.here()
            em.when(b.icmp_signed("<", em.i64(turn), em.i64(stop)), packs)
        self.phase.commit()

    def _at(self, slot: Int, level: int) -> None:
        """Let the copied tiles' names mean the copy at this byte offset."""
        em = self.em
        b = em.here()
        for name, root in self.first.items():
            if isinstance(slot, int) and slot == 0:
                self.scope.roots[name] = root
                self.scope.levels.pop(name, None)
            else:
                offset = ir.Constant(I32, slot) if isinstance(slot, int) else slot
                self.scope.roots[name] = b.gep(root, [offset], source_etype=I8)
                self.scope.levels[name] = level
