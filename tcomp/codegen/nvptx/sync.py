"""Where a block's threads must wait for each other.

One pass over the statements keeps what has been read and written since the last barrier; a statement that touches
memory which another thread may have written (or may still read) gets a barrier before it. Loop bodies are passed over
until nothing changes, so that a turn meets the accesses of the one before it. Memory that threads of one
block meet in: shared tiles, and operands and team tiles that the phase itself writes, or whose memory they may take.

Two accesses need no barrier when every element is touched by the same thread in both: same ranges, same spreads, and
no threads that hold copies or have fewer values than their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tcomp.codegen.llvm.integers import Affine, affine_form
from tcomp.codegen.nvptx.layout import last_turns, leading_packs, pipe_stages
from tcomp.codegen.nvptx.threads.domain import spread_of
from tcomp.codegen.nvptx.threads.plan import joins_warps, sharing_of
from tcomp.dsl.ast import Access, Binary, Name, accesses_in
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Axis, Buffer, Compute, Loop, Pack, Scope, Spread, Statement, Unpack
from tcomp.ir.walk import reads_of, statements_in

Dimension = tuple[Affine | str, Spread | None]


@dataclass(frozen=True)
class Touch:
    """One access: `owner` says which thread touches which element, None where it cannot be told."""

    buffer: str
    owner: tuple[Dimension, ...] | None


@dataclass
class Pending:
    """Accesses since the last barrier. `copies`: background copies that nobody has waited for."""

    reads: set[Touch] = field(default_factory=set)
    writes: set[Touch] = field(default_factory=set)
    copies: bool = False

    def copy(self) -> Pending:
        return Pending(set(self.reads), set(self.writes), self.copies)

    def join(self, other: Pending) -> None:
        self.reads |= other.reads
        self.writes |= other.writes
        self.copies = self.copies or other.copies

    def clear(self) -> None:
        self.reads.clear()
        self.writes.clear()
        self.copies = False

    def without(self, variable: str) -> Pending:
        """As the next turn of a loop sees it: an owner that depends on the loop's variable is another one now."""

        def moved(t: Touch) -> Touch:
            return Touch(t.buffer, None) if t.owner is not None and any(
                isinstance(f, str) or f.coefficient(variable) for f, _ in t.owner) else t  # fmt: skip

        return Pending({moved(t) for t in self.reads}, {moved(t) for t in self.writes}, self.copies)


@dataclass
class Sync:
    """Statements (by path) that need a barrier before them, and those whose barrier first awaits background copies."""

    barriers: set[tuple[int, ...]] = field(default_factory=set)
    awaits: set[tuple[int, ...]] = field(default_factory=set)


class Planner:
    """Places the barriers of one phase."""

    def __init__(
        self,
        phase: Sequence[Statement],
        buffers: Mapping[str, Buffer],
        threads: ThreadShape,
        persistent: bool = False,
        inplace: Iterable[tuple[str, str]] = (),
        handed: frozenset[str] = frozenset(),
        meeting: frozenset[int] = frozenset(),
    ) -> None:
        """`inplace` are (output, input) pairs that may share memory; `handed` are tiles that a producer's warp
        delivers, which need no barrier for it. `meeting` are the numbers of statements that all threads come to a
        barrier for anyway."""
        self.buffers, self.threads, self.persistent, self.handed = buffers, threads, persistent, handed
        self.meeting = meeting
        self.sync = Sync()
        written = {w for s in statements_in(phase) for w in _written(s)}
        # (What the copy engine fills is guarded by mbarriers: `copies/ring.py`.)
        filled = {s.buffer for s in statements_in(phase) if isinstance(s, Pack) and s.by == "tma"}
        filled |= {s.buffer for s in statements_in(phase) if isinstance(s, Unpack)}
        self.met = {n for n, b in buffers.items() if (b.scope is Scope.SHARED and n not in filled)
                    or (b.scope in (Scope.OPERAND, Scope.TEAM) and n in written)}  # fmt: skip
        self.places: dict[str, list[str]] = {}
        """of each output that may be in an input's memory, all inputs whose it may be"""
        for out, source in sorted(inplace):
            if out in written:
                self.places.setdefault(out, []).append(source)
                self.met.add(source)
        self.apart = {id(s) for s in last_turns(phase)}
        """loops that wait for what they read, and write what no other statement touches"""

    def plan(self, phase: Sequence[Statement]) -> Sync:
        self._body(phase, (), Pending())
        return self.sync

    def _body(self, body: Iterable[Statement], path: tuple[int, ...], pending: Pending) -> None:
        for i, s in enumerate(body):
            self._statement(s, (*path, i), pending)

    def _statement(self, s: Statement, path: tuple[int, ...], pending: Pending) -> None:
        match s:
            case Loop() if id(s) in self.apart:
                pass
            case Loop():
                self._loop(s, path, pending)
            case Pack() if s.by == "tma":
                pass
            case Pack():
                reads = [t for n in _packed(s) for t in self._touches(n, None)]
                self._meet(path, pending, reads, [Touch(s.buffer, None)])
                pending.copies = pending.copies or s.by == "cp.async"
            case Unpack():
                # Its tile is handed over behind a barrier, of the block or of a group of its warps.
                if not pending.copies and s.groups == 1 and s.buffer not in self.handed:
                    pending.clear()
            case Compute():
                self._compute(s, path, pending)

    def _compute(self, s: Compute, path: tuple[int, ...], pending: Pending) -> None:
        if id(s) in self.meeting and not pending.copies:
            pending.clear()
        sharing = sharing_of(s, self.threads)
        # A matrix instruction's lanes read rows that their neighbours own.
        copies = bool(sharing.unused) or bool(s.instruction)
        reads = [t for a in reads_of(s) for t in self._touches(a.tensor, None if copies else self._owner(s, a))]
        # Of threads that hold copies only the first reads the old target and writes: an owner like any other.
        owner = self._owner(s, s.target)
        if copies and owner is not None:
            owner = (*owner, (" ".join(sorted(sharing.unused)), None))
        writes = self._touches(s.target.tensor, owner)
        old = list(writes) if s.accumulate else []
        if joins_warps(sharing):
            writes.append(Touch(f"exchange {id(s)}", None))
        self._meet(path, pending, reads + old, writes)
        if joins_warps(sharing):
            pending.reads.add(Touch(f"exchange {id(s)}", None))

    def _touches(self, name: str, owner: tuple[Dimension, ...] | None) -> list[Touch]:
        """The accesses that an access to a buffer may be; none where threads do not meet in it."""
        return [Touch(n, owner) for n in self.places.get(name, [name])] if name in self.met else []

    def _meet(self, path: tuple[int, ...], pending: Pending, reads: Sequence[Touch], writes: Sequence[Touch]) -> None:
        """Put a barrier before the statement if it clashes with what is pending, then add its own accesses."""
        clash = any(_clash(r, w) for r in reads for w in pending.writes)
        clash = clash or any(_clash(w, t) for w in writes for t in (*pending.reads, *pending.writes))
        if clash or path in self.sync.barriers:
            self.sync.barriers.add(path)
            if pending.copies:
                self.sync.awaits.add(path)
            pending.clear()
        pending.reads.update(reads)
        pending.writes.update(writes)

    def _loop(self, s: Loop, path: tuple[int, ...], pending: Pending) -> None:
        if s.level == "grid":
            # Turns are different blocks, which nothing orders; of a persistent block they share its shared memory.
            self._body(s.body, path, pending)
            known = -1
            while self.persistent and known != len(self.sync.barriers):
                known = len(self.sync.barriers)
                self._body(s.body, path, self._within_block(pending.without(s.variable)))
            return
        packs = leading_packs(s) if s.level == "pipe" else ()
        packs = () if any(p.by == "tma" for p in packs) else packs
        stages = pipe_stages(s)
        reads = [t for p in packs for n in _packed(p) for t in self._touches(n, None)]
        writes = [Touch(p.buffer, None) for p in packs]
        if packs:
            # The first packs are issued before the loop; inside, each turn begins with a barrier.
            self._meet(path, pending, reads, writes)
        skipped = pending.copy()
        entering = pending.copy()
        while True:
            before = (len(entering.reads), len(entering.writes), entering.copies, len(self.sync.barriers))
            turn = entering.copy()
            if packs:
                turn.clear()
            for i, inner in enumerate(s.body):
                if i >= len(packs):
                    self._statement(inner, (*path, i), turn)
            if packs and stages > 1:
                turn.reads.update(reads)
            entering.join(turn.without(s.variable))
            if before == (len(entering.reads), len(entering.writes), entering.copies, len(self.sync.barriers)):
                break
        pending.clear()
        pending.join(turn.without(s.variable))
        pending.join(skipped)
        if packs:
            pending.copies = skipped.copies

    def _within_block(self, pending: Pending) -> Pending:
        """What is pending in memory of the block's own."""
        shared = {n for n, b in self.buffers.items() if b.scope not in (Scope.OPERAND, Scope.TEAM, Scope.WORDS)}
        reads, writes = (
            {t for t in ts if t.buffer in shared or t.buffer.startswith("exchange")}
            for ts in (pending.reads, pending.writes)
        )
        return Pending(reads, writes, pending.copies)

    def _owner(self, s: Compute, access: Access) -> tuple[Dimension, ...] | None:
        """Which thread touches which element: per dimension, where the axis starts and how it is shared out."""
        axes = {a.name: a for a in s.axes}
        found: list[Dimension] = []
        walked: set[str] = set()
        for x in access.subscripts:
            form = affine_form(x)
            if form is None:
                if isinstance(x, Binary) and x.op == "-" and isinstance(x.left, Name) and x.left.id in axes:
                    a = axes[x.left.id]
                    if x.right == a.start:
                        walked.add(a.name)
                        found.append((Affine(), spread_of(a)))
                        continue
                return None
            inner = [(n, c) for n, c in form.terms if n in axes]
            if not inner:
                found.append((form, None))
                continue
            if len(inner) > 1 or inner[0][1] != 1:
                return None
            a = axes[inner[0][0]]
            start = affine_form(a.start)
            if start is None or a.name in walked:
                return None
            walked.add(a.name)
            found.append((form - Affine(((a.name, 1),)) + start, spread_of(a)))
        divided = [a for a in s.axes if spread_of(a).lane or spread_of(a).warp]
        known = all((a.name in walked or a.name in s.reduced) and _whole(a) for a in divided)
        return tuple(found) if known else None


def _whole(a: Axis) -> bool:
    """Does every thread have all its values? Where one has not, it reads a neighbour's and drops it."""
    s = spread_of(a)
    start, stop = affine_form(a.start), affine_form(a.stop)
    full = start is not None and stop is not None and stop - start == Affine((), a.block)
    return full and s.per_thread(a.block) * s.lanes * s.warps == a.block


def _clash(a: Touch, b: Touch) -> bool:
    return a.buffer == b.buffer and (a.owner is None or a.owner != b.owner)


def _written(s: Statement) -> set[str]:
    match s:
        case Compute():
            return {s.target.tensor}
        case Pack():
            return {s.buffer}
        case Unpack():
            return {s.target.tensor}
    return set()


def _packed(p: Pack) -> set[str]:
    """Buffers that a Pack reads."""
    return {p.source.tensor, *(a.tensor for x in p.source.subscripts for a in accesses_in(x))}
