"""Blocks that add to one place of memory in a fixed order: each waits for its turn, and passes it on.

    the thread that issues the copy: wait until the word of the place is the number of the block before; fence
                                     when the tile is filled: copy (the first stores, the others add)
    before the tile is filled again, and at the block's end: wait until the copy is done; fence; word = own number

The words are zero when the kernel starts. A copy is done a turn of the loop after its issue, so waiting for it costs
nothing; the block that comes next is that much behind. Where the parts of a sum leave panel by panel there is a word
for each panel, and two are on their way: a block passes the one before on when it has issued the next, for which it may
have waited. (Those that it waits for do not wait for it, unless it comes to a tile with a second part: so the last
panel of one is passed on before the first of the next is waited for.) Copies are made by the async proxy: fences order
them with the word's accesses, and those are for global memory alone: without `.global` each would be a fence for all
blocks too, three in a turn for the one of the word's release. PTX ISA, sections 8 (release and acquire) and 9.7.13.4
(fence.proxy).

The wait has no bound. It ends because the block waited for has a lower number, and so has started: GPUs start blocks
in the order of their numbers, and a block that has started stays until it ends. (Persistent blocks with tile after tile
also wait for those of higher numbers: all of them must have room at once, `LaunchShape.resident`, and the runtime
refuses a GPU that has less.) CUDA does not promise the order. On a
GPU with another one the kernel could hang, never add wrongly. (Numbers drawn from a counter as blocks start would need
no such order, for an atomic operation's way to memory and back before each block's first copy.)
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I32, IrValue
from tcomp.codegen.nvptx.copies.tensor_copy import await_deliveries
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import Expr
from tcomp.ir.tile import Turns

WAIT = (
    "{ .reg .pred p; .reg .b32 v; AGAIN: ld.acquire.gpu.global.b32 v, [$0]; setp.ne.s32 p, v, $1; @p bra AGAIN; "
    "fence.proxy.async.global; }"
)
SEEN = "{ .reg .pred p; .reg .b32 v; AGAIN: ld.acquire.gpu.global.b32 v, [$0]; setp.ne.s32 p, v, $1; @p bra AGAIN; }"
NOTHING = ir.Constant(I32, -1)
"""in place of a word's number: there is no turn to pass on"""
PASS = "fence.proxy.async.global; st.release.gpu.global.b32 [$0], $1;"
SAID = "st.release.gpu.global.b32 [$0], $1;"
"""and `SEEN`: the same without the copy engine, where threads write"""


class Words:
    """The words in `flags`."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, flags: str) -> None:
        self.em, self.scope, self.flags = em, scope, flags

    def _met(self, turns: Turns) -> IrValue:
        """Is there a block before?"""
        found: IrValue = ir.Constant(ir.IntType(1), 1)
        for low, value, stop in turns.met:
            v, lowest, last = self._value(value), self._value(low), self._value(stop)
            b = self.em.here()
            found = b.and_(found, b.and_(b.icmp_signed(">=", v, lowest), b.icmp_signed("<", v, last)))
        return found

    def _place(self, turns: Turns, group: Int) -> IrValue:
        """The number of the word."""
        em, at = self.em, 0
        for x, size in zip(turns.flag.subscripts, self.scope.buffers[self.flags].shape, strict=True):
            at = em.add(em.mul(at, size), self._value(x))
        return em.i64(em.add(at, group))

    def _flag(self, word: IrValue) -> IrValue:
        return self.em.here().gep(self.scope.roots[self.flags], [word], source_etype=I32)

    def _value(self, e: Expr) -> IrValue:
        self.em.here()
        return self.em.i64(integer_value(self.em, e, self.scope))


class TurnTaking(Words):
    """The turns of one block, for one place at a time, whose word is in `flags`. All of it is for the one thread that
    issues the copies."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, flags: str) -> None:
        super().__init__(em, scope, flags)
        b = em.builder
        b.position_at_start(em.function.entry_basic_block)  # (where LLVM makes registers of them)
        self._word, self._number = b.alloca(I32, name="turn.word"), b.alloca(I32, name="turn.number")
        b.store(NOTHING, self._word)
        b.store(ir.Constant(I32, 0), self._number)

    def wait(self, turns: Turns) -> None:
        """Wait for the block before."""
        at = self._place(turns, 0)
        self._begin(at, turns)
        self.em.when(self._met(turns), lambda: self._wait(at, turns))

    def panel(self, turns: Turns, issue: Callable[[bool], None], copies: int, first: bool, group: Int = 0) -> None:
        """Issue the copy of a panel in its turn: `issue(whether it stores)`. `copies` are issued in a turn of the panel
        loop, of all its results; is it the `first` of its tile? `group` is the number of the warps whose rows go."""
        if first:
            await_deliveries(self.em, True)
            self.pass_on()
        met = self._met(turns)
        at = self._place(turns, group)
        self.em.when(met, lambda: self._wait(at, turns))
        if turns.stores:
            self.em.either(met, lambda: issue(False), lambda: issue(True))
        else:
            issue(False)
        if not first:
            await_deliveries(self.em, True, copies)
            self.pass_on()
        self._begin(at, turns)

    def _begin(self, at: IrValue, turns: Turns) -> None:
        """From now on this turn is what is to be passed on."""
        number = self._value(turns.number)
        b = self.em.here()
        b.store(at, self._word)
        b.store(number, self._number)

    def _wait(self, at: IrValue, turns: Turns) -> None:
        before = self._value(turns.before)
        self.em.effect(WAIT, "lr", [self._flag(at), before])

    def issue(self, turns: Turns, add: Callable[[], None], store: Callable[[], None]) -> None:
        """Issue the copy, by whether there was a block before."""
        self.em.either(self._met(turns), add, store)

    def pass_on(self) -> None:
        """The copies are done: let the next block have its turn."""
        em = self.em
        b = em.here()
        word, number = b.load(self._word, typ=I32), b.load(self._number, typ=I32)

        def tell() -> None:
            flag = self._flag(word)
            em.effect(PASS, "lr", [flag, number])
            em.here().store(NOTHING, self._word)

        em.when(b.icmp_signed(">=", word, ir.Constant(I32, 0)), tell)


class WarpTurns(Words):
    """The turns of warps that write results themselves: one only follows that of its number in another block."""

    def write(self, turns: Turns, write: Callable[[bool], None]) -> None:
        """Write in turn: `write(whether it adds)`."""
        em = self.em
        warp, lane = em.warp(), em.lane()
        met, word = self._met(turns), self._flag(self._place(turns, warp))

        def say(text: str, number: Expr) -> None:
            value = self._value(number)
            em.effect(text, "lr", [word, value])

        em.when(met, lambda: say(SEEN, turns.before))
        if turns.stores:
            em.either(met, lambda: write(True), lambda: write(False))
        else:
            write(True)
        em.effect("bar.warp.sync -1;")
        first = em.here().icmp_unsigned("==", lane, ir.Constant(I32, 0))
        em.when(first, lambda: say(SAID, turns.number))
