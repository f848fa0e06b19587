"""A contraction by mma.sync: fragments from shared memory by ldmatrix, accumulators in registers.

    each step of k (32 bytes of the operands):
        A fragments of the warp's m16 tiles, B fragments of its n8 tiles     ldmatrix, or packed accumulators for A
        D = A B + D for every pair of them

Which lane points at which row, and which element lands where, is read from the instruction's declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import F32, I8, I32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.products.fragments import fragment_element, packed_rows
from tcomp.codegen.nvptx.products.groups import Groups
from tcomp.codegen.nvptx.products.operand_address import OperandAddress
from tcomp.codegen.nvptx.products.warpgroup import Hold, WarpgroupGenerator
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import DType
from tcomp.instructions import INSTRUCTIONS
from tcomp.instructions.declaration import Home, OperandForms
from tcomp.instructions.layout import FragmentLayout, MatrixLoad
from tcomp.instructions.matching import Match, MatchError, match
from tcomp.ir.tile import Axis, Compute

UNROLLED = 128
"""instructions that are written out; more are a loop over steps of k"""


def write_contraction(
    em: GpuEmitter,
    scope: GpuScope,
    node: Compute,
    groups: Groups,
    hold: Hold | None,
    pipelined: bool,
    beside: Callable[[], None] | None = None,
) -> None:
    """A `Compute` by the matrix instructions it names; with `hold` alone in the pipe loop that fills its operands, but
    for what is written `beside` it. Asynchronous ones are awaited by `groups`, and issued late if the node says so and
    its loop is `pipelined`."""
    match = matched(node, scope)
    if not match.instruction.asynchronous:
        MatrixGenerator(em, scope, node, match).generate()
        return
    if match.instruction.home is Home.TENSOR_MEMORY:
        if id(node) not in groups.pieces:
            raise Unsupported(f"{node.instruction} for turns in pairs", node.span, "leave `overlap` out")
        piece = groups.pieces[id(node)]
        if node.late and pipelined:
            groups.postpone(piece)
        else:
            groups.issue(piece)
        if beside is not None:
            beside()
            groups.before(None)
        return
    generator = WarpgroupGenerator(em, scope, node, match, hold)
    if hold is not None:
        generator.generate(beside)
    elif node.late and pipelined:
        groups.postpone(generator)
    else:
        groups.issue(generator)


def matched(node: Compute, scope: GpuScope) -> Match:
    """The node's instruction; `Unsupported` where hand-built tile IR asks for what does not match."""
    try:
        return match(node, scope.buffers, scope.target, INSTRUCTIONS)
    except MatchError as e:
        raise Unsupported(e.message, node.span, e.hint) from None


@dataclass(frozen=True)
class Tiles:
    """The instruction tiles that one warp has of an axis: `offsets` within the axis's block, besides `warp`'s own."""

    axis: Axis
    offsets: tuple[int, ...]


def tiles_of(axis: Axis, size: int) -> Tiles:
    """Tiles of `size` values. Element numbers of a fragment follow the same order."""
    s = axis.spread
    assert s is not None
    if not s.warp:
        return Tiles(axis, tuple(range(0, -(-axis.block // size) * size, size)))
    turns = range(s.warp_turns(axis.block))
    inside = range(0, s.warp_tile, size)
    return Tiles(axis, tuple(t * s.warps * s.warp_tile + o for t in turns for o in inside))


class MatrixGenerator:
    """Writes one contraction at the emitter's current place."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, node: Compute, match: Match) -> None:
        self.em, self.scope, self.node, self.match = em, scope, node, match
        self.rows, self.columns = tiles_of(self.match.m, 16), tiles_of(self.match.n, 8)
        m, n, k, a, b = self.match.m, self.match.n, self.match.k, self.match.a, self.match.b
        self.left = None if a.in_registers else OperandAddress(em, scope, a, m, k, True)
        self.right = OperandAddress(em, scope, b, n, k, False)

    def generate(self) -> None:
        em, node = self.em, self.node
        slots = self._slots()
        with em.frame():
            b = em.here()
            zero = ir.Constant(F32, 0.0)
            acc: list[IrValue] = [b.load(s, typ=F32) for s in slots] if node.accumulate else [zero] * len(slots)
            acc = self._steps(acc)
            b = em.here()
            for slot, value in zip(slots, acc, strict=True):
                b.store(value, slot)

    def _slots(self) -> list[IrValue]:
        """The accumulators, four per pair of tiles, in the order of the instruction's result."""
        target, m, n = self.node.target, self.match.m.name, self.match.n.name
        buffer, found = self.scope.buffers[target.tensor], []
        for i in range(len(self.rows.offsets)):
            for j in range(len(self.columns.offsets)):
                for row in (2 * i, 2 * i + 1):
                    for column in (2 * j, 2 * j + 1):
                        found.append(fragment_element(buffer, target, {m: row, n: column}))
        return [self.scope.fragments[target.tensor][e] for e in found]

    def _steps(self, acc: list[IrValue]) -> list[IrValue]:
        """All steps of k."""
        i = self.match.instruction
        steps = self.match.k.block // i.k
        each = len(self.rows.offsets) * len(self.columns.offsets)
        unit = max(1, self.right.panel // i.k, 1 if self.left is None else self.left.panel // i.k)
        fitting = [d for d in range(unit, steps + 1, unit) if steps % d == 0 and d * each <= UNROLLED]
        at_once = max(fitting, default=unit if steps % unit == 0 else steps)
        if at_once == steps or self.match.a.in_registers:
            return self._unrolled(acc, 0, steps)

        def body(base: Int, carried: list[IrValue]) -> Sequence[IrValue]:
            return self._unrolled(carried, base, at_once)

        return self.em.loop(0, steps * i.k, at_once * i.k, acc, body, nonempty=True)

    def _unrolled(self, acc: list[IrValue], base: Int, steps: int) -> list[IrValue]:
        acc = list(acc)
        match = self.match
        for step in range(steps):
            k = step * match.instruction.k
            left = [self._left(i, base, k) for i in range(len(self.rows.offsets))]
            right = self._right(base, k)
            for i, a in enumerate(left):
                for j, b in enumerate(right):
                    at = 4 * (i * len(right) + j)
                    acc[at : at + 4] = self._multiply(a, b, acc[at : at + 4])
        return acc

    def _multiply(self, a: list[IrValue], b: list[IrValue], c: list[IrValue]) -> list[IrValue]:
        em = self.em
        builder = em.here()
        result = ir.LiteralStructType([F32] * 4)
        constraints = "=f,=f,=f,=f" + ",r" * 6 + ",f" * 4
        d = em.asm(self.match.instruction.ptx, result, constraints, [*a, *b, *c])
        d.attributes.add("convergent")
        return [builder.extract_value(d, x) for x in range(4)]

    # ---------------------------------------------------------------------------------------- operands

    def _left(self, i: int, base: Int, k: int) -> list[IrValue]:
        if self.left is None:
            m, kk, dtype = self.match.m.name, self.match.k.name, self.match.instruction.a
            return packed_rows(self.em, self.scope, self.match.a, m, kk, i, k, dtype)
        return self._loaded(self.left, self.match.instruction.left, self.rows.offsets[i], base, k, 4)

    def _right(self, base: Int, k: int) -> list[list[IrValue]]:
        """B fragments of all n8 tiles, two at a time where they are neighbours."""
        offsets, out = self.columns.offsets, list[list[IrValue]]()
        while len(out) < len(offsets):
            at = offsets[len(out)]
            pair = len(out) + 1 < len(offsets) and offsets[len(out) + 1] == at + 8
            registers = self._loaded(self.right, self.match.instruction.right, at, base, k, 4 if pair else 2)
            out += [registers[x : x + 2] for x in range(0, len(registers), 2)]
        return out

    def _loaded(self, o: OperandAddress, forms: OperandForms, at: int, base: Int, k: int, count: int) -> list[IrValue]:
        """`count` registers of a fragment (of two neighbours for B) from shared memory, rounded to tf32 if need be."""
        form = forms.along_k if o.operand.along_k else forms.across_k
        if isinstance(form, MatrixLoad):
            out = self._ldmatrix(o, form, at, base, k, count)
        else:
            out = self._gathered(o, forms.layout, at, base, k, count)
        return [self._tf32(x) for x in out] if self.match.instruction.a is DType.F32 else out

    def _ldmatrix(self, o: OperandAddress, form: MatrixLoad, at: int, base: Int, k: int, count: int) -> list[IrValue]:
        em = self.em
        pointer, offset = o.lane(form.lanes, at, base, k)
        em.here()
        outputs = ", ".join(f"${x}" for x in range(count))
        trans = ".trans" if form.transposed else ""
        text = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{outputs}}}, [${count}+{offset}];"
        result = ir.LiteralStructType([I32] * count)
        found = em.asm(text, result, ",".join(["=r"] * count) + ",r,~{memory}", [pointer], effect=True)
        return [em.builder.extract_value(found, x) for x in range(count)]

    def _gathered(
        self, o: OperandAddress, layout: FragmentLayout, at: int, base: Int, k: int, count: int
    ) -> list[IrValue]:
        """Registers of one 32-bit element each, loaded one by one."""
        own = 4 if o.left else 2
        out = []
        for x in range(count):
            pointer, offset = o.lane(layout.threads, at + 8 * (x // own), base, k, layout.place(0, x % own))
            b = self.em.here()
            out.append(b.load(b.gep(pointer, [ir.Constant(I32, offset)], source_etype=I8), typ=I32, align=4))
        return out

    def _tf32(self, x: IrValue) -> IrValue:
        b = self.em.here()
        return self.em.asm("cvt.rna.tf32.f32 $0, $1;", I32, "=r,f", [b.bitcast(x, F32)])
