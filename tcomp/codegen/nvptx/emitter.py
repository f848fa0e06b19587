"""Where a thread's instructions go: the frames of `codegen/llvm` with 32-bit integers, and what only PTX has.

Frame 0 is the kernel's entry: thread numbers and every offset that depends only on the thread live there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Emitter, Frame, Int
from tcomp.codegen.llvm.text import text_of
from tcomp.codegen.llvm.types import F32, I32, VOID, IrValue, Type
from tcomp.dsl.ast import DType
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Spread

T = TypeVar("T")

GLOBAL = ir.PointerType(addrspace=1)
SHARED = ir.PointerType(addrspace=3)

LOOP_MARK = "tcomp.loop"
"""Stands for the self-referring node that names a loop, which llvmlite cannot build (`finished_text` puts it in)."""
SREG = "llvm.nvvm.read.ptx.sreg."
INTRINSICS = frozenset(
    {
        "tid.x", "ctaid.x", "barrier.cta.sync.aligned.all", "cp.async.commit.group", "cp.async.wait.group",
        "bar.warp.sync", "elect.sync", "mbarrier.init.shared", "mbarrier.try.wait.parity.scope.cta.space.cta",
        "mbarrier.try.wait.parity.scope.cluster.space.cta", "barrier.cluster.arrive", "barrier.cluster.wait",
        "cluster.ctarank", "fence.mbarrier_init.release.cluster", "barrier.cta.sync.aligned.count", "shfl.sync.idx.i32",
        "setmaxnreg.inc.sync.aligned.u32", "setmaxnreg.dec.sync.aligned.u32", "vote.ballot.sync",
    }
)  # fmt: skip
"""NVVM intrinsics in use. LLVM ends the process at a name it does not know, so only these are let through."""


FIRST_GROUP_BARRIER = 2
"""barriers before it are for all threads, and for all but a producer's"""
FIRST_SIDE_BARRIER = 8
"""one for each side of a block"""
FIRST_TURN_BARRIER = 10
"""one for each warpgroup, where they take turns"""
WARPGROUP = 4
"""warps"""


class GpuEmitter(Emitter):
    """One kernel entry being written."""

    word: Type = I32
    apart = False
    again = False
    """Are thread numbers read once more (`afresh`)?"""

    def __init__(self, function: ir.Function, threads: ThreadShape, sides: int = 1) -> None:
        super().__init__(function)
        self.threads, self.sides = threads, sides
        self.async_reads = False
        self.calls = True
        self.stored: dict[IrValue, tuple[DType, IrValue, int]] = {}
        """values of 8-bit floats read from memory: their type, and of which integer they are which byte"""
        self.rounded: dict[tuple[IrValue, DType], IrValue] = {}
        """values rounded to such a type: what they were before"""

    # ------------------------------------------------------------------------------------- instructions

    def nvvm(self, name: str, result: Type = VOID, args: Sequence[IrValue] = ()) -> IrValue:
        """Call an NVVM intrinsic of `INTRINSICS` where the builder stands."""
        assert name in INTRINSICS, name
        full = (SREG if name.endswith((".x", ".ctarank")) else "llvm.nvvm.") + name
        function = self.module.globals.get(full)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [a.type for a in args]), name=full)
        return self.builder.call(function, list(args))

    def asm(
        self, text: str, result: Type, constraints: str, args: Sequence[IrValue] = (), effect: bool = False
    ) -> IrValue:
        """Inline PTX where the builder stands; without `effect` it is a pure function of its arguments."""
        signature = ir.FunctionType(result, [a.type for a in args])
        return self.builder.asm(signature, text, constraints, list(args), effect)

    def effect(self, text: str, registers: str = "", args: Sequence[IrValue] = ()) -> None:
        """Inline PTX for what it does, not for a value, at the end of the innermost frame: LLVM keeps it in order with
        accesses to memory. `registers` are the kinds of the arguments', a letter each."""
        self.here()
        self.asm(text, VOID, ",".join([*registers, "~{memory}"]), args, effect=True)

    def opaque(self, value: Int) -> Int:
        """The value, of which LLVM does not see where it comes from."""
        return value if isinstance(value, int) else self.asm("mov.b32 $0, $1;", I32, "=r,r", [value])

    def barrier(self) -> None:
        """All threads that compute (on one side) wait for each other; memory before it is seen after it, with
        `async_reads` also by wgmma. (Where `apart`, others of the block are a producer's, which does not take part.)"""
        self.here()
        if self.async_reads:
            self.effect("fence.proxy.async.shared::cta;")
        if self.apart:
            number = self.i64(1) if self.sides == 1 else self._side_barrier()
            self.here()
            self.nvvm("barrier.cta.sync.aligned.count", args=[number, self.i64(self.threads.threads)])
        else:
            self.nvvm("barrier.cta.sync.aligned.all", args=[self.i64(0)])

    def computing_barrier(self) -> None:
        """All threads that compute, of all sides, wait for each other."""
        if self.sides == 1:
            self.barrier()
            return
        self.here()
        count = self.threads.threads * self.sides
        self.nvvm("barrier.cta.sync.aligned.count", args=[self.i64(1), self.i64(count)])

    def group_barrier(self, groups: int) -> None:
        """The threads of each of so many groups of warps (on each side) wait for each other."""
        if groups == 1:
            self.barrier()
            return
        group, side = self.group(groups), self.side()
        self.here()
        number = self.i64(self.add(self.add(group, self.mul(side, groups)), FIRST_GROUP_BARRIER))
        self.nvvm("barrier.cta.sync.aligned.count", args=[number, self.i64(self.threads.threads // groups)])

    def between(self, text: str, cells: Sequence[IrValue]) -> None:
        """An instruction before which these f32 cells are written, and behind which they are read."""
        with self.frame():
            b = self.here()
            old = [b.load(c, typ=F32) for c in cells]
            constraints = ["=f"] * len(old) + [str(i) for i in range(len(old))] + ["~{memory}"]
            result = ir.LiteralStructType([F32] * len(old)) if old else VOID
            found = self.asm(text, result, ",".join(constraints), old, effect=True)
            found.attributes.add("convergent")
            for i, cell in enumerate(cells):
                b.store(b.extract_value(found, i), cell)

    def turn_barrier(self, what: str) -> None:
        """Warpgroups (or a block's sides) have turns, one after the other, over and over: "sync" waits for the own one,
        "arrive" passes it on. The last group passes the first turn on with "start"."""
        sides = self.sides > 1
        groups = self.sides if sides else self.threads.warps // WARPGROUP
        group, last = self.i64(self.side()) if sides else self.group(groups), self.i64(groups - 1)
        if what == "start":
            self.when(self.here().icmp_signed("==", group, last), lambda: self.turn_barrier("arrive"))
            return

        def number() -> IrValue:
            b = self.builder
            after = b.select(b.icmp_signed("==", group, last), self.i64(0), b.add(group, self.i64(1)))
            return b.add(group if what == "sync" else after, self.i64(FIRST_TURN_BARRIER))

        threads = 2 * (self.threads.threads if sides else 32 * WARPGROUP)
        at = self.once(0, ("turn barrier", what), number)
        self.here()
        text = f"barrier.cta.{what}.aligned $0, $1;"
        self.effect(text, "rn", [at, self.i64(threads)])

    def group(self, groups: int) -> IrValue:
        """The number of the thread's group, of so many equal ones."""
        warp = self.uniform_warp()
        each = self.i64(self.threads.warps // groups)
        return self.once(0, ("group", groups), lambda: self.builder.udiv(warp, each))

    # ----------------------------------------------------------------------------------- control flow

    def loop(
        self,
        start: Int,
        stop: Int,
        step: Int,
        carried: Sequence[IrValue],
        body: Callable[[Int, list[IrValue]], Sequence[IrValue]],
        nonempty: bool = False,
    ) -> list[IrValue]:
        """The shared loop, marked as unrolled enough: neither LLVM nor the assembler shall do it again."""
        results = super().loop(start, stop, step, carried, body, nonempty)
        after = self.frames[-1].block
        for block in reversed(self.function.blocks):
            end = block.terminator
            if isinstance(end, ir.ConditionalBranch) and end.operands[2] is after and "llvm.loop" not in end.metadata:
                end.set_metadata("llvm.loop", self.module.add_metadata([LOOP_MARK]))
                break
        return results

    def either(self, condition: IrValue, yes: Callable[[], None], no: Callable[[], None]) -> None:
        """Run one of two bodies (which give no values) by a scalar condition."""
        b = self.here()
        blocks = [self.function.append_basic_block(n) for n in ("yes", "no")]
        after = self.function.append_basic_block("joined")
        b.cbranch(condition, *blocks)
        outer = self.frames[-1]
        before = outer.block
        for block, body in zip(blocks, (yes, no), strict=True):
            outer.block = before
            with self.frame():
                self.continue_in(block)
                body()
                self.here().branch(after)
        outer.block = after

    def once(self, level: int, key: Hashable, make: Callable[[], T]) -> T:
        """A value made once in a frame; `make` runs with the builder at its end."""
        memo = self.frames[level].memo
        if key not in memo:
            self.at(level)
            memo[key] = make()
        found: T = memo[key]
        return found

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """Code that computes all it needs itself, thread numbers and addresses: for what comes long after values of
        the same kind, which would have to be kept in registers for it."""
        outer = self.frames
        here = Frame(outer[-1].block)
        self.frames, self.again = [here] * len(outer), True
        yield
        self.frames, self.again = outer, False
        outer[-1].block = here.block

    # ------------------------------------------------------------------------------------ thread numbers

    def thread(self) -> IrValue:
        """The thread's number in its block, or on its side of it."""
        if self.sides == 1:
            return self._block_thread()
        thread = self._block_thread()
        return self.once(0, "side's thread", lambda: self.builder.urem(thread, self.i64(self.threads.threads)))

    def _block_thread(self) -> IrValue:
        def make() -> IrValue:
            if self.again:
                return self.asm("mov.u32 $0, %tid.x;", I32, "=r", [], effect=True)
            return self.nvvm("tid.x", I32)

        return self.once(0, "thread", make)

    def warp(self) -> IrValue:
        """The warp's number in its block, or on its side of it."""
        thread = self.thread()
        return self.once(0, "warp", lambda: self.builder.lshr(thread, self.i64(5)))

    def block_warp(self) -> IrValue:
        """The warp's number in its block, in a form that the assembler sees is the same for all of its lanes."""
        thread = self._block_thread()

        def make() -> IrValue:
            args = [self.i64(-1), self.builder.lshr(thread, self.i64(5)), self.i64(0), self.i64(31)]
            return self.nvvm("shfl.sync.idx.i32", I32, args)

        return self.uniform_warp() if self.sides == 1 else self.once(0, "block's warp", make)

    def side(self) -> Int:
        """The number of the thread's side of its block; a producer's threads have the first's."""
        if self.sides == 1:
            return 0
        warp = self.block_warp()

        def make() -> IrValue:
            b = self.builder
            return b.urem(b.udiv(warp, self.i64(self.threads.warps)), self.i64(self.sides))

        return self.once(0, "side", make)

    def _side_barrier(self) -> IrValue:
        side = self.i64(self.side())
        return self.once(0, "side's barrier", lambda: self.builder.add(side, self.i64(FIRST_SIDE_BARRIER)))

    def cluster_barrier(self) -> None:
        """All threads of the cluster's blocks wait for each other; memory before it is seen after it."""
        self.here()
        self.nvvm("barrier.cluster.arrive")
        self.nvvm("barrier.cluster.wait")

    def cluster_rank(self) -> IrValue:
        """The block's number in its cluster."""
        return self.once(0, "cluster rank", lambda: self.nvvm("cluster.ctarank", I32))

    def uniform_warp(self) -> IrValue:
        """The warp's number, in a form that the assembler sees is the same for all of its lanes."""
        warp = self.warp()
        args = [self.i64(-1), warp, self.i64(0), self.i64(31)]
        return self.once(0, "uniform warp", lambda: self.nvvm("shfl.sync.idx.i32", I32, args))

    def lane(self) -> IrValue:
        """The thread's number in its warp."""
        thread = self.thread()
        return self.once(0, "lane", lambda: self.builder.and_(thread, self.i64(31)))

    def coordinate(self, dimension: str) -> Int:
        """The thread's place along "lane.x", "lane.y", "warp.x" or "warp.y"."""
        shape = self.threads
        kind, which = dimension.split(".")
        own, low = (shape.lanes_x, shape.lanes_y) if kind == "lane" else (shape.warps_x, shape.warps_y)
        size = own if which == "x" else low
        if size == 1:
            return 0
        thread = self.thread()

        def make() -> IrValue:
            b = self.builder
            step = (1 if kind == "lane" else 32) * (own if which == "y" else 1)
            value = thread if step == 1 else b.udiv(thread, self.i64(step))
            top = step * size == (32 if kind == "lane" else shape.threads) and kind == "warp"
            return value if top else b.urem(value, self.i64(size))

        return self.once(0, dimension, make)

    def thread_offset(self, spread: Spread) -> Int:
        """What the thread's place adds to a value's offset along an axis so spread (frame 0)."""

        def make() -> Int:
            total: Int = 0
            for dimension, size in ((f"warp.{spread.warp}", spread.warp_tile), (f"lane.{spread.lane}", spread.grain)):
                if not dimension.endswith("."):
                    place = self.coordinate(dimension)
                    self.at(0)
                    total = self.add(total, self.mul(place, size))
            return total

        return self.once(0, ("thread offset", spread), make)

    def first_along(self, dimensions: frozenset[str]) -> IrValue | None:
        """Is the thread the first along these dimensions? None when they have one thread only."""

        def make() -> IrValue | None:
            condition: IrValue | None = None
            for d in sorted(dimensions):
                place = self.coordinate(d)
                if isinstance(place, int):
                    continue
                b = self.at(0)
                here = b.icmp_signed("==", place, self.i64(0))
                condition = here if condition is None else b.and_(condition, here)
            return condition

        return self.once(0, ("first", dimensions), make)


def finished_text(module: ir.Module) -> str:
    """The module as text, with the loops' own nodes in place of their marks."""
    options = module.add_metadata(["llvm.loop.unroll.disable"])
    return re.sub(
        rf'^!(\d+) = !{{ !"{LOOP_MARK}" }}$',
        lambda m: f"!{m[1]} = distinct !{{ !{m[1]}, {options.get_reference()} }}",
        text_of(module),
        flags=re.M,
    )


DIMENSIONS = ("lane.x", "lane.y", "warp.x", "warp.y")


def dimension_size(shape: ThreadShape, dimension: str) -> int:
    """How many lanes or warps a block has along `lane.x` or the like."""
    return {
        "lane.x": shape.lanes_x,
        "lane.y": shape.lanes_y,
        "warp.x": shape.warps_x,
        "warp.y": shape.warps_y,
    }[dimension]
