"""Tiles that the copy engine fills on their own, outside of a pipe loop: one copy, or one for each side of a block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I8
from tcomp.codegen.nvptx.copies import tensor_copy
from tcomp.codegen.nvptx.copies.ring import Ring
from tcomp.ir.tile import Pack

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator


class TensorTile:
    """A tile that is filled where its Pack stands and released at the end of the statements around it. Where a result
    takes its place, so many groups of warps deliver that (`delivered`), and their leaders release the tile."""

    def __init__(self, phase: PhaseGenerator, pack: Pack, ring: Ring, repeated: bool, delivered: int = 0) -> None:
        self.phase, self.pack, self.ring, self.repeated = phase, pack, ring, repeated
        self.delivered = delivered
        self.slot: Int = 0
        self.root = phase.scope.roots[pack.buffer]

    def fill(self) -> None:
        if self.phase.roles.now == "producer":
            self._copy()
        else:
            if self.phase.roles.now == "all":
                self.phase.roles.leader(self._copy)
            self.ring.others(1, before=True)
            self.slot = self.ring.wait_full()
            phase, name = self.phase, self.pack.buffer
            begins = phase.scope.roots[name] = tensor_copy.begins_at(phase.em, phase.scope, self.pack, self.root)
            if begins is not self.root:
                phase.scope.levels[name] = phase.em.depth

    def release(self) -> None:
        if not (self.repeated and self.phase.roles.computing):
            return
        if self.delivered:
            self.phase.roles.leaders(self.delivered, self._left)
        else:
            self.ring.release(self.slot)
        self.ring.reading.advance()
        self.ring.others(1, before=False)

    def _left(self) -> None:
        """This thread's copies of the result have read the tile."""
        tensor_copy.await_deliveries(self.phase.em)
        self.ring.freed(self.slot)

    def _copy(self) -> None:
        phase = self.phase
        size = tensor_copy.copied_bytes(self.pack, phase.scope.buffers)
        slot, full = self.ring.announce(size, self.repeated)
        to = self.root
        if phase.em.sides > 1:
            place = phase.em.mul(slot, phase.layout.own[self.pack.buffer])
            to = phase.em.here().gep(to, [phase.em.i64(place)], source_etype=I8)
        tensor_copy.issue(phase.em, phase.scope, self.pack, phase.copies.map_address(self.pack), to, full)
        self.ring.filling.advance()
