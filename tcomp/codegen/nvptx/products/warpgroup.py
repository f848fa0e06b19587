"""A contraction by wgmma: one group of asynchronous instructions over shared tiles.

    wgmma.fence                     accumulators (and A in registers) are as other instructions left them
    for each step of k, each 64 rows of the warpgroup, each piece of columns: wgmma.mma_async
    wgmma.commit_group

It is one piece of inline PTX whose accumulators go in and come out in the same registers; the wait is another, where
`Groups` puts it. Where the statement is all that a pipe loop does with its tiles, it carries its own wait, for the
group of the turn before, so that the tensor cores find the next one waiting; the last is awaited after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import affine_form
from tcomp.codegen.llvm.types import F32, I32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.products.descriptor import ADDRESS, Descriptors, descriptors
from tcomp.codegen.nvptx.products.fragments import fragment_element, packed_rows, subscript_start
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import Num
from tcomp.instructions.matching import Match
from tcomp.ir.tile import Axis, Compute

Hold = Callable[[Callable[[], None]], bool]
"""Asks the pipe loop around to keep a turn's tiles for one turn more, and to call this after it; False if it cannot."""
ROWS = 64
"""of one instruction"""


def wait_groups(em: GpuEmitter, pending: int | None, slots: Sequence[IrValue]) -> None:
    """Wait until at most `pending` groups run (None: that has been done); whoever reads these accumulators reads them
    after that."""
    text = "" if pending is None else f"wgmma.wait_group.sync.aligned {pending};"
    em.between(text, slots)


class WarpgroupGenerator:
    """Writes one contraction at the emitter's current place."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, node: Compute, match: Match, hold: Hold | None = None) -> None:
        self.em, self.scope, self.node, self.match = em, scope, node, match
        spread = match.m.spread
        assert spread is not None
        if em.threads.warps_x != 1:
            raise Unsupported("warps along x beside warpgroups", node.span)
        self.groups = spread.warps // 4
        self.turns = spread.warp_turns(match.m.block)
        self.present = tuple(spread.present(match.m.block, t) // 4 for t in range(self.turns))
        """warpgroups that have rows in each turn"""
        pieces = -(-match.n.block // match.instruction.n[-1])
        self.columns = match.n.block // pieces
        self.pieces = range(0, match.n.block, self.columns)
        self.hold = hold
        self.steps = range(0, _depth(match.k, match.instruction.k), match.instruction.k)
        self.left = None if match.a.in_registers else descriptors(match.a)
        self.right = descriptors(match.b)
        self.first_row = 0 if match.a.in_registers else self._first_row()

    def generate(self, beside: Callable[[], None] | None = None) -> None:
        """The contraction from its issue to its wait, or to that of the turn before; what `beside` writes stands
        between them."""
        slots = self.slots()
        ahead = self.node.accumulate and self.left is not None and self.hold is not None
        pending = int(ahead and self.hold is not None and self.hold(lambda: wait_groups(self.em, 0, slots)))
        if beside is None:
            self._write(slots, self.inputs(), f" wgmma.wait_group.sync.aligned {pending};")
            return
        self._write(slots, self.inputs(), "")
        beside()
        wait_groups(self.em, pending, slots)

    def issue(self, inputs: list[IrValue]) -> None:
        """Only start it, on operands that `inputs` gave."""
        self._write(self.slots(), inputs, "")

    def inputs(self) -> list[IrValue]:
        """The right operand's descriptor, and the left one's (of the first turn, and of the last where fewer
        warpgroups have rows in it) or its registers."""
        with self.em.frame():
            right = self._low(self.right, self.match.n, 0)
            if self.left is None:
                return [right, *self._registers()]
            return [right, *(self._low(self.left, self.match.m, self._group(n)) for n in dict.fromkeys(self.present))]

    def tiles(self) -> frozenset[str]:
        """Shared tiles that it reads in place."""
        return frozenset(o.buffer.name for o in (self.match.a, self.match.b) if not o.in_registers)

    def _write(self, slots: list[IrValue], inputs: list[IrValue], wait: str) -> None:
        em, node = self.em, self.node
        highs = [self._high(d, own) for own, d in enumerate((self.right, self.left)) if d is not None]
        with em.frame():
            b = em.here()
            old = [b.load(s, typ=F32) for s in slots] if node.accumulate else []
            text = self._text(len(slots), len(old), len(inputs), wait)
            inputs = [*inputs, *highs]
            constraints = ["=f"] * len(slots) + [str(i) for i in range(len(old))] + ["r"] * len(inputs) + ["~{memory}"]
            result = ir.LiteralStructType([F32] * len(slots))
            found = em.asm(text, result, ",".join(constraints), [*old, *inputs], effect=True)
            found.attributes.add("convergent")
            for i, slot in enumerate(slots):
                b.store(b.extract_value(found, i), slot)

    def slots(self) -> list[IrValue]:
        """The accumulators in the order of the instructions' results: by turn, piece of columns, element."""
        target, m, n = self.node.target, self.match.m.name, self.match.n.name
        buffer, found = self.scope.buffers[target.tensor], []
        for turn in range(self.turns):
            for first in self.pieces:
                for e in range(self.columns // 2):
                    row, column = 2 * turn + (e >> 1 & 1), first // 4 + 2 * (e >> 2) + (e & 1)
                    found.append(fragment_element(buffer, target, {m: row, n: column}))
        return [self.scope.fragments[target.tensor][e] for e in found]

    def _group(self, present: int) -> Int:
        """The warpgroup's number among those along the rows, the same in all lanes so that it is a uniform register.
        Those past the `present` ones multiply the last one's rows: they stay inside the tile, and nobody reads their
        results."""
        em = self.em
        if present == 1:
            return 0

        def make() -> IrValue:
            b = em.at(0)
            number = b.urem(b.lshr(em.thread(), em.i64(7)), em.i64(self.groups))
            if present < self.groups:
                last = em.i64(present - 1)
                number = b.select(b.icmp_unsigned("<", number, last), number, last)
            return em.asm("shfl.sync.idx.b32 $0, $1, 0, 31, -1;", I32, "=r,r", [number], effect=True)

        return em.once(0, ("warpgroup", self.groups, present), make)

    def _low(self, d: Descriptors, own: Axis, group: Int) -> IrValue:
        """The lower half of the descriptor of the first instruction tile of that warpgroup along `own`."""
        em, o = self.em, d.operand
        em.here()
        axes = (own, self.match.k) if o.along_k else (self.match.k, own)
        starts = [subscript_start(em, self.scope, s, a) for s, a in zip(o.factor.access.subscripts, axes, strict=True)]
        if starts != [self.first_row if a is self.match.m else 0 for a in axes]:
            tensor, loop = o.buffer.name.partition(".shared")[0], self.match.k.name
            raise Unsupported(
                f"wgmma on a part of the tile '{o.buffer.name}'", o.factor.access.span,
                f"stage what one turn reads: stage {tensor} in shared at {loop} by tma",
            )  # fmt: skip
        if o.buffer.name not in self.scope.copies:
            em.here()
            return em.i64(self._encoded(d, self.scope.roots[o.buffer.name], group))
        root, copy, size = self.scope.copies[o.buffer.name]

        def make() -> IrValue:
            args = [em.i64(-1), em.i64(self._encoded(d, root, group)), em.i64(0), em.i64(31)]
            return em.nvvm("shfl.sync.idx.i32", I32, args)

        first = em.once(0, ("descriptor", o.buffer.name, d.low, group), make)
        em.here()
        return em.i64(em.add(first, em.mul(copy, size >> 4)))

    def _encoded(self, d: Descriptors, root: IrValue, group: Int) -> Int:
        em, b = self.em, self.em.builder
        # (In a cluster an address has the block's number at bit 24 and above, which belongs in no descriptor.)
        address = b.and_(b.lshr(b.ptrtoint(root, I32), em.i64(4)), em.i64(ADDRESS))
        low = b.or_(address, em.i64(d.low))
        return em.add(low, em.mul(group, d.offset(ROWS, 0)))

    def _high(self, d: Descriptors, own: int) -> IrValue:
        """The upper half of an operand's descriptors, as a value that the assembler knows neither the bits of nor to be
        the other operand's: it then stays in its uniform register. Of a constant each instruction would have a move."""

        def make() -> IrValue:
            zero = f"mov.u32 $0, %ctaid.{'xy'[own]}; shr.u32 $0, $0, 31;"  # (no grid has so many blocks)
            return self.em.asm(f"{zero} add.u32 $0, $0, {_signed(d.high)};", I32, "=r", [], effect=True)

        return self.em.once(0, ("upper half", own, d.high), make)

    def _registers(self) -> list[IrValue]:
        """The left operand's registers, four for each step of k of each turn."""
        o, k = self.match.a, self.match.k
        found = [
            r
            for turn in range(self.turns)
            for step in self.steps
            for r in packed_rows(
                self.em, self.scope, o, self.match.m.name, k.name, turn, step, self.match.instruction.a
            )
        ]
        if _known(k) >= k.block:
            return found
        # Zeros past a known end are one value to the compiler, and no two of these may share a register.
        return [self.em.asm("mov.b32 $0, $1;", I32, "=r,r", [r], effect=True) for r in found]

    def _first_row(self) -> int:
        """The row of the left operand's tile that the product begins at, where that is a number; it goes into the
        instructions' own displacements. (Products of a tile's other rows then share the descriptors.)"""
        a, m = self.match.a, self.match.m
        begin = affine_form(m.start)
        row = a.factor.access.subscripts[0 if a.along_k else 1]
        place = None if begin is None else affine_form(row, {m.name: begin})
        return place.constant if place is not None and not place.terms else 0

    def _text(self, results: int, ties: int, inputs: int, wait: str) -> str:
        """The instructions. Behind the accumulators come the right descriptor's lower half, then the left one's or its
        registers, then the upper halves in the same order."""
        i, each = self.match.instruction, self.columns // 2
        first = results + ties
        high = first + inputs
        lines = ["wgmma.fence.sync.aligned;"]
        for number, k in enumerate(self.steps):
            for turn in range(self.turns):
                left = self._left_text(first + 1, high + 1, turn, number, k, lines)
                for piece, column in enumerate(self.pieces):
                    at = (turn * len(self.pieces) + piece) * each
                    low = self.right.offset(column, k)
                    lines.append(f"add.s32 x, ${first}, {low}; mov.b64 db, {{x, ${high}}};")
                    d = "{" + ", ".join(f"${at + e}" for e in range(each)) + "}"
                    scale = int(self.node.accumulate or number > 0)
                    lines.append(i.ptx.format(n=self.columns, d=d, a=left, b="db", scale=scale,
                                              transposed=self._transposed()))  # fmt: skip
        lines.append("wgmma.commit_group.sync.aligned;")
        return "{ .reg .b64 da, db; .reg .b32 x; " + " ".join(lines) + wait + " }"

    def _left_text(self, first: int, high: int, turn: int, number: int, k: int, lines: list[str]) -> str:
        if self.left is None:
            at = first + 4 * (turn * len(self.steps) + number)
            return "{" + ", ".join(f"${at + r}" for r in range(4)) + "}"
        low = self.left.offset(self.first_row + turn * self.groups * ROWS, k)
        own = first + (self.present[turn] != self.present[0])
        lines.append(f"add.s32 x, ${own}, {low}; mov.b64 da, {{x, ${high}}};")
        return "da"

    def _transposed(self) -> str:
        """Which operands in shared memory lie across k."""
        shared = [o for o in (self.match.a, self.match.b) if not o.in_registers]
        return "".join(f", {int(not o.along_k)}" for o in shared)


def _known(axis: Axis) -> int:
    """The axis's values where their number is known, else its block's."""
    if not (isinstance(axis.start, Num) and isinstance(axis.stop, Num)):
        return axis.block
    return min(axis.block, int(axis.stop.value - axis.start.value))


def _depth(k: Axis, step: int) -> int:
    """Values of the summed index that are multiplied: steps that lie wholly past a known end are left out."""
    return max(1, -(-_known(k) // step)) * step


def _signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x
