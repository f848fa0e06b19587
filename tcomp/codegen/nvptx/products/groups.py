"""Groups of asynchronous matrix instructions (wgmma) between their issue and the wait that ends them.

A contraction is issued where it stands and awaited where a statement first touches what it writes: those between run
beside it. One whose `Compute` is `late` is issued a turn later, behind what that turn issues before it first waits:

    turn j:  issue S_j = Q K_j and O += P_j-1 V_j-1;  wait for S_j;  P_j = softmax(S_j) beside the second;  wait for O

Groups end in the order of their issue. PTX ISA, section 9.7.15.7 (wgmma.commit_group, wgmma.wait_group).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from tcomp.codegen.llvm.types import I32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.products.tensor_group import TensorGroup
from tcomp.codegen.nvptx.products.warpgroup import WarpgroupGenerator, wait_groups
from tcomp.ir.tile import Compute, Loop, Statement

_UNLIKELY = 0x35A7C96B
_NEVER = (
    "{ .reg .b32 x; .reg .pred p; mov.u32 x, %ctaid.x; shr.u32 x, x, 31; setp.ne.u32 p, x, 0; "
    "L: @p nanosleep.u32 1; @p bra L; }"
)
"""A loop of no turns (no grid has so many blocks), which the assembler moves nothing across."""


@dataclass(frozen=True)
class Group:
    """`slots` hold the accumulators that the group writes; `tiles` are the shared tiles that it reads in place."""

    generator: WarpgroupGenerator | TensorGroup
    slots: tuple[IrValue, ...]
    tiles: frozenset[str]
    late: bool = False

    @property
    def target(self) -> str:
        return self.generator.node.target.tensor


@dataclass(frozen=True)
class Postponed:
    """A contraction that is issued later; `cells` hold its operands' registers and descriptors until then."""

    generator: WarpgroupGenerator | TensorGroup
    cells: tuple[IrValue, ...]


class Groups:
    """What a warpgroup has issued and not yet awaited, oldest first, and what it will issue late."""

    def __init__(self, em: GpuEmitter) -> None:
        self.em = em
        self.pending: list[Group] = []
        self.pieces: dict[int, TensorGroup] = {}
        """contractions whose sums are in tensor memory, by number"""
        self.postponed: list[Postponed] = []
        self.caught_up: Callable[[], None] = _nothing
        """Called where all that was late has ended: nothing reads the tiles of the turn before any more."""
        self.beside: tuple[IrValue, ...] = ()
        """Registers last written beside what runs, with no branch since."""
        self._cells: dict[int, tuple[IrValue, ...]] = {}
        self.written: tuple[IrValue, ...] = ()
        """Registers that the last Compute wrote."""
        self._ended: set[str] = set()
        """Results of groups that ended in this turn."""

    def issue(self, generator: WarpgroupGenerator | TensorGroup) -> None:
        """Start a contraction."""
        if isinstance(generator, TensorGroup):
            self._await_own(generator)  # (its place in tensor memory is one)
        self._start(generator, generator.inputs())

    def _await_own(self, generator: WarpgroupGenerator | TensorGroup) -> None:
        """Wait for what was issued before with that result, or in the same place."""
        shares = generator.shares if isinstance(generator, TensorGroup) else frozenset()
        target = generator.node.target.tensor
        running = [i for i, g in enumerate(self.pending) if g.target == target or id(g.generator.node) in shares]
        if running:
            self._await(running[-1] + 1)

    def postpone(self, generator: WarpgroupGenerator | TensorGroup) -> None:
        """Keep a contraction's operands for the next turn, which issues it. The registers that they are kept in may
        still be read by the one of the turn before: that is awaited."""
        self._await_own(generator)
        if any(p.generator.node is generator.node for p in self.postponed):
            self.issue_postponed()
        inputs = generator.inputs()
        key = id(generator.node)
        if key not in self._cells:
            b = self.em.builder
            b.position_at_start(self.em.function.entry_basic_block)  # (where LLVM makes registers of them)
            self._cells[key] = tuple(b.alloca(v.type, name="late") for v in inputs)
        b = self.em.here()
        for cell, value in zip(self._cells[key], inputs, strict=True):
            b.store(value, cell)
        self.postponed.append(Postponed(generator, self._cells[key]))

    def ready(self, done: Sequence[Statement], later: Sequence[Statement]) -> None:
        """These statements have been written, and are followed by those: of what is complete now as a left operand in
        tensor memory is put there."""
        written = {s.target.tensor for s in done if isinstance(s, Compute) and not s.instruction}
        for piece in self.pieces.values():
            name = piece.match.a.buffer.name
            if piece.left is not None or name not in written:
                continue
            at = next((n for n, s in enumerate(later) if s is piece.node), None)
            if at is not None and not any(_writes(s, name) for s in later[:at]):
                if any(p.generator is piece for p in self.postponed):
                    self.issue_postponed()
                if piece.shares.intersection(id(g.generator.node) for g in self.pending):
                    self._await_own(piece)
                piece.prepare(any(g.generator is piece for g in self.pending))

    def before(self, touched: Set[str] | None) -> None:
        """Wait for what writes these register tiles or reads these shared ones (None: for everything), and issue what
        is late before the first wait."""
        if touched is not None and not self._concerned(touched):
            return
        self.issue_postponed()
        last = len(self.pending) if touched is None else self._concerned(touched)
        self._await(last)

    def issue_postponed(self) -> None:
        late, self.postponed = self.postponed, []
        for p in late:
            b = self.em.here()
            self._start(p.generator, [b.load(c, typ=c.allocated_type) for c in p.cells], late=True)

    def end(self, keep: int = 0) -> None:
        """The statements of a turn end: wait for all that was issued but the `keep` newest groups, which the next turn
        finds pending. (What is late has not been issued yet.)"""
        if len(self.pending) > keep:
            self._await(len(self.pending) - keep)
        self.pending = [replace(g, late=True) for g in self.pending]
        self._ended.clear()

    def resume(self, generator: WarpgroupGenerator) -> None:
        """The turn before has left this contraction running."""
        self.pending.append(Group(generator, tuple(generator.slots()), generator.tiles(), late=True))

    def concerns(self, touched: Set[str]) -> bool:
        """Would `before` have something to wait for?"""
        return self._concerned(touched) > 0

    def _concerned(self, touched: Set[str]) -> int:
        """How many of the oldest groups must end before these buffers are touched; at least 1 for late ones."""
        late = any(p.generator.node.target.tensor in touched for p in self.postponed)
        found = [i for i, g in enumerate(self.pending) if g.target in touched or g.tiles & touched]
        return max((i + 1 for i in found), default=int(late))

    def _start(self, generator: WarpgroupGenerator | TensorGroup, inputs: list[IrValue], late: bool = False) -> None:
        target = generator.node.target.tensor
        if target in self._ended and isinstance(generator, WarpgroupGenerator):
            # What has read the result stays before what makes it anew: it would take other registers.
            self.em.between(_NEVER, self.written)
        generator.issue(inputs)
        slots = generator.slots()
        earlier = [g for g in self.pending if g.target == target]
        tiles = generator.tiles().union(*(g.tiles for g in earlier))
        late = late or any(g.late for g in earlier)
        self.pending = [g for g in self.pending if g.target != target] + [Group(generator, tuple(slots), tiles, late)]

    def _await(self, count: int) -> None:
        """Wait for the `count` oldest groups; whoever reads their accumulators reads them after that."""
        done, self.pending = self.pending[:count], self.pending[count:]
        pending: int | None = len(self.pending)
        if self.beside and any(g.late and isinstance(g.generator, WarpgroupGenerator) for g in done):
            self._first_of_all()
        for g in done:
            self._ended.add(g.target)
            if isinstance(g.generator, TensorGroup):
                g.generator.wait()
                continue
            wait_groups(self.em, pending, g.slots)
            pending = None  # one wait is for all
        if any(g.late for g in done) and not any(g.late for g in self.pending):
            self.caught_up()

    def _first_of_all(self) -> None:
        """Let the wait that follows stay behind what was to run beside the products. (A wait names no registers: in
        code without a branch the assembler moves it up to the products, but not past a thread that may sleep.)"""
        em, first, last = self.em, self.beside[0], self.beside[-1]
        b = em.here()
        found = [b.bitcast(b.load(s, typ=s.allocated_type), I32) for s in (first, last)]
        text = f"{{ .reg .pred p; setp.eq.b32 p, $0, {_UNLIKELY}; @p nanosleep.u32 1; }}"
        em.effect(text, "r", [b.xor(*found)])
        self.beside = ()


def _writes(s: Statement, tensor: str) -> bool:
    return isinstance(s, Loop) or (isinstance(s, Compute) and s.target.tensor == tensor)


def _nothing() -> None:
    pass
