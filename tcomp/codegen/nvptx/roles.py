"""Which warps the statements being written are for: all of them, the producer of tensor copies, or their consumers.

With a `Producer` a phase is written twice. The producer's first warp elects one thread, which issues every copy; the
other warps do all the rest, and get the registers that the producer gives up (PTX ISA, setmaxnreg). Where results are
added to memory turn by turn, one thread of the producer's second warp, the deliverer, takes them away: what it has to
wait for, the consumers do not. Where sums are in tensor memory, one thread of its third warp, the multiplier, issues
their products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from tcomp.codegen.llvm.types import IrValue
from tcomp.codegen.nvptx.copies.ring import elected
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.ir.blocks import Producer

PRODUCERS = ("producer", "deliverer", "multiplier")
"""what the producer's warps are, one thread of each"""


class Roles:
    """`now` says for whom statements are being written: "all", "producer", "deliverer", "multiplier", "relay" (a pair's
    second block has one in place of a multiplier) or "consumer"."""

    now = "all"

    def __init__(self, em: GpuEmitter, registers: int) -> None:
        """`registers` of a computing thread once the producer has given up its own; 0 where none move."""
        self.em, self.registers = em, registers

    @property
    def computing(self) -> bool:
        """Are statements written for threads that compute?"""
        return self.now in ("all", "consumer")

    def leader(self, body: Callable[[], None]) -> None:
        """Let one thread do it: of the producer, or of the block's first warp."""
        em = self.em
        if not self.computing:
            body()
            return

        def elect() -> None:
            em.when(elected(em), body)

        if em.threads.warps == 1:
            elect()
        elif em.sides > 1 and self.now == "all":
            em.when(em.here().icmp_signed("==", em.block_warp(), em.i64(0)), elect)
        else:
            em.when(em.here().icmp_signed("==", em.warp(), em.i64(0)), elect)

    def group_leader(self, body: Callable[[], None]) -> None:
        """Let one thread of each warpgroup do it. (By a number that is surely the same for all of a warp: the assembler
        else takes the warps of the loop around for divided, and keeps addresses in ordinary registers.)"""
        em = self.em
        warp = em.uniform_warp()
        inside = em.here().and_(warp, em.i64(3))
        em.when(em.here().icmp_signed("==", inside, em.i64(0)), lambda: em.when(elected(em), body))

    def leaders(self, groups: int, body: Callable[[], None]) -> None:
        """Let one thread of each of so many groups of warps do it: of each warpgroup, or of all warps."""
        if groups > 1:
            self.group_leader(body)
        else:
            self.leader(body)

    def apart(
        self,
        producer: Producer,
        copies: Callable[[], None],
        rest: Callable[[], None],
        others: Mapping[str, Callable[[], None]],
    ) -> None:
        """`copies` written for one thread of the producer, `rest` for all warps beside it, and what `others` of its
        warps do ("deliverer", "multiplier") for one thread each."""
        em = self.em
        computing = em.threads.warps * em.sides
        first = em.block_warp()
        b = em.here()
        mine, registers = b.icmp_signed(">=", first, em.i64(computing)), self.registers

        def produce() -> None:
            self._take(registers, producer.registers)
            for number, now in enumerate(PRODUCERS):
                body = copies if now == "producer" else others.get(now)
                if body is not None:
                    self.now = now
                    em.when(self._is(first, computing, number), partial(self._elect, body))

        def consume() -> None:
            self._take(registers, registers)
            self.now, em.apart = "consumer", True
            rest()
            self.now, em.apart = "all", False

        em.either(mine, produce, consume)

    def _is(self, warp: IrValue, computing: int, number: int) -> IrValue:
        """Is it that warp of the producer's? (Of tests of one value alone the assembler may make a table of jumps,
        which the static model does not follow.)"""
        em = self.em
        if not number:
            return em.here().icmp_signed("==", warp, em.i64(computing))
        b = em.here()
        own = b.and_(b.sub(warp, em.i64(computing)), em.i64(3))
        return b.icmp_signed("==", own, em.i64(number))

    def _elect(self, body: Callable[[], None]) -> None:
        self.em.when(elected(self.em), body)

    def _take(self, moved: int, registers: int) -> None:
        if moved:
            self.em.here()
            direction = "inc" if registers == moved else "dec"
            self.em.nvvm(f"setmaxnreg.{direction}.sync.aligned.u32", args=[self.em.i64(registers)])
