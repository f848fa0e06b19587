"""Where instructions go: a stack of frames, one per nested loop, and loops with values carried around them.

The one idea: a value is emitted in the frame of the outermost loop that it varies with, and remembered there.
That is loop-invariant code motion and common-subexpression elimination by construction, so the code that
reaches LLVM is already hoisted and each load of a register tile is there once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llvmlite import ir

from tcomp.codegen.llvm.types import I64, IrValue, Type, mangle

Int: TypeAlias = int | IrValue
"""An integer known now, or an i64."""


@dataclass
class Frame:
    """One level: the block it appends to (before the branch into a nested loop) and what it has computed."""

    block: ir.Block
    memo: dict[Hashable, Any] = field(default_factory=dict)


class Emitter:
    """An IR builder over frames. `word` is the type of integers: i64 here, another in a subclass."""

    word: Type = I64

    def __init__(self, function: ir.Function) -> None:
        self.function = function
        self.module: ir.Module = function.module
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.frames = [Frame(self.builder.block)]

    # ------------------------------------------------------------------------------------------ frames

    @property
    def depth(self) -> int:
        """The level of the innermost frame."""
        return len(self.frames) - 1

    def at(self, level: int) -> ir.IRBuilder:
        """The builder, placed at the end of that level's code."""
        block = self.frames[level].block
        if block.is_terminated:
            self.builder.position_before(block.terminator)
        else:
            self.builder.position_at_end(block)
        return self.builder

    def here(self) -> ir.IRBuilder:
        return self.at(self.depth)

    @contextmanager
    def frame(self) -> Iterator[Frame]:
        """A nested level in the current block; code after it follows the nested level's last block."""
        frame = Frame(self.frames[-1].block)
        self.frames.append(frame)
        yield frame
        self.frames.pop()
        self.frames[-1].block = frame.block

    def continue_in(self, block: ir.Block) -> None:
        self.frames[-1].block = block

    # ------------------------------------------------------------------------------------- control flow

    def loop(
        self,
        start: Int,
        stop: Int,
        step: Int,
        carried: Sequence[IrValue],
        body: Callable[[Int, list[IrValue]], Sequence[IrValue]],
        nonempty: bool = False,
    ) -> list[IrValue]:
        """`for base in range(start, stop, step)` with `carried` values; gives them after the loop.

        The body runs in its own frame. A loop that runs once is no loop: base is then the number `start`.
        """
        if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
            trips = max(0, -(-(stop - start) // step))
            if trips == 0:
                return list(carried)
            if trips == 1:
                with self.frame():
                    return list(body(start, list(carried)))
            nonempty = True
        b = self.here()
        before = b.block
        first, last = self.i64(start), self.i64(stop)
        inside = self.function.append_basic_block("loop")
        after = self.function.append_basic_block("after")
        if nonempty:
            b.branch(inside)
        else:
            b.cbranch(b.icmp_signed("<", first, last), inside, after)
        outer = self.frames[-1]
        with self.frame():
            self.continue_in(inside)
            b.position_at_end(inside)
            base = b.phi(self.word, "i")
            base.add_incoming(first, before)
            phis = [b.phi(v.type) for v in carried]
            for phi, v in zip(phis, carried, strict=True):
                phi.add_incoming(v, before)
            results = list(body(base, list(phis)))
            b = self.here()
            latch = b.block
            following = b.add(base, self.i64(step), flags=("nsw",))
            again = b.icmp_signed("<", following, last)
            b.cbranch(again, inside, after)
            base.add_incoming(following, latch)
            for phi, v in zip(phis, results, strict=True):
                phi.add_incoming(v, latch)
        outer.block = after
        if nonempty or not carried:
            # In both cases the latch's values dominate `after` or there are none.
            return results
        b.position_at_end(after)
        merged = []
        for v, r in zip(carried, results, strict=True):
            phi = b.phi(v.type)
            phi.add_incoming(v, before)
            phi.add_incoming(r, latch)
            merged.append(phi)
        return merged

    def repeat(self, start: Int, stop: Int, step: Int, body: Callable[[Int], None], nonempty: bool = False) -> None:
        """`for base in range(start, stop, step)` of a body that gives no values."""

        def turn(base: Int, _: Sequence[IrValue]) -> Sequence[IrValue]:
            body(base)
            return []

        self.loop(start, stop, step, [], turn, nonempty)

    def when(self, condition: IrValue, body: Callable[[], None]) -> None:
        """Run `body` (which gives no values) only where a scalar condition holds."""
        b = self.here()
        inside = self.function.append_basic_block("then")
        after = self.function.append_basic_block("endif")
        b.cbranch(condition, inside, after)
        outer = self.frames[-1]
        with self.frame():
            self.continue_in(inside)
            body()
            self.here().branch(after)
        outer.block = after

    # ----------------------------------------------------------------------------------------- values

    def variable(self) -> IrValue:
        """A word of the function's own memory."""
        entry = self.function.entry_basic_block
        b = ir.IRBuilder(entry)
        b.position_at_start(entry)
        return b.alloca(self.word)

    def i64(self, value: Int) -> IrValue:
        return ir.Constant(self.word, value) if isinstance(value, int) else value

    def add(self, a: Int, b: Int) -> Int:
        """a + b where the builder stands; a number when both are."""
        a, b = _number(a), _number(b)
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(a, int) and a == 0:
            return b
        if isinstance(b, int) and b == 0:
            return a
        return self.builder.add(self.i64(a), self.i64(b), flags=("nsw",))

    def mul(self, a: Int, b: Int) -> Int:
        """a * b where the builder stands; a number when both are."""
        a, b = _number(a), _number(b)
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if isinstance(b, int):
            a, b = b, a
        if isinstance(a, int):
            if a == 0:
                return 0
            if a == 1:
                return b
        return self.builder.mul(self.i64(a), self.i64(b), flags=("nsw",))

    def intrinsic(self, name: str, result: Type, args: Sequence[IrValue], suffix: Sequence[Type]) -> IrValue:
        """Call an LLVM intrinsic, its name completed by the types it is overloaded on."""
        full = ".".join([name, *(mangle(t) for t in suffix)])
        function = self.module.globals.get(full)
        if function is None:
            signature = ir.FunctionType(result, [a.type for a in args])
            function = ir.Function(self.module, signature, name=full)
        return self.builder.call(function, list(args))

    def loaded(self, value: ir.Constant) -> IrValue:
        """A constant that takes no register around a loop: it is loaded where the builder stands, each time."""
        name = f"constant {value.type} {value.constant}"
        found = self.module.globals.get(name)
        if found is None:
            found = ir.GlobalVariable(self.module, value.type, name)
            found.linkage, found.global_constant, found.initializer = "internal", True, value
        return _VolatileLoad.at(self.builder, found, value.type)


class _VolatileLoad(ir.LoadInstr):  # type: ignore[misc]
    """A load that LLVM leaves where it is; llvmlite has none."""

    @staticmethod
    def at(builder: ir.IRBuilder, pointer: IrValue, t: Type) -> IrValue:
        load = _VolatileLoad(builder.block, pointer, typ=t)
        builder._insert(load)
        return load

    def descr(self, buf: list[str]) -> None:
        plain: list[str] = []
        super().descr(plain)
        buf.append("".join(plain).replace("load", "load volatile", 1))


def _number(value: Int) -> Int:
    return int(value.constant) if isinstance(value, ir.Constant) else value
