"""The products of a sum in tensor memory (tcgen05), and how the sum comes from there to registers.

Columns: for each copy of the accumulator one piece after the other, of 128 rows each, a warpgroup's in the order of its
turns. A warp loads its 32 lanes, 16 at a time, 8 columns or a power of two times as many by each tcgen05.ld. PTX ISA,
"TensorCore 5th Generation".
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import F32, VOID, IrValue
from tcomp.codegen.nvptx.copies.ring import Ring
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.products.descriptor import descriptors
from tcomp.codegen.nvptx.products.fragments import fragment_element, subscript_start
from tcomp.codegen.nvptx.products.matrix import matched
from tcomp.codegen.nvptx.products.tensor_group import LANE, tile_descriptor
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import names_in
from tcomp.instructions.declaration import Home
from tcomp.instructions.tcgen05 import ALONE, PAIRED, ROWS, instruction_descriptor
from tcomp.ir.tile import Compute
from tcomp.ir.walk import reads_of


@dataclass(frozen=True)
class Complete:
    """An accumulator that consumers may load: its address, its place in the ring, to which they give it back."""

    address: IrValue
    slot: Int
    ring: Ring


class TensorProduct:
    """One pipe loop's sum: where its accumulators are, its products, and how they come to registers."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, node: Compute, paired: bool = False) -> None:
        """`paired`: by one thread for this block and its cluster's other."""
        self.em, self.scope, self.node, self.paired = em, scope, node, paired
        self.match = match = matched(node, scope)
        spread = match.m.spread
        assert spread is not None
        if em.threads.warps_x != 1:
            raise Unsupported("warps along x beside warpgroups", node.span)
        self.groups, self.turns = spread.warps // 4, spread.warp_turns(match.m.block)
        pieces = -(-match.n.block // match.instruction.n[-1])
        self.width = match.n.block // pieces
        self.pieces = range(0, match.n.block, self.width)
        self.left, self.right = (descriptors(o, Home.TENSOR_MEMORY) for o in (match.a, match.b))
        self.columns = match.m.block // ROWS * match.n.block
        """of one accumulator"""
        self.first, self.stages = 0, 1
        """where the accumulators begin among the block's columns, and how many there are"""
        self.at_once = scope.buffers[node.target.tensor].columns
        """columns that come to registers at a time; 0: all"""
        self.last: int | None = None
        """of the panel loops that read the sum, the number of the last; None: it comes to registers whole"""
        self.complete: Complete | None = None

    # --------------------------------------------------------------------------------------- products

    def multiply(self, address: IrValue, first: IrValue) -> None:
        """This thread's products of one turn; where `first` is not 0 they begin the sum."""
        em, i = self.em, self.match.instruction
        inputs = [
            address,
            first,
            *(
                tile_descriptor(em, self.scope, self.match, d, a)
                for d, a in ((self.left, self.match.m), (self.right, self.match.n))
            ),
        ]
        across = not self.match.a.along_k, not self.match.b.along_k
        code = instruction_descriptor(i, self.width, across, 2 if self.paired else 1)
        lines = [
            "{ .reg .b64 da, db; .reg .b32 x, ha, hb, i; .reg .pred p, q; setp.eq.b32 p, $1, 0; mov.pred q, -1;",
            f"mov.b32 ha, {self.left.high}; mov.b32 hb, {self.right.high}; mov.b32 i, {code};",
        ]
        for k in range(0, self.match.k.block, i.k):
            for row in range(0, self.match.m.block, ROWS):
                lines.append(f"add.s32 x, $2, {self.left.offset(row, k)}; mov.b64 da, {{x, ha}};")
                for column in self.pieces:
                    lines.append(f"add.s32 x, $3, {self.right.offset(column, k)}; mov.b64 db, {{x, hb}};")
                    at = self._column(row // ROWS, column)
                    lines.append(f"add.s32 x, $0, {at};")
                    text = i.ptx.format(d="x", a="da", b="db", i="i", keep="q" if k else "p")
                    lines.append(text.replace(ALONE, PAIRED) if self.paired else text)
        em.here()
        em.asm(" ".join([*lines, "}"]), VOID, "r,r,r,r,~{memory}", inputs, effect=True)

    def _column(self, piece: int, column: int) -> int:
        """Where, in an accumulator, that column of the rows from 128 `piece` on is: each warpgroup has its turns' rows
        side by side."""
        turn, group = divmod(piece, self.groups)
        return (group * self.turns + turn) * self.match.n.block + column

    # ---------------------------------------------------------------------------------------- results

    def load(self, address: IrValue, start: int = 0, columns: int = 0) -> None:
        """So many columns (0: all) of the sum from `start` on, from the accumulator at `address` to this thread's
        registers. All products of it must have ended."""
        em, block = self.em, self.match.n.block
        columns = min(columns or block, block - start)
        slots = self._slots(start, columns)
        warp = em.uniform_warp()
        b = em.here()
        lane = b.shl(b.and_(warp, em.i64(3)), em.i64(LANE + 5))
        own = b.add(address, lane)
        if self.groups > 1:
            group = em.group(self.groups)
            b = em.here()
            own = b.add(own, b.mul(group, em.i64(self.turns * block)))
        text, at = [], 0
        for turn in range(self.turns):
            for half in (0, 16):
                for column, count in _powers(columns // 8):
                    registers = "{" + ", ".join(f"${at + e}" for e in range(4 * count)) + "}"
                    place = (half << LANE) + turn * block + start + 8 * column
                    text.append(f"tcgen05.ld.sync.aligned.16x256b.x{count}.b32 {registers}, [${len(slots)}+{place}];")
                    at += 4 * count
        text.append("tcgen05.wait::ld.sync.aligned;")
        with em.frame():
            em.here()
            result = ir.LiteralStructType([F32] * len(slots))
            constraints = ",".join(["=f"] * len(slots) + ["r", "~{memory}"])
            found = em.asm(" ".join(text), result, constraints, [own], effect=True)
            found.attributes.add("convergent")
            b = em.here()
            for n, slot in enumerate(slots):
                b.store(b.extract_value(found, n), slot)

    def start_of(self, s: Compute) -> int | None:
        """The first column of the sum that a Compute reads; None where it reads none. `Unsupported` where that is no
        number."""
        for a in reads_of(s):
            if a.tensor != self.node.target.tensor:
                continue
            names = names_in(a.subscripts[-1])
            axis = next(x for x in s.axes if x.name in names)
            start = subscript_start(self.em, self.scope, a.subscripts[-1], axis)
            if isinstance(start, int):
                return start
            raise Unsupported(f"columns of '{a.tensor}' in tensor memory from {axis.start} on", s.span)
        return None

    def _slots(self, start: int, columns: int) -> list[IrValue]:
        """The registers of columns of the sum as they are loaded: by turn, 16 rows, 8 columns; pairs of columns, then 8
        rows below."""
        target, m, n = self.node.target, self.match.m.name, self.match.n.name
        buffer, found = self.scope.buffers[target.tensor], []
        for tile in range(2 * self.turns):
            for e in range(start // 2, (start + columns) // 2):
                row, column = 2 * tile + (e >> 1 & 1), 2 * (e >> 2) + (e & 1)
                found.append(fragment_element(buffer, target, {m: row, n: column}))
        return [self.scope.fragments[target.tensor][e] for e in found]


def _powers(count: int) -> list[tuple[int, int]]:
    """(start, length) of pieces of 0 .. count, each a power of two up to 32."""
    found, at = [], 0
    while at < count:
        length = min(32, 1 << (count - at).bit_length() - 1)
        found.append((at, length))
        at += length
    return found
