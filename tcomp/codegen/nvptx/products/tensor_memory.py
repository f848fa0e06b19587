"""Sums in tensor memory (tcgen05): a ring of accumulators that one thread fills and warpgroups read.

    multiplier   wait until the accumulator is empty; each turn: wait for its tiles; products; commit to "tiles empty";
                 commit to "accumulator full"; next accumulator
    consumers    wait until it is full; tcgen05.ld to registers, all of it or the columns of each panel loop's turn
                 (`gpu/sum_panels.py`); each warp says "accumulator empty"; next accumulator

The products of a loop so run while the results of the one before are handed over. Products beside other statements of
their loop are the warpgroups' own (`tensor_group.py`). The multiplier is one thread of the producer's third warp
(`nvptx/roles.py`); its products and those loads are `tensor_product.py`'s. PTX ISA, "TensorCore 5th Generation".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import Affine, affine_form
from tcomp.codegen.llvm.types import I8, I32, VOID, IrValue
from tcomp.codegen.nvptx.copies.ring import Ring
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.entry import DYNAMIC
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.layout import leading_packs, pieces_in_tensor_memory, summed_in_tensor_memory
from tcomp.codegen.nvptx.products.matrix import matched
from tcomp.codegen.nvptx.products.sums_kept import factor_of_sum
from tcomp.codegen.nvptx.products.tensor_columns import give_columns
from tcomp.codegen.nvptx.products.tensor_group import Moves, TensorGroup
from tcomp.codegen.nvptx.products.tensor_product import Complete, TensorProduct
from tcomp.codegen.nvptx.threads.beside import sums_beside
from tcomp.dsl.ast import Call, Expr, Num
from tcomp.instructions.tcgen05 import ALONE, COLUMNS, PAIRED, ROWS
from tcomp.ir.tile import Compute, Loop, Statement
from tcomp.ir.walk import computes, reads_of, statements_in

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator

LEAST = 32
"""columns of an allocation"""
MULTIPLIER = 2
"""the producer's warp, one thread of which issues products"""
_AFTER, _BEFORE = "tcgen05.fence::after_thread_sync;", "tcgen05.fence::before_thread_sync;"


Turns = Callable[[Callable[[IrValue], None]], None]
"""runs a body for every turn of a loop; the body is given whether the turn is the first (1) or not (0)"""


class TensorMemory:
    """All sums of a phase that are in tensor memory, by the number of their loop."""

    def __init__(self, generator: PhaseGenerator, phase: Sequence[Statement]) -> None:
        self.em, self.generator = generator.em, generator
        self.group = PAIRED if generator.paired else ALONE
        self.products: dict[int, TensorProduct] = {}
        self.rings: dict[int, Ring] = {}
        self.columns = 0
        for loop in (s for s in statements_in(phase) if isinstance(s, Loop)):
            node = summed_in_tensor_memory(loop)
            if node is not None:
                _check(generator, loop, node)
                self.products[id(loop)] = TensorProduct(generator.em, generator.scope, node, generator.paired)
        for loop in (s for s in statements_in(phase) if isinstance(s, Loop) and s.level == "panel"):
            read = {a.tensor for c in computes(loop.body) for a in reads_of(c)}
            for p in self.products.values():
                if p.at_once and p.node.target.tensor in read:
                    p.last = id(loop)
        self._place()
        self.moves = Moves()
        self.pieces: dict[int, TensorGroup] = {}
        """products beside other statements, by their number"""
        for s in pieces_in_tensor_memory(phase):
            if generator.kernel.gpu.cluster is not None or generator.kernel.gpu.sides > 1:
                raise Unsupported(f"{s.instruction} in clusters or by sides of a block", s.span,
                                  "leave out cluster and pingpong")  # fmt: skip
            self.pieces[id(s)] = TensorGroup(generator.em, generator.scope, s, matched(s, generator.scope), self.moves,
                                             factor_of_sum(phase, s, generator.scope) is not None)  # fmt: skip
        self.columns += give_columns(phase, list(self.pieces.values()), self.columns)
        self.kept = {p.node.target.tensor: p for p in self.pieces.values() if p.kept}
        """of these, sums that stay in tensor memory while their loop goes on, by their tile"""
        self._round()

    def meeting(self) -> frozenset[int]:
        """The numbers of the products for whose issue all threads of the block that compute meet, where they stand."""
        late = any(s.late for s in computes(self.generator.phase))
        return frozenset(n for n, p in self.pieces.items() if p.groups == 1 and not late)

    def _place(self) -> None:
        """Columns for all sums, twice where each of a persistent block's tiles may have another."""
        wanted = sum(p.columns for p in self.products.values())
        twice = self.generator.kernel.gpu.order.persistent and 2 * wanted <= COLUMNS
        sides = self.generator.kernel.gpu.sides
        for p in self.products.values():
            if sides > 1 + twice:  # (one would take the phase before the first for the end of the other's sum)
                raise Unsupported(
                    f"with `pingpong` {p.node.instruction} has a sum for each side of a block, of {wanted} columns of "
                    f"128 rows in tensor memory, which has {COLUMNS}", p.node.span,
                    "choose smaller tiles, or leave `pingpong` out",
                )  # fmt: skip
            p.stages = 1 + twice
            p.first, self.columns = self.columns, self.columns + p.stages * p.columns

    def _round(self) -> None:
        """To what can be allocated."""
        if self.columns > COLUMNS:
            node = [*(p.node for p in self.products.values()), *(p.node for p in self.pieces.values())][0]
            raise Unsupported(
                f"{node.instruction} would collect {self.columns} columns of 128 rows in tensor memory, which has "
                f"{COLUMNS}", node.span, "choose smaller tiles",
            )  # fmt: skip
        if self.columns:
            self.columns = max(LEAST, 1 << (self.columns - 1).bit_length())

    # ------------------------------------------------------------------------------------- allocation

    def allocate(self) -> None:
        """By the block's first warp, before a barrier."""
        em = self.em
        if not self.columns:
            return
        warps = em.threads.warps

        def take() -> None:
            em.here()
            where = em.builder.ptrtoint(self._cell(), I32)
            permit = f"tcgen05.relinquish_alloc_permit.{self.group}.sync.aligned;"
            text = f"tcgen05.alloc.{self.group}.sync.aligned.shared::cta.b32 [$0], {self.columns}; {permit}"
            em.asm(text, VOID, "r,~{memory}", [where], effect=True)

        assert warps > 1
        em.when(em.here().icmp_signed("==", em.block_warp(), em.i64(0)), take)

    def allocated(self) -> None:
        """Behind the barrier: every thread reads the address."""
        if self.columns:
            em = self.em
            b = em.here()
            where = b.ptrtoint(self._cell(), I32)
            self.address = em.asm("ld.shared.b32 $0, [$1];", I32, "=r,r,~{memory}", [where], effect=True)
            for number, group in self.pieces.items():
                group.start(self.address, self._barriers(number))

    def initialise(self) -> None:
        """The mbarriers of products beside other statements, by one thread."""
        for number, group in self.pieces.items():
            group.initialise(self._barriers(number))

    def _barriers(self, number: int) -> IrValue:
        shared = self.em.module.globals.get(DYNAMIC)
        place = ir.Constant(I32, self.generator.layout.pieces[number])
        return self.em.at(0).gep(shared, [place], source_etype=I8)

    def free(self) -> None:
        """By the first warp, when all consumers have read what they will."""
        if self.columns and not self.generator.paired:
            self.em.computing_barrier()
            self._give()

    def free_paired(self) -> None:
        """The same by both blocks of a pair, when all their threads have met, and nothing may be awaited any more."""
        if self.columns and self.generator.paired:
            self._give()

    def _give(self) -> None:
        em = self.em

        def give() -> None:
            em.here()
            text = f"tcgen05.dealloc.{self.group}.sync.aligned.b32 $0, {self.columns};"
            em.asm(text, VOID, "r,~{memory}", [self.address], effect=True)

        em.when(em.here().icmp_signed("==", em.block_warp(), em.i64(0)), give)

    def _cell(self) -> IrValue:
        """The shared memory that the address is written to."""
        shared = self.em.module.globals.get(DYNAMIC)
        place = ir.Constant(I32, self.generator.layout.tensor_address)
        return self.em.here().gep(shared, [place], source_etype=I8)

    # ------------------------------------------------------------------------------------------- sums

    def _accumulator(self, p: TensorProduct, slot: Int) -> IrValue:
        em = self.em
        em.here()
        offset = em.add(em.mul(slot, p.columns), p.first)
        return em.here().add(self.address, em.i64(offset))

    def by_multiplier(self, turns: Callable[[], None]) -> None:
        """The multiplier's turns of the grid: of a pair only the first block has one. In the second the thread tells
        that tiles are there, where their ring does not."""
        generator = self.generator
        if not generator.paired:
            turns()
            return

        def relay() -> None:
            if any(ring.pair == "relayed" for ring in generator.copies.rings.values()):
                generator.roles.now = "relay"
                turns()

        rank = self.em.cluster_rank()
        self.em.either(self.em.here().icmp_signed("==", rank, self.em.i64(0)), turns, relay)

    def multiply(self, loop: Loop, turns: Turns) -> None:
        """The multiplier's part of a loop: `turns` runs a body for every turn, with its tiles in place."""
        em, p, ring = self.em, self.products[id(loop)], self.rings[id(loop)]
        ring.wait_empty()
        em.here()
        em.asm(_AFTER, VOID, "~{memory}", effect=True)
        address = self._accumulator(p, ring.filling.slot)
        turns(lambda first: p.multiply(address, first))
        commit(em, ring.full_place(), ring.cluster, bool(ring.pair))
        ring.filling.advance()

    def collect(self, loop: Loop) -> None:
        """The consumers' part behind a loop: its sum comes to registers, or is there for panels to take columns of."""
        p, ring = self.products[id(loop)], self.rings[id(loop)]
        if self.em.sides > 1:
            ring.others(1, before=True)
        slot = ring.wait_full()
        self._fence(_AFTER)
        p.complete = Complete(self._accumulator(p, slot), slot, ring)
        if p.last is None:
            p.load(p.complete.address)
            self._done(p)

    def panel(self, loop: Loop, body: Sequence[Statement], last: bool) -> None:
        """The columns of sums that a turn of a panel loop reads come to registers; is it the loop's `last` turn?"""
        for p in self.products.values():
            if p.complete is not None:
                starts = {p.start_of(s) for s in body if isinstance(s, Compute)}
                for start in sorted(n for n in starts if n is not None):
                    p.load(p.complete.address, start, p.at_once)
                if last and id(loop) == p.last:
                    self._done(p)

    def _done(self, p: TensorProduct) -> None:
        """The accumulator may be written again."""
        assert p.complete is not None
        self._fence(_BEFORE)
        p.complete.ring.release(p.complete.slot)
        p.complete.ring.reading.advance()
        if self.em.sides > 1:
            p.complete.ring.others(1, before=False)
        p.complete = None

    def _fence(self, text: str) -> None:
        self.em.here()
        self.em.asm(text, VOID, "~{memory}", effect=True)


def commit(em: GpuEmitter, barrier: IrValue, blocks: int = 1, paired: bool = False) -> None:
    """Arrive at a barrier, in each block of a cluster of so many, once all products that this thread has issued are
    complete; `paired`: those of two blocks."""
    em.here()
    group = PAIRED if paired else ALONE
    text = f"tcgen05.commit.{group}.mbarrier::arrive::one.shared::cluster.b64 [$0];"
    if blocks > 1:
        text = text.replace(".b64 [$0];", ".multicast::cluster.b64 [$0], blocks; }")
        text = f"{{ .reg .b16 blocks; mov.b16 blocks, {(1 << blocks) - 1}; {text}"
    em.asm(text, VOID, "r,~{memory}", [barrier], effect=True)


def _check(generator: PhaseGenerator, loop: Loop, node: Compute) -> None:
    """`Unsupported` for what such a loop cannot do yet."""
    kernel, name = generator.kernel, node.instruction
    packs = leading_packs(loop)
    read = {matched(node, generator.scope).a.buffer.name, matched(node, generator.scope).b.buffer.name}
    producer = kernel.gpu.producer
    if matched(node, generator.scope).instruction.m != ROWS:
        raise Unsupported(f"{name} has {ROWS} rows for each warpgroup where it is all that its loop does", node.span,
                          f"map the rows with warpgroup({ROWS})")  # fmt: skip
    if producer is None or producer.warps <= MULTIPLIER:
        raise Unsupported(f"{name} needs warps beside those that compute, one of which issues its products", node.span,
                          "write: producer warpgroup(40)")  # fmt: skip
    if kernel.gpu.order.stream is not None:
        raise Unsupported(f"{name} in a stream of sums", node.span, "leave `stream` out")
    if any(p.by != "tma" for p in packs) or not read <= {p.buffer for p in packs}:
        raise Unsupported(f"{name} multiplies tiles that its pipe loop stages by tma", node.span,
                          "stage both operands in shared at the loop of the sum by tma")  # fmt: skip
    beside = len(loop.body) > len(packs) + 1
    if beside and (kernel.gpu.sides > 1 or not sums_beside(loop, generator.scope)):
        raise Unsupported(f"{name} beside sums that warps join, or by sides of a block", node.span,
                          "sum in a kernel of its own")  # fmt: skip
    if not starts_from_zero(generator.phase, loop, node):
        raise Unsupported(f"{name} would add to what '{node.target.tensor}' holds already", node.span,
                          "let the sum begin in front of its pipe loop")  # fmt: skip


def starts_from_zero(phase: Sequence[Statement], loop: Loop, node: Compute) -> bool:
    """Is the last that was written to the sum before its loop zeros, and has the loop a turn?"""
    before: Compute | None = None
    for body in (phase, *(s.body for s in statements_in(phase) if isinstance(s, Loop))):
        if any(s is loop for s in body):
            at = next(n for n, s in enumerate(body) if s is loop)
            written = [
                s for s in statements_in(body[:at]) if isinstance(s, Compute) and s.target.tensor == node.target.tensor
            ]
            before = written[-1] if written else None
    return _some(phase, loop) and before is not None and before.value == Num(0.0) and not before.accumulate


def _some(phase: Sequence[Statement], loop: Loop) -> bool:
    """Has the loop a turn, whatever the loops around it stand at? Of a part that begins at `z` and ends at the smaller
    of `z + n` and the end of all parts: those begin before it."""
    start = affine_form(loop.start)
    ends = loop.stop.args if isinstance(loop.stop, Call) and loop.stop.function == "min" else (loop.stop,)
    around = {s.variable: s for s in statements_in(phase) if isinstance(s, Loop)}
    return start is not None and all(_before(start, end, around) for end in ends)


def _before(start: Affine, end: Expr, around: Mapping[str, Loop]) -> bool:
    last = affine_form(end)
    if last is None:
        return False
    length = last - start
    most = length.constant
    for name, factor in length.terms:  # (with the loops around at their last turns)
        other = around.get(name)
        stop, begin = (affine_form(x) for x in (other.stop, other.start)) if other is not None else (None, None)
        if other is None or stop is None or begin is None or stop.terms or begin.terms:
            return False
        turns = -(-(stop.constant - begin.constant) // other.step)
        most += factor * (begin.constant + (turns - 1) * other.step if factor < 0 else begin.constant)
    return most > 0
