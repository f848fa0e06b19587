"""A contraction by tcgen05 whose result each warpgroup has in registers: a piece of the sum, added up there.

    inputs   a left operand in registers: tcgen05.st to tensor memory, wait::st
    issue    fence, barrier of the warpgroup; one of its threads: products, commit to the group's mbarrier
    wait     for the mbarrier; tcgen05.ld; the result is written to the registers, or added to what they hold

Each warpgroup multiplies its own 128 rows (or 64), so that one's products run beside what the others compute. Such a
product is complete in itself, or adds to a sum that stays in tensor memory (`sums_kept.py`): where it is issued and
awaited is for `Groups` to say, as of wgmma. Which columns hold result and left operand: `tensor_columns.py`.
PTX ISA, "TensorCore 5th Generation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.types import F32, I8, I32, VOID, IrValue
from tcomp.codegen.nvptx.copies.ring import BYTES, Position, elected, wait_phase
from tcomp.codegen.nvptx.emitter import WARPGROUP, GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.products.descriptor import ADDRESS, Descriptors, descriptors
from tcomp.codegen.nvptx.products.fragments import fragment_element, packed_rows, subscript_start
from tcomp.codegen.nvptx.products.rescaling import where_any_grew
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.instructions.declaration import Home
from tcomp.instructions.matching import Match
from tcomp.instructions.tcgen05 import HALF, LANES, instruction_descriptor
from tcomp.ir.tile import Axis, Compute

LANE = 16
"""the bit of an address in tensor memory at which its lane begins"""
AFTER, BEFORE = "tcgen05.fence::after_thread_sync;", "tcgen05.fence::before_thread_sync;"
PIECE = 32
"""registers that a thread loads at a time where it adds them to others"""


@dataclass
class Moves:
    """Where, in the code being written, a warpgroup's threads have met, and touched neither tensor memory nor shared
    memory since: the block that the code goes on in."""

    met: ir.Block | None = None


class TensorGroup:
    """One contraction of a phase, with its place in tensor memory, its mbarriers and the parity of their next phase;
    written wherever the statement is."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, node: Compute, match: Match, moves: Moves, kept: bool) -> None:
        """`kept`: it is a sum that stays in tensor memory."""
        self.moves = moves
        self.em, self.scope, self.node, self.match = em, scope, node, match
        spread = match.m.spread
        assert spread is not None
        name = node.instruction
        if em.threads.warps_x != 1:
            raise Unsupported("warps along x beside warpgroups", node.span)
        rows = match.instruction.m
        if spread.warp_turns(match.m.block) > 1 or match.m.block != rows * (spread.warps // WARPGROUP):
            raise Unsupported(f"{name} beside other statements of its loop has {rows} rows for each warpgroup",
                              node.span, f"choose a tile of {rows * em.threads.warps // WARPGROUP} rows")  # fmt: skip
        if match.n.block > match.instruction.n[-1]:
            raise Unsupported(f"{name} beside other statements of its loop has {match.instruction.n[-1]} columns at "
                              "most", node.span, "choose a smaller tile")  # fmt: skip
        self.position, self.kept = Position(em, 1), kept
        self.begun = em.at(0).alloca(I32, name="begun")
        """Has a sum that stays been given anything yet?"""
        em.at(0).store(em.i64(0), self.begun)
        self.stored = self.complete = False
        """Is the left operand of the next product in tensor memory already, and the last one's end awaited?"""
        self.groups = spread.warps // WARPGROUP
        self.left = None if match.a.in_registers else descriptors(match.a, Home.TENSOR_MEMORY)
        self.right = descriptors(match.b, Home.TENSOR_MEMORY)
        self.packed = match.k.block * match.instruction.a.bytes // 4 if match.a.in_registers else 0
        """columns of the left operand"""
        self.first = self.left_first = self.stride = 0
        """where, among the block's columns, those of the first warpgroup's result and left operand begin, and how many
        further each other warpgroup's are"""
        self.shares: frozenset[int] = frozenset()
        """numbers of the statements whose products have columns in common with this one"""
        self.halves = range(rows // HALF)
        """parts of 16 lanes that a warp has rows in"""
        self.slots_of_half = match.n.block // 2

    def start(self, address: IrValue, barriers: IrValue) -> None:
        """Where the block's tensor memory is, and one mbarrier for each warpgroup; behind a barrier that made them."""
        self.address, self.barriers = address, barriers

    def initialise(self, barriers: IrValue) -> None:
        """By one thread."""
        for g in range(self.groups):
            b = self.em.here()
            place = b.gep(barriers, [self.em.i64(g * BYTES)], source_etype=I8)
            self.em.nvvm("mbarrier.init.shared", args=[place, self.em.i64(1)])

    # --------------------------------------------------------------------------------- as Groups see it

    def tiles(self) -> frozenset[str]:
        """Shared tiles that it reads in place."""
        return frozenset(o.buffer.name for o in (self.match.a, self.match.b) if not o.in_registers)

    def slots(self) -> list[IrValue]:
        """The result's registers as they are loaded: by 16 rows, 8 columns; pairs of columns, then 8 rows below."""
        target, m, n = self.node.target, self.match.m.name, self.match.n.name
        buffer, found = self.scope.buffers[target.tensor], []
        for tile in self.halves:
            for e in range(self.slots_of_half):
                row, column = 2 * tile + (e >> 1 & 1), 2 * (e >> 2) + (e & 1)
                found.append(fragment_element(buffer, target, {m: row, n: column}))
        return [self.scope.fragments[target.tensor][e] for e in found]

    def inputs(self) -> list[IrValue]:
        """The lower halves of the descriptors of what lies in shared memory. A left operand in registers is put into
        tensor memory: nothing that has been issued may read that place any more."""
        right = tile_descriptor(self.em, self.scope, self.match, self.right, self.match.n)
        if self.left is None:
            if not self.stored:
                self._store()
            self.stored = False
            return [right]
        em = self.em
        low = tile_descriptor(em, self.scope, self.match, self.left, self.match.m)
        if self.groups > 1:
            group = em.group(self.groups)
            b = em.here()
            low = b.add(low, b.mul(group, em.i64(self.left.offset(self.match.instruction.m, 0))))
        return [right, low]

    def issue(self, inputs: Sequence[IrValue]) -> None:
        """Start it, on operands that `inputs` gave."""
        em = self.em
        em.here()
        if self.moves.met is not em.frames[-1].block:
            em.effect(BEFORE)
            em.group_barrier(self.groups)
        base = self._base(self.first)
        place = self._mbarrier()
        first = em.here().and_(em.uniform_warp(), em.i64(WARPGROUP - 1))
        chosen = em.here().icmp_signed("==", first, em.i64(0))
        adds = em.here().load(self.begun, typ=I32)
        em.when(chosen, lambda: em.when(elected(em), lambda: self._multiply(base, place, [*inputs, adds])))
        if self.kept:
            em.here().store(em.i64(1), self.begun)
        self.moves.met = em.frames[-1].block

    def prepare(self, running: bool) -> None:
        """Put the left operand in tensor memory before its product is written, and before what the one before (is it
        `running`?) has made comes to registers, of which there then are enough."""
        if running and not self.complete:
            self._complete()
        self._store()
        self.stored = True

    def _complete(self) -> None:
        wait_phase(self.em, self._mbarrier(), self.position.parity)
        self.position.advance()
        self.em.effect(AFTER)
        self.complete = True

    def wait(self) -> None:
        """Until it is complete; the result comes to registers."""
        if not self.complete:
            self._complete()
        self.complete = False
        if self.kept:
            return
        own = self._lanes(self.first)
        slots = self.slots()
        if not self.node.accumulate:
            self._load(own, list(self._pieces(self.match.n.block)), slots, adds=False)
            return
        for half, column, count in self._pieces(2 * PIECE):
            at = half * self.slots_of_half + column // 2
            self._load(own, [(half, column, count)], slots[at : at + 4 * count], adds=True)

    # ----------------------------------------------------------------------------- sums that stay there

    def reset(self) -> None:
        """The sum begins anew."""
        self.em.here().store(self.em.i64(0), self.begun)

    def scale(self, factor: str, generate: Callable[[], None]) -> None:
        """`generate` multiplies the sum's registers by that tile's elements: where any of a warp's is not 1, on what is
        loaded for it and stored again. All products that add to it are complete."""

        def scaled() -> None:
            own = self._lanes(self.first)
            slots, pieces = self.slots(), list(self._pieces(self.match.n.block))
            self._load(own, pieces, slots, adds=False)
            generate()
            self._put(own, pieces, slots)
            self._forget(slots)

        self._where_begun(lambda: where_any_grew(self.em, self.scope, factor, scaled))

    def collect(self) -> None:
        """The sum comes to registers, behind its loop; zeros if the loop had no turn."""
        slots = self.slots()
        self._forget(slots)
        own = self._lanes(self.first)
        pieces = list(self._pieces(self.match.n.block))
        self._where_begun(lambda: self._load(own, pieces, slots, adds=False))

    def _where_begun(self, body: Callable[[], None]) -> None:
        em = self.em
        b = em.here()
        em.when(b.icmp_signed("!=", b.load(self.begun, typ=I32), em.i64(0)), body)

    def _forget(self, slots: Sequence[IrValue]) -> None:
        """So that no register holds the sum beside tensor memory."""
        b = self.em.here()
        for slot in slots:
            b.store(ir.Constant(F32, 0.0), slot)

    def _put(self, own: IrValue, pieces: Sequence[tuple[int, int, int]], slots: Sequence[IrValue]) -> None:
        em, at = self.em, 0
        self.moves.met = None
        with em.frame():
            for half, column, count in pieces:
                b = em.here()
                values = [b.load(s, typ=F32) for s in slots[at : at + 4 * count]]
                registers = "{" + ", ".join(f"${e + 1}" for e in range(len(values))) + "}"
                place = (LANES * half << LANE) + column
                text = f"tcgen05.st.sync.aligned.16x256b.x{count}.b32 [$0+{place}], {registers};"
                found = em.asm(text, VOID, ",".join(["r", *["f"] * len(values), "~{memory}"]), [own, *values],
                               effect=True)  # fmt: skip
                found.attributes.add("convergent")
                at += len(values)
            em.effect("tcgen05.wait::st.sync.aligned;")

    # -------------------------------------------------------------------------------------- instructions

    def _pieces(self, most: int) -> Iterator[tuple[int, int, int]]:
        """(half, first column, repetitions) of loads of at most so many columns, 8 a repetition."""
        for half in self.halves:
            column = 0
            while column < self.match.n.block:
                left = min(self.match.n.block - column, most, 256) // 8
                count = 1 << left.bit_length() - 1
                yield half, column, count
                column += 8 * count

    def _load(self, own: IrValue, pieces: Sequence[tuple[int, int, int]], slots: Sequence[IrValue], adds: bool) -> None:
        em = self.em
        self.moves.met = None
        text, at = [], 0
        for half, column, count in pieces:
            registers = "{" + ", ".join(f"${at + e}" for e in range(4 * count)) + "}"
            place = (LANES * half << LANE) + column
            text.append(f"tcgen05.ld.sync.aligned.16x256b.x{count}.b32 {registers}, [${len(slots)}+{place}];")
            at += 4 * count
        text.append("tcgen05.wait::ld.sync.aligned;")
        with em.frame():
            em.here()
            constraints = ",".join(["=f"] * len(slots) + ["r", "~{memory}"])
            result = ir.LiteralStructType([F32] * len(slots))
            found = em.asm(" ".join(text), result, constraints, [own], effect=True)
            found.attributes.add("convergent")
            b = em.here()
            for n, slot in enumerate(slots):
                value = b.extract_value(found, n)
                b.store(b.fadd(b.load(slot, typ=F32), value) if adds else value, slot)

    def _store(self) -> None:
        """The left operand's 32-bit words, pairs along k: those of 16 rows lie as an accumulator's, 4 columns for 8 of
        k."""
        em, m, k = self.em, self.match.m.name, self.match.k.name
        own = self._lanes(self.left_first)
        self.moves.met = None
        with em.frame():
            for half in self.halves:
                words: list[IrValue] = []
                for step in range(0, self.match.k.block, 16):
                    words += packed_rows(em, self.scope, self.match.a, m, k, half, step, self.match.instruction.a)
                at = 0
                while at < len(words):
                    count = min(32, 1 << (len(words) - at >> 1).bit_length() - 1)
                    part = words[at : at + 2 * count]
                    registers = "{" + ", ".join(f"${e + 1}" for e in range(len(part))) + "}"
                    place = (LANES * half << LANE) + 2 * at
                    text = f"tcgen05.st.sync.aligned.16x128b.x{count}.b32 [$0+{place}], {registers};"
                    em.here()
                    found = em.asm(
                        text, VOID, ",".join(["r"] * (len(part) + 1)) + ",~{memory}", [own, *part], effect=True
                    )
                    found.attributes.add("convergent")
                    at += len(part)
            em.effect("tcgen05.wait::st.sync.aligned;")

    def _multiply(self, base: IrValue, place: IrValue, inputs: Sequence[IrValue]) -> None:
        """By one thread: all products, and what says that they are complete."""
        em, i, n = self.em, self.match.instruction, self.match.n.block
        across = (self.left is not None and not self.match.a.along_k, not self.match.b.along_k)
        code = instruction_descriptor(i, n, across)
        last = f"${1 + len(inputs)}"
        left_high = 0 if self.left is None else self.left.high
        lines = [
            AFTER,
            f"{{ .reg .b64 da, db; .reg .b32 x, y, ha, hb, i; .reg .pred p, q; setp.ne.b32 p, {last}, 0;",
            "mov.pred q, -1;",
            f"mov.b32 ha, {left_high}; mov.b32 hb, {self.right.high}; mov.b32 i, {code};",
        ]
        for k in range(0, self.match.k.block, i.k):
            if self.left is None:
                lines.append(f"add.s32 x, $0, {self.left_first - self.first + k * i.a.bytes // 4};")
            else:
                lines.append(f"add.s32 x, $3, {self.left.offset(0, k)}; mov.b64 da, {{x, ha}};")
            lines.append(f"add.s32 y, $2, {self.right.offset(0, k)}; mov.b64 db, {{y, hb}};")
            a = "[x]" if self.left is None else "da"
            lines.append(i.ptx.format(d="$0", a=a, b="db", i="i", keep="q" if k else "p"))
        lines.append("} tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [$1];")
        em.here()
        em.asm(" ".join(lines), VOID, ",".join(["r"] * (2 + len(inputs))) + ",~{memory}", [base, place, *inputs],
               effect=True)  # fmt: skip

    # ------------------------------------------------------------------------------------------- places

    def _base(self, first: int) -> IrValue:
        """The warpgroup's own column that is number `first` of the first warpgroup's, at lane 0."""
        em = self.em
        b = em.here()
        if self.groups == 1:
            return b.add(self.address, em.i64(first))
        group = em.group(self.groups)
        b = em.here()
        return b.add(b.add(self.address, em.i64(first)), b.mul(group, em.i64(self.stride)))

    def _lanes(self, first: int) -> IrValue:
        """The same at the warp's own lanes."""
        em = self.em
        base = self._base(first)
        warp = em.uniform_warp()
        b = em.here()
        return b.add(base, b.shl(b.and_(warp, em.i64(3)), em.i64(LANE + 5)))

    def _mbarrier(self) -> IrValue:
        em = self.em
        if self.groups == 1:
            return self.barriers
        group = em.group(self.groups)
        b = em.here()
        return b.gep(self.barriers, [b.mul(group, em.i64(BYTES))], source_etype=I8)


def tile_descriptor(em: GpuEmitter, scope: GpuScope, match: Match, d: Descriptors, own: Axis) -> IrValue:
    """The lower half of the descriptor of an operand's tile as it now lies; `own` is its axis that is not summed."""
    o = d.operand
    axes = (own, match.k) if o.along_k else (match.k, own)
    em.here()
    starts = [subscript_start(em, scope, s, a) for s, a in zip(o.factor.access.subscripts, axes, strict=True)]
    if starts != [0, 0]:
        tensor, loop = o.buffer.name.partition(".shared")[0], match.k.name
        raise Unsupported(
            f"tcgen05 on a part of the tile '{o.buffer.name}'", o.factor.access.span,
            f"stage what one turn reads: stage {tensor} in shared at {loop} by tma",
        )  # fmt: skip
    b = em.here()
    address = b.and_(b.lshr(b.ptrtoint(scope.roots[o.buffer.name], I32), em.i64(4)), em.i64(ADDRESS))
    return b.or_(address, em.i64(d.low))
