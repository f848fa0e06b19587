"""Pipe loops whose tiles the copy engine fills.

    all threads do everything                     roles apart (`Roles`)
    issue the copies of the first turns           producer: each turn: issue its copies (deliverer: take its results)
    each turn: wait for its copies; compute;      consumers: each turn: wait; compute; release
        release; issue the copies of a later one

A turn's copies are issued by one thread, and wait until every warp has released the ring's place. `hold` lets
asynchronous reads (wgmma) go on beyond the turn. So does a loop with a `late` statement, whose first turn is written
apart, since there is nothing late before it:

    turn 0, its late statement put off; each other turn, with that of the turn before in it; the last turn's

Where the late statement opens its turn, turns go in pairs (`tensor_pairs.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import F32, I8, I32, IrValue
from tcomp.codegen.nvptx.copies import tensor_copy
from tcomp.codegen.nvptx.copies.ring import Ring
from tcomp.codegen.nvptx.copies.tensor_pairs import run_in_pairs
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.layout import leading_packs
from tcomp.codegen.nvptx.phase_facts import is_asynchronous, loads_loose
from tcomp.codegen.nvptx.products.matrix import matched
from tcomp.codegen.nvptx.products.tensor_ahead import opening_of, run_ahead
from tcomp.codegen.nvptx.products.tensor_memory import commit
from tcomp.codegen.nvptx.products.warpgroup import WarpgroupGenerator
from tcomp.codegen.nvptx.threads.beside import sums_beside
from tcomp.codegen.nvptx.threads.evaluation import slot_type
from tcomp.ir.pairs import paired
from tcomp.ir.tile import Compute, Loop, Unpack
from tcomp.ir.walk import accesses_of

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator


class TensorPipe:
    """Writes one pipe loop at the emitter's current place."""

    def __init__(self, phase: PhaseGenerator, loop: Loop, path: tuple[int, ...], ring: Ring) -> None:
        self.phase, self.loop, self.path, self.ring = phase, loop, path, ring
        self.em, self.scope = phase.em, phase.scope
        self.packs = leading_packs(loop)
        self.stage_bytes = phase.layout.stages.get(id(loop), 0)
        self.tiles = {p.buffer: self.scope.roots[p.buffer] for p in self.packs}
        self.bytes = sum(tensor_copy.copied_bytes(p, self.scope.buffers) for p in self.packs)
        self.drain: Callable[[], None] | None = None
        self.collected = id(loop) in phase.tensor.products
        """Is its sum in tensor memory? Then only the multiplier goes through its turns."""
        self.product = paired(loop) if ring.stages > 1 else None
        """What is issued for two turns at a time."""
        late = any(isinstance(s, Compute) and s.late for s in loop.body)
        self.opening = opening_of(self) if late else None
        """A product that is issued a turn ahead."""
        self.rotated = ring.stages > 1 and late and self.product is None and self.opening is None
        self.beside = sums_beside(loop, phase.scope)
        """What a turn computes beside its one product."""
        self.running = self._running()
        self.held = self.rotated or self.running is not None
        """Are a turn's tiles released a turn later?"""
        names = loads_loose(loop.body, set(self.tiles), phase.scope)
        cells = (c for n in names if slot_type(phase.scope.buffers[n].dtype) == F32 for c in phase.scope.fragments[n])
        self.loose = list(cells) if names else None
        """Results of what a turn loads of its tiles, which may still be on its way when the turn ends."""
        self.apart = self.phase.staggered and self._short() and ring.stages > 1
        """Do warpgroups go through the loop a turn apart?"""
        self.first: bool | None = None
        """Whether the turn being written is the loop's first; None if it may be."""

    def hold(self, drain: Callable[[], None]) -> bool:
        """Asked while a turn's statements are written: what the turn reads is still being read when they end, and no
        longer when those of the next turn do. Its tiles are then released one turn later, and `drain` is called after
        the loop to end the last turn's reads. False (and nothing changes) in a ring of one, which has no later turn."""
        if self.ring.stages < 2:
            return False
        self.drain, self.held = drain, True
        return True

    def generate(self) -> None:
        em, loop, ring = self.em, self.loop, self.ring
        # What lies past the end of a tensor is zero in its tiles, and adds nothing to products.
        self.origin, start, stop = self.phase.span(loop, past=self._short())
        self.start, self.stop = start, stop
        if self.collected and self.phase.roles.now == "multiplier":
            self.phase.tensor.multiply(loop, self._multiplied)
            return
        if self.collected and self.phase.roles.now == "relay":
            if ring.pair == "relayed":
                em.repeat(start, stop, loop.step, lambda _: ring.relay())
            return
        if self.collected and self.phase.roles.computing:
            if self.beside:
                em.repeat(start, stop, loop.step, self._read)
            self.phase.tensor.collect(loop)
            return
        if not self.phase.roles.computing:
            producer = self.phase.roles.now == "producer"
            em.repeat(start, stop, loop.step, self._fill if producer else self._deliver_turn)
            return
        if self.phase.roles.now == "all":
            for j in range(self.ring.stages):
                self.fill_later(start, j)
        outer, self.phase.pipe = self.phase.pipe, self
        turns = self._turns_of_a_side() if em.sides > 1 else 0
        if turns:  # (A side that went past more copies than there are would take an earlier one's parity for its own.)
            ring.others(turns, before=True)
            em.turn_barrier("sync")
        ring.uniform = self._short()
        if self.opening is not None:
            self._if_any(partial(run_ahead, self, self.opening))
        elif self.rotated:
            self._if_any(self._rotated)
        elif self.running is not None:
            self._overlapped(self.running)
        elif self.product is not None:
            run_in_pairs(self, self.product)
        elif ring.uniform and self._whole_rounds(start, stop):
            ring.reading.fixed = 0
            em.repeat(start, stop, loop.step * ring.stages, self._round)
        else:
            em.repeat(start, stop, loop.step, self._ordered)
        self.phase.pipe = outer
        if turns:
            em.turn_barrier("arrive")
        if self.drain is not None:
            em.here()
            self.drain()
            self._if_any(self.release_before)
        ring.reading.fixed, ring.uniform = None, False
        if turns:
            ring.others(turns, before=False)

    def _multiplied(self, products: Callable[[IrValue], None]) -> None:
        """The turns of a multiplier, with those products: tiles are released when they are complete."""
        em, ring = self.em, self.ring

        def turn(base: Int) -> None:
            slot = ring.wait_full()
            with self.at(base, slot):
                b = em.here()
                first = b.zext(b.icmp_signed("==", em.i64(base), em.i64(self.start)), I32)
                products(first)
            commit(em, ring.empty_place(slot), ring.cluster, bool(ring.pair))
            ring.reading.advance()

        em.repeat(self.start, self.stop, self.loop.step, turn)

    def _read(self, base: Int) -> None:
        """A turn of threads that sum what a multiplier multiplies."""
        slot = self.ring.wait_full()
        with self.em.frame(), self.at(base, slot):
            for s in self.beside:
                self.phase.compute(s)
        self.ring.release(slot, self.loose)
        self.ring.reading.advance()

    def _turns_of_a_side(self) -> int:
        """The turns of each run of the loop, which sides of a block must know of each other."""
        if not (isinstance(self.start, int) and isinstance(self.stop, int)):
            raise Unsupported(
                f"the sides of a block would run the loop over {self.loop.variable} for different times",
                self.loop.span,
                "leave `pingpong` out",
            )
        return max(0, -(-(self.stop - self.start) // self.loop.step))

    def _rotated(self) -> None:
        """The turns of a loop that has at least one, with what is late in the turn after its own."""
        em = self.em
        with em.frame():
            em.here()
            self.first = True
            self.turn(self.start)
        self.first, self.phase.groups.caught_up = False, self.release_before
        em.here()
        em.repeat(em.add(self.start, self.loop.step), self.stop, self.loop.step, self.turn)
        em.here()
        self.phase.groups.before(None)
        self.phase.groups.caught_up = lambda: None

    def _running(self) -> WarpgroupGenerator | None:
        """The sum by wgmma that ends a turn of several products, which goes on while the next turn starts."""
        own = [s for s in self.loop.body if isinstance(s, Compute)]
        products = [s for s in own if is_asynchronous(s, self.scope)]
        if self.ring.stages < 2 or self.rotated or len(products) < 2 or not products[-1].accumulate:
            return None
        if id(products[-1]) in self.phase.tensor.pieces:  # (a mbarrier of nothing would never be told)
            return None
        last = products[-1]
        after = own[own.index(last) + 1 :]
        if any(last.target.tensor in {a.tensor for a in accesses_of(s)} for s in after) or (
            isinstance(self.loop.body[-1], Loop)
        ):
            return None
        tiles = {p.buffer for p in self.packs if p.by == "tma"}
        unpacks = [s.buffer for s in self.loop.body if isinstance(s, Unpack)]
        if unpacks and self.phase.copies.handed.keys() >= set(unpacks):
            tiles |= self.phase.ordinary  # (written behind a barrier of the turn, which comes after the product's end)
        generator = WarpgroupGenerator(self.em, self.scope, last, matched(last, self.scope))
        return generator if generator.tiles() <= tiles else None

    def _overlapped(self, running: WarpgroupGenerator) -> None:
        """The loop, each turn of which finds the last product of the one before running."""
        em, groups = self.em, self.phase.groups
        groups.before(None)
        groups.resume(running)
        groups.caught_up = lambda: self._after_first(self.base, self.release_before)
        em.here()
        em.repeat(self.start, self.stop, self.loop.step, self.turn)
        groups.caught_up = lambda: None
        groups.before(None)
        self._if_any(self.release_before)

    def _short(self) -> bool:
        """Is a turn one group of wgmma and nothing else, but what runs beside it? Then what the loop itself costs is
        worth saving."""
        node = self.loop.body[-1]
        alone = len(self.loop.body) == len(self.packs) + 1
        return bool(self.beside) or (alone and isinstance(node, Compute) and is_asynchronous(node, self.scope))

    def _product(self) -> None:
        """A turn's product and what runs beside it."""
        (product,) = (s for s in self.loop.body if isinstance(s, Compute) and s.instruction)

        def beside() -> None:
            for s in self.beside:
                self.phase.compute(s)

        self.phase.compute(product, self.hold, beside)

    def _whole_rounds(self, start: Int, stop: Int) -> bool:
        """Does each run of the loop begin at the ring's first copy?"""
        if self.ring.stages < 2:
            return False
        if not (isinstance(start, int) and isinstance(stop, int)):
            round_, facts = self.loop.step * self.ring.stages, self.scope.facts
            return all(facts.of(e).multiple_of(round_) for e in (self.loop.start, self.loop.stop))
        turns = -(-(stop - start) // self.loop.step)
        return turns % self.ring.stages == 0

    # --------------------------------------------------------------------------------------------- reading

    def _round(self, base: Int) -> None:
        """As many turns as there are copies, each with its own in the code: places are numbers, not sums."""
        for j in range(self.ring.stages):
            self.em.here()
            self.first = False if j else None
            one = self.turn if j else self._ordered
            one(self.em.add(base, j * self.loop.step))

    def _ordered(self, base: Int) -> None:
        """A turn. Where warpgroups are apart, each starts it when the one before has begun it: their sums end one after
        the other, and what is done with them runs beside products."""
        if self.apart:
            self.em.turn_barrier("sync")
        self.turn(base)
        if self.apart:
            self.em.turn_barrier("arrive")

    def turn(self, base: Int) -> None:
        em, loop, ring = self.em, self.loop, self.ring
        self.base = base
        slot = ring.wait_full()
        with self.at(base, slot):
            if self.beside:
                self._product()
            else:
                self.phase.statements(loop.body, self.path, len(self.packs), running=int(self.running is not None))
        if not self.held:
            ring.release(slot, self.loose)
        elif self.drain is not None:
            self._after_first(base, lambda: ring.release(ring.reading.before(slot)))
        ring.reading.advance()
        if self.phase.roles.now == "all":
            if self.held:
                self._after_first(base, lambda: self.fill_later(base, ring.stages - 1))
            else:
                self.fill_later(base, ring.stages)
        em.here()

    def _after_first(self, turn: Int, body: Callable[[], None]) -> None:
        """Emit `body`, to be run in all turns but the loop's first."""
        em = self.em
        first = turn == self.start if isinstance(turn, int) and isinstance(self.start, int) else self.first
        if first is None:
            em.when(em.here().icmp_signed("!=", em.i64(turn), em.i64(self.start)), body)
        elif not first:
            body()

    def _if_any(self, body: Callable[[], None]) -> None:
        """Emit `body`, to be run if the loop has a turn."""
        em = self.em
        if isinstance(self.start, int) and isinstance(self.stop, int):
            if self.start < self.stop:
                body()
            return
        em.when(em.here().icmp_signed("<", em.i64(self.start), em.i64(self.stop)), body)

    def release_before(self) -> None:
        """Release the tiles of the turn before this one (behind the loop: of the last)."""
        ring = self.ring
        ring.release(ring.reading.before(ring.reading.slot))

    @contextmanager
    def at(self, turn: Int, slot: Int) -> Iterator[None]:
        """Let the loop's variable mean that turn, and the tiles' names that copy."""
        em = self.em
        em.here()
        self.phase.bind_turn(self.loop, em.add(self.origin, turn))
        self._tiles_at(slot)
        yield
        self.phase.unbind(self.loop.variable)
        self._tiles_at(None)

    def _tiles_at(self, slot: Int | None) -> None:
        """Let the tiles' names mean that copy of them; None: the first."""
        em = self.em
        for p in self.packs:
            name, root = p.buffer, self.tiles[p.buffer]
            self.scope.copies.pop(name, None)
            if slot is not None and self.ring.uniform:
                self.scope.copies[name] = root, slot, self.stage_bytes
            found = root if slot is None else self._displaced(root, slot)
            if slot is not None:
                found = tensor_copy.begins_at(em, self.scope, p, found)
            self.scope.roots[name] = found
            if found is root:
                self.scope.levels.pop(name, None)
            else:
                self.scope.levels[name] = em.depth

    def _displaced(self, root: IrValue, slot: Int) -> IrValue:
        em = self.em
        b = em.here()
        offset = em.mul(slot, self.stage_bytes)
        return root if isinstance(offset, int) and offset == 0 else b.gep(root, [em.i64(offset)], source_etype=I8)

    # --------------------------------------------------------------------------------------------- filling

    def _deliver_turn(self, base: Int) -> None:
        em, phase = self.em, self.phase
        em.here()
        phase.bind_turn(self.loop, em.add(self.origin, base))
        phase.statements(self.loop.body, self.path, len(self.packs))
        phase.unbind(self.loop.variable)

    def fill_later(self, turn: Int, ahead: int) -> None:
        """The copies of the turn that many steps later, if there is one, by one thread. (Its warp meets behind them:
        the assembler else takes it for divided in the turns after, and keeps their addresses in ordinary registers.)"""
        em, leader = self.em, self.phase.roles.leader
        em.here()
        later = em.add(turn, ahead * self.loop.step)
        if isinstance(later, int) and isinstance(self.stop, int):
            if later >= self.stop:
                return
            leader(lambda: self._fill(later))
        else:
            more = em.here().icmp_signed("<", em.i64(later), em.i64(self.stop))
            em.when(more, lambda: leader(lambda: self._fill(later)))
        em.here()
        em.nvvm("bar.warp.sync", args=[em.i64(-1)])

    def _fill(self, turn: Int) -> None:
        ring = self.ring
        slot, full = ring.announce(self.bytes, reused=True)
        self.em.here()
        self.phase.bind_turn(self.loop, self.em.add(self.origin, turn))
        copies = self.phase.copies
        for p in self.packs:
            to = self._displaced(self.tiles[p.buffer], slot)
            address, share = copies.map_address(p), copies.share(p)
            tensor_copy.issue(self.em, self.scope, p, address, to, full, share, ring.pair == "copied")
        self.phase.unbind(self.loop.variable)
        ring.filling.advance()
