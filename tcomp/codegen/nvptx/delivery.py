"""`Unpack`s: results that leave through shared memory, by the copy engine, while the block goes on.

    before the tile is written again: the leader waits until its copies have read it (a barrier tells the others)
    threads store to the tile; fence for the async proxy; barrier; the leader starts the copies
    at the block's end: the leader waits for its copies

Where a barrier stands before the stores anyway, the leader waits there. Blocks that add in turns (`turn_taking.py`)
wait for theirs in the same places.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.cpu.types import VOID, IrValue
from tcomp.codegen.nvptx.domain import GpuScope
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.layout import statements_in
from tcomp.codegen.nvptx.roles import Roles
from tcomp.codegen.nvptx.tensor_copy import await_deliveries, deliver
from tcomp.codegen.nvptx.tensor_rings import TensorRings
from tcomp.codegen.nvptx.turn_taking import TurnTaking
from tcomp.ir.tile import Compute, Statement, Unpack


class Deliveries:
    """The deliveries of one phase."""

    def __init__(
        self, em: GpuEmitter, scope: GpuScope, roles: Roles, copies: TensorRings, phase: Sequence[Statement]
    ) -> None:
        self.em, self.scope, self.roles, self.copies = em, scope, roles, copies
        found = [s for s in statements_in(phase) if isinstance(s, Unpack)]
        self.delivered = {s.buffer for s in found}
        self.free: set[str] = set()
        """tiles for the copy engine that the place being written knows to be free"""
        self.taking = TurnTaking(em, scope) if any(s.turns is not None for s in found) else None

    def finish(self) -> None:
        """A block's shared memory stays until the copy engine has read it."""
        if self.delivered and self.roles.now != "producer":
            self.roles.leader(self._await)

    def before(self, s: Statement) -> None:
        """A tile is about to be written that the copy engine may still be reading."""
        if isinstance(s, Compute) and s.target.tensor in self.delivered - self.free:
            self.roles.leader(self._await)
            self.em.barrier()

    def free_tiles(self, rest: Sequence[Statement]) -> None:
        """Before a barrier: the leader sees that tiles are free which these statements write, so that they need none of
        their own. It waits for its turn there too: products run meanwhile."""
        unpacks = [s for s in rest if isinstance(s, Unpack) and s.buffer not in self.free]
        if not unpacks or not {s.buffer for s in unpacks} <= {s.target.tensor for s in rest if isinstance(s, Compute)}:
            return

        def lead() -> None:
            self._await()
            for s in unpacks:
                if self.taking is not None and s.turns is not None:
                    self.taking.wait(s.turns)

        self.roles.leader(lead)
        self.free |= {s.buffer for s in unpacks}

    def start(self, s: Unpack, inside: IrValue | None) -> None:
        """All threads' stores become visible to the copy engine, which one thread then starts: not in a block that only
        makes its cluster whole (`inside`), which has written nothing."""
        em = self.em
        em.here()
        em.asm("fence.proxy.async.shared::cta;", VOID, "~{memory}", effect=True)
        em.barrier()
        self._hand_over(s, inside)
        self.free.discard(s.buffer)

    def _hand_over(self, s: Unpack, inside: IrValue | None) -> None:
        em = self.em
        address = self.copies.map_address(s.reversed)
        taking, turns = self.taking, s.turns
        if taking is None or turns is None:

            def start() -> None:
                deliver(em, self.scope, s, address)

            self.roles.leader(start if inside is None else lambda: em.when(inside, start))
            return

        def hand_over() -> None:
            if s.buffer not in self.free:
                taking.wait(turns)
            taking.issue(
                turns,
                lambda: deliver(em, self.scope, s, address),
                lambda: deliver(em, self.scope, s, address, stores=turns.stores),
            )

        self.roles.leader(hand_over)

    def _await(self) -> None:
        """The leader waits until its copies have left their tiles; where blocks take turns, until all is done."""
        await_deliveries(self.em, self.taking is not None)
        if self.taking is not None:
            self.taking.pass_on()
