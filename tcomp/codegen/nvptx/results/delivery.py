"""`Unpack`s: results that leave through shared memory, by the copy engine, while the block goes on.

    before the tile is written again: the leader waits until its copies have read it (a barrier tells the others)
    threads store to the tile; fence for the async proxy; barrier; the leader starts the copies
    at the block's end: the leader waits for its copies

Results that leave panel by panel (`gpu/result_panels.py`) have two places in turn: copies of a panel, or panels of
several results. Each warpgroup hands over its own rows, behind one barrier of its own: its leader comes there when the
place that is written next has been read.

Where a barrier stands before the stores anyway, the leader waits there. Blocks that add in turns (`turn_taking.py`)
wait for theirs in the same places.

Panels in an operand's place (`Buffer.inside`) have one each, and nothing waits between them. The operand's next tile
may come when the last panel has been read, which the leader waits for and tells the tile's mbarrier
(`copies/tensor_tile.py`).

Results that are added to memory in every turn of a pipe loop (`layout.handed_over`) are taken away by a warp of the
producer, if there is one. Threads that compute do not wait for memory then, only at the tile's mbarriers
(`copies/ring.py`):

    threads: wait until the tile is empty; store to it; fence for the async proxy; each warp says that it is full
    deliverer: wait for the block's turn; wait until the tile is full; start the copies; when they have read it, say
               that it is empty; when all is done, pass the turn on

A block that reads such a sum, because its turn was the last one (`joining/last_turn.py`), waits until its own
additions are done, of which the deliverer tells it by an mbarrier of its own. Those of other blocks are known to be by
the words that it waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I8, IrValue
from tcomp.codegen.nvptx.copies.tensor_copy import await_deliveries, deliver
from tcomp.codegen.nvptx.copies.tensor_rings import TensorRings
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.results.turn_taking import TurnTaking
from tcomp.codegen.nvptx.roles import Roles
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.ir.tile import Compute, Loop, Statement, Unpack
from tcomp.ir.walk import statements_in


def places_in(phase: Sequence[Statement]) -> Iterator[tuple[Unpack, int]]:
    """The deliveries of panel loops, with the places that each one's loop writes in turn."""
    for s in statements_in(phase):
        if isinstance(s, Loop) and s.level == "panel":
            own = [u for u in s.body if isinstance(u, Unpack)]
            yield from ((u, len(own) * s.stages) for u in own)


class Deliveries:
    """The deliveries of one phase."""

    def __init__(
        self,
        em: GpuEmitter,
        scope: GpuScope,
        roles: Roles,
        copies: TensorRings,
        phase: Sequence[Statement],
        persistent: bool = False,
    ) -> None:
        self.em, self.scope, self.roles, self.copies = em, scope, roles, copies
        found = [s for s in statements_in(phase) if isinstance(s, Unpack)]
        self.panels = {s.buffer: (s, n) for s, n in places_in(phase)}
        """of each tile of a panel loop, its delivery and how many places are written in turn"""
        self.delivered = {s.buffer for s in found} - set(self.panels) - set(copies.handed)
        self.number = 0
        """of the panel that is being written"""
        self.writing: set[str] = set()
        """tiles of the deliverer's that are being written"""
        loops = [s for s in statements_in(phase) if isinstance(s, Loop) and (persistent or s.level != "grid")]
        again = {s.buffer for loop in loops for s in statements_in(loop.body) if isinstance(s, Unpack)}
        self.once = self.delivered - again
        """tiles that a block delivers once"""
        self.free: set[str] = set()
        """tiles for the copy engine that the place being written knows to be free"""
        flags = sorted({s.turns.flag.tensor for s in found if s.turns is not None})
        if len(flags) > 1:
            raise Unsupported(f"blocks add to two results in turns, of '{flags[0]}' and of '{flags[1]}'")
        self.taking = TurnTaking(em, scope, flags[0]) if flags else None

    def settle(self, loop: Loop, turns: Callable[[], tuple[Int, Int]], body: Callable[[], None]) -> None:
        """The loop that reads what blocks have added up, where it has turns."""
        em = self.em
        ring = self.copies.settled.get(id(loop))
        if ring is not None and not self.roles.computing:
            ring.said_full(self.copies.settled_name(loop))
            return

        def go() -> None:
            if ring is not None:
                ring.wait_full()
            else:
                self.finish()
                em.barrier()
            em.effect("fence.proxy.async.global;")
            with em.afresh():
                body()

        start, stop = turns()
        em.when(em.here().icmp_signed("<", em.i64(start), em.i64(stop)), go)

    def finish(self) -> None:
        """A block's shared memory stays until the copy engine has read it."""
        if not self.roles.computing:
            return
        if any(s.groups > 1 for s, _ in self.panels.values()):
            self.roles.group_leader(self._await)
        elif self.delivered or self.panels:
            self.roles.leader(self._await)

    def before(self, s: Statement, rest: Sequence[Statement]) -> None:
        """A tile is about to be written that the copy engine may still be reading; so may those that the `rest` of its
        body writes, which are read when this one is."""
        if not isinstance(s, Compute):
            return
        name = s.target.tensor
        if name in self.delivered - self.free - self.once:
            self.roles.leader(self._await)
            self.em.barrier()
            if self.taking is None:
                self.free |= {u.buffer for u in rest if isinstance(u, Unpack) and u.buffer in self.delivered}
        elif name in self.copies.handed and name not in self.writing:
            self.copies.handed[name].wait_empty()
            self.writing.add(name)

    def free_tiles(self, rest: Sequence[Statement], inside: IrValue | None) -> None:
        """Before a barrier: the leader sees that tiles are free which these statements write, so that they need none of
        their own. It waits for its turn there too: products run meanwhile."""
        unpacks = [s for s in rest if isinstance(s, Unpack) and s.buffer in self.delivered - self.free]
        if not unpacks or not {s.buffer for s in unpacks} <= {s.target.tensor for s in rest if isinstance(s, Compute)}:
            return

        def lead() -> None:
            self._await()
            for s in unpacks:
                if self.taking is not None and s.turns is not None:
                    wait = partial(self.taking.wait, s.turns)
                    wait() if inside is None else self.em.when(inside, wait)

        self.roles.leader(lead)
        self.free |= {s.buffer for s in unpacks}

    @contextmanager
    def panel(self, loop: Loop, number: int, turns: int) -> Iterator[None]:
        """A turn of a panel loop, whose tile's name means the copy that it writes."""
        self.number = number
        unpacks = [s for s in loop.body if isinstance(s, Unpack)]
        if not unpacks:
            yield
            return
        copy = number % loop.stages
        if len(unpacks) * loop.stages == 1 or (number == 0 and turns % loop.stages):
            self.roles.leaders(
                unpacks[0].groups, lambda: await_deliveries(self.em)
            )  # the last turn wrote where this one does
            self.em.group_barrier(unpacks[0].groups)
        roots = {s.buffer: self.scope.roots[s.buffer] for s in unpacks}
        for name, root in roots.items() if copy else ():
            self.scope.roots[name] = self._copy(name, root, copy)
        yield
        self.scope.roots.update(roots)

    def _copy(self, name: str, root: IrValue, copy: int) -> IrValue:
        em, size = self.em, self.scope.buffers[name].bytes
        return em.once(0, ("copy", name, copy), lambda: em.builder.gep(root, [em.i64(copy * size)], source_etype=I8))

    def _start_panel(self, s: Unpack, places: int, inside: IrValue | None) -> None:
        em, copies = self.em, places // self.scope.buffers[s.buffer].ring
        if places > 1 and not self.scope.buffers[s.buffer].inside:
            self.roles.leaders(s.groups, lambda: await_deliveries(em, but=places - 2))
        em.group_barrier(s.groups)
        group = em.group(s.groups) if s.groups > 1 else 0
        address = self.copies.result_address(s)

        def start(stores: bool = False) -> None:
            deliver(em, self.scope, s, address, stores, group)

        def in_turn() -> None:
            assert self.taking is not None and s.turns is not None
            self.taking.panel(s.turns, start, copies, self.number == 0, group)

        lead = start if s.turns is None else in_turn
        self.roles.leaders(s.groups, lead if inside is None else lambda: em.when(inside, lead))

    def start(self, s: Unpack, inside: IrValue | None) -> None:
        """All threads' stores become visible to the copy engine, which one thread then starts: not in a block that only
        makes its cluster whole (`inside`), which has written nothing."""
        em = self.em
        if not self.roles.computing:
            self._take_away(s)
            return
        handed, panel = s.buffer in self.copies.handed, s.buffer in self.panels
        if handed or panel or not em.async_reads:  # (else the barrier has the same fence)
            em.effect("fence.proxy.async.shared::cta;")
        if handed:
            self.copies.handed[s.buffer].filled()
            self.writing.discard(s.buffer)
            return
        if panel:
            self._start_panel(s, self.panels[s.buffer][1], inside)
            return
        em.barrier()
        self._hand_over(s, inside)
        self.free.discard(s.buffer)

    def _hand_over(self, s: Unpack, inside: IrValue | None) -> None:
        em = self.em
        address = self.copies.result_address(s)
        taking, turns = self.taking, s.turns
        if taking is None or turns is None:

            def start() -> None:
                self._issue(s, address)

            self.roles.leader(start if inside is None else lambda: em.when(inside, start))
            return

        def hand_over() -> None:
            if s.buffer not in self.free:
                taking.wait(turns)
            self._issue(s, address)

        self.roles.leader(hand_over if inside is None else lambda: em.when(inside, hand_over))

    def _issue(self, s: Unpack, address: IrValue) -> None:
        """Start the copies of a tile, where there may be turns."""
        em, scope, turns = self.em, self.scope, s.turns
        if self.taking is None or turns is None:
            deliver(em, scope, s, address)
            return
        self.taking.issue(
            turns, lambda: deliver(em, scope, s, address), lambda: deliver(em, scope, s, address, stores=turns.stores)
        )

    def _take_away(self, s: Unpack) -> None:
        """What the deliverer does with one tile. (It waits for its turn first: the tile is not full before.)"""
        ring = self.copies.handed[s.buffer]
        if self.taking is not None and s.turns is not None:
            self.taking.wait(s.turns)
        ring.wait_full()
        self._issue(s, self.copies.result_address(s))
        await_deliveries(self.em)
        ring.released()
        if self.taking is not None and s.turns is not None:
            self._await()

    def _await(self) -> None:
        """The leader (or the deliverer) waits until its copies have left their tiles; where it takes turns with other
        blocks, until all is done."""
        turns = self.taking is not None and (not self.roles.computing or not self.copies.handed)
        await_deliveries(self.em, turns)
        if self.taking is not None and turns:
            self.taking.pass_on()
