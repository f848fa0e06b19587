"""Rings of tiles that the copy engine fills and threads read, kept in step by mbarriers.

Copy s of a ring has two: `full` completes when its bytes have landed, `empty` when every warp that reads it is done.

    filling   wait(empty[s], parity ^ 1); announce the bytes at full[s]; issue the copies; s, parity = next
    reading   wait(full[s], parity); use the tile; each warp arrives at empty[s]; s, parity = next

Both sides count their own position in registers, over all loops around them: a fresh barrier is in phase 0, so the
first waits for `empty` return at once. PTX ISA, section 9.7.13.15 (mbarrier).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I1, I8, I32, IrValue
from tcomp.codegen.nvptx.emitter import SHARED, GpuEmitter

BYTES = 8
"""of one mbarrier"""
Pair = Literal["", "copied", "relayed", "read"]
"""What the first block of a pair is told of, at its own barriers: that both blocks' copies are there, by the copy
engine or, where each block's threads wait for them as well, by a thread of the second; that both blocks' threads have
read the sums of both."""


class Position:
    """Which copy of a ring comes next, and the parity of that round. `fixed` is the copy's number where the code for
    each copy is written out, one after the other; it then starts from the first one."""

    fixed: int | None = None

    def __init__(self, em: GpuEmitter, stages: int) -> None:
        self.em, self.stages = em, stages
        b = em.at(0)
        self._slot = b.alloca(I32, name="slot")
        self._parity = b.alloca(I32, name="parity")
        for cell in (self._slot, self._parity):
            b.store(em.i64(0), cell)

    @property
    def slot(self) -> Int:
        if self.fixed is not None:
            return self.fixed
        return 0 if self.stages == 1 else self.em.here().load(self._slot, typ=I32)

    @property
    def parity(self) -> IrValue:
        return self.em.here().load(self._parity, typ=I32)

    def advance(self) -> None:
        em = self.em
        b = em.here()
        parity = b.load(self._parity, typ=I32)
        turned = b.xor(parity, em.i64(1))
        if self.fixed is not None:
            self.fixed = (self.fixed + 1) % self.stages
            if self.fixed == 0:
                b.store(turned, self._parity)
            return
        if self.stages == 1:
            b.store(turned, self._parity)
            return
        following = b.add(b.load(self._slot, typ=I32), em.i64(1))
        last = b.icmp_signed("==", following, em.i64(self.stages))
        b.store(b.select(last, em.i64(0), following), self._slot)
        b.store(b.select(last, turned, parity), self._parity)

    def skip(self, count: int) -> None:
        """Go on by so many copies."""
        em = self.em
        rounds, more = divmod(count, self.stages)
        b = em.here()
        parity = b.load(self._parity, typ=I32)
        if more == 0:
            if rounds % 2:
                b.store(b.xor(parity, em.i64(1)), self._parity)
            return
        following = b.add(b.load(self._slot, typ=I32), em.i64(more))
        last = b.icmp_signed(">=", following, em.i64(self.stages))
        b.store(b.select(last, b.sub(following, em.i64(self.stages)), following), self._slot)
        turned = b.select(last, em.i64(1 - rounds % 2), em.i64(rounds % 2))
        b.store(b.xor(parity, turned), self._parity)

    def before(self, slot: Int) -> Int:
        """The copy before this one."""
        if isinstance(slot, int):
            return (slot - 1) % self.stages
        b = self.em.here()
        first = b.icmp_signed("==", slot, self.em.i64(0))
        return b.select(first, self.em.i64(self.stages - 1), b.sub(slot, self.em.i64(1)))


class Ring:
    """The barriers of `stages` copies, at `barriers` in shared memory; `readers` warps release each copy. In a
    `cluster` of several blocks each fills a part of all blocks' copies, and so waits for the readers of all. The copy
    engine fills a copy for one thread, or so many warps do (`fillers`), and one thread reads it. Of a `pair` of
    blocks the first one's barriers are told of both (`Pair`)."""

    def __init__(
        self, em: GpuEmitter, barriers: IrValue, stages: int, readers: int, cluster: int = 1, fillers: int = 1,
        pair: Pair = "",
    ) -> None:  # fmt: skip
        self.em, self.barriers, self.stages = em, barriers, stages
        self.readers = readers if pair else readers * cluster
        self.cluster, self.fillers, self.pair = cluster, fillers, pair
        self.scope = "cta" if cluster == 1 else "cluster"
        self.uniform = False
        """reach the barriers from an address that the assembler sees is the same for all lanes"""
        self.filling, self.reading = Position(em, stages), Position(em, stages)

    def start(self) -> None:
        """Initialise the barriers: by one thread, with a fence and a barrier of the block to follow."""
        em = self.em
        fillers: Int = self.fillers
        if self.pair == "relayed":
            rank = em.cluster_rank()
            fillers = em.here().sub(em.i64(2), rank)
        for s in range(self.stages):
            for first, count in ((0, fillers), (self.stages, self.readers)):
                place = self._at(s, first)
                em.here()
                em.nvvm("mbarrier.init.shared", args=[place, em.i64(count)])

    # ---------------------------------------------------------------------------------- the filling side

    def announce(self, size: int, reused: bool) -> tuple[Int, IrValue]:
        """Wait until the next copy may be filled and say how many bytes will come; gives it and its full barrier."""
        em = self.em
        slot = self.filling.slot
        if reused:
            self.wait_empty()
        full = self._at(slot, 0)
        text = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;"
        if self.pair == "copied":
            rank = em.cluster_rank()
            text = f"{{ .reg .pred first; setp.eq.u32 first, $2, 0; @first {text} }}"
            em.here()
            em.effect(text, "rrr", [full, em.i64(2 * size), rank])
            there = self._barriers_of("first block", lambda: em.i64(0))
            return slot, em.here().add(there, em.i64(em.mul(slot, BYTES)))
        em.here()
        em.effect(text, "rr", [full, em.i64(size)])
        return slot, full

    def wait_empty(self) -> None:
        """Wait until the next copy may be filled."""
        place = self._at(self.filling.slot, self.stages)
        parity = self.filling.parity
        self._wait(place, self.em.here().xor(parity, self.em.i64(1)), self.scope)

    def filled(self) -> None:
        """This warp has filled its part of the copy."""
        self._by_warp(self._at(self.filling.slot, 0))
        self.filling.advance()

    def full_place(self) -> IrValue:
        """The barrier of the next copy to be filled."""
        return self._at(self.filling.slot, 0)

    def empty_place(self, slot: Int) -> IrValue:
        """The barrier at which that copy's readers arrive."""
        return self._at(slot, self.stages)

    def said_full(self, name: str) -> None:
        """This thread has seen to it that the only copy is full; `name` is the barrier's, so that its address takes no
        register of a producer, which has few."""
        self.em.effect(f"mbarrier.arrive.shared::cta.b64 _, [{name}];")

    def relay(self) -> None:
        """This thread, of the second block, tells the first that the next copy is full here."""
        em = self.em
        slot = self.wait_full()
        there = self._barriers_of("first block", lambda: em.i64(0))
        place = em.here().add(there, em.i64(em.mul(slot, BYTES)))
        em.effect("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [$0];", "r", [place])
        self.reading.advance()

    # ---------------------------------------------------------------------------------- the reading side

    def wait_full(self) -> Int:
        """Wait until the next copy is filled; gives it."""
        slot = self.reading.slot
        self._wait(self._at(slot, 0), self.reading.parity, self.scope if self.pair else "cta")
        return slot

    def others(self, count: int, before: bool) -> None:
        """Go past what the other sides of the block read: those `before` this one, of `count` copies each, or those
        after it."""
        em = self.em
        for other in range(em.sides):
            past = em.here().icmp_signed(">" if before else "<", em.i64(em.side()), em.i64(other))
            if other != (em.sides - 1 if before else 0):
                em.when(past, lambda: self.reading.skip(count))

    def release(self, slot: Int, loose: Sequence[IrValue] | None = None) -> None:
        """This warp has read the copy. `loose` are f32 cells with results of loads that may still be on their way. An
        arrival, at another block's barrier above all, does not wait for loads that were asked for before (seen on an
        H100: beside products that take all of shared memory's time they came after the copy was filled again). A fence
        does."""
        em = self.em
        if loose is not None:
            em.between("fence.acq_rel.cta;", loose)
        if self.cluster == 1 or self.pair == "relayed":
            self._by_warp(self._at(slot, self.stages))
            return
        em.here()
        em.nvvm("bar.warp.sync", args=[em.i64(-1)])
        lane = em.lane()
        told = 1 if self.pair else self.cluster
        em.when(em.here().icmp_signed("<", lane, em.i64(told)), lambda: self._tell_peer(slot))

    def released(self) -> None:
        """This thread, the copy's only reader, has read it."""
        self.freed(self.reading.slot)
        self.reading.advance()

    def freed(self, slot: Int) -> None:
        """This thread, one of those that the copy waits for, knows that it may be filled again."""
        self._arrive(self._at(slot, self.stages))

    def _by_warp(self, place: IrValue) -> None:
        """One arrival for the warp, when all its threads have come here."""
        em = self.em
        em.here()
        em.nvvm("bar.warp.sync", args=[em.i64(-1)])
        lane = em.lane()
        em.when(em.here().icmp_signed("==", lane, em.i64(0)), lambda: self._arrive(place))

    def _arrive(self, place: IrValue) -> None:
        self.em.effect("mbarrier.arrive.shared::cta.b64 _, [$0];", "r", [place])

    def _tell_peer(self, slot: Int) -> None:
        """Arrive at that copy's barrier in the block that has this lane's number in the cluster."""
        em = self.em
        lane = em.lane()
        there = self._barriers_of("peer", lambda: em.builder.urem(lane, em.i64(self.cluster)))
        em.here()
        offset = em.add(em.mul(slot, BYTES), self.stages * BYTES)
        at = f"$0+{offset}" if isinstance(offset, int) else "$0"
        value = there if isinstance(offset, int) else em.here().add(there, em.i64(offset))
        em.effect(f"mbarrier.arrive.shared::cluster.b64 _, [{at}];", "r", [value])

    def _barriers_of(self, whose: str, number: Callable[[], IrValue]) -> IrValue:
        """Where this ring's barriers are in the block of that number in the cluster."""
        em, root = self.em, self.barriers

        def make() -> IrValue:
            block = number()
            text = "mapa.shared::cluster.u32 $0, $1, $2;"
            return em.asm(text, I32, "=r,r,r", [em.builder.ptrtoint(root, I32), block])

        found: IrValue = em.once(0, (f"barriers of {whose}", id(root)), make)
        return found

    # ------------------------------------------------------------------------------------------ barriers

    def _at(self, slot: Int, first: int) -> IrValue:
        em = self.em
        root = uniform_address(em, self.barriers) if self.uniform else self.barriers
        b = em.here()
        offset = em.add(em.mul(slot, BYTES), first * BYTES)
        return b.gep(root, [em.i64(offset)], source_etype=I8)

    def _wait(self, place: IrValue, parity: IrValue, scope: str = "cta") -> None:
        wait_phase(self.em, place, parity, scope)


def wait_phase(em: GpuEmitter, place: IrValue, parity: IrValue, scope: str = "cta") -> None:
    """Until the phase of that parity of an mbarrier is over."""
    b = em.here()
    waiting = em.function.append_basic_block("wait")
    after = em.function.append_basic_block("arrived")
    b.branch(waiting)
    em.continue_in(waiting)
    em.here()
    done = em.nvvm(f"mbarrier.try.wait.parity.scope.{scope}.space.cta", I1, [place, parity])
    em.here().cbranch(done, after, waiting)
    em.continue_in(after)


def uniform_address(em: GpuEmitter, root: IrValue) -> IrValue:
    """A place in shared memory by an address that stays in a uniform register. (The assembler else makes the window's
    address anew wherever it is used, which in a short loop costs more than the loop.)"""

    def make() -> IrValue:
        b = em.builder
        args = [em.i64(-1), b.ptrtoint(root, I32), em.i64(0), em.i64(31)]
        return em.builder.inttoptr(em.nvvm("shfl.sync.idx.i32", I32, args), SHARED)

    return em.once(0, ("uniform address", id(root)), make)


def elected(em: GpuEmitter) -> IrValue:
    """Is this the one thread of its (converged) warp that was chosen? The assembler knows what that means: a tensor
    copy under it is one instruction, without the loop over lanes that another condition would cost."""
    em.here()
    pair = em.nvvm("elect.sync", ir.LiteralStructType([I32, I1]), [em.i64(-1)])
    return em.builder.extract_value(pair, 1)
