"""Launches of one small kernel, for many layers, as one launch.

    l0: s0 = scales(h[0])   ...  y = linear(x, w[0], s0)         s = scales.x2(h)
    l1: s1 = scales(h[1])   ...  z = linear(y, w[1], s1)   -->   l0: y = linear(x, w[0], s[0])
                                                                 l1: z = linear(y, w[1], s[1])

A kernel of one block (or one core's work) costs a launch (or a meeting of all threads) and memory's latency, however
little it computes: the scales of 8-bit layers and their histories. Of several such launches all move up to the first
where nothing in between makes what they read (scales follow from a state), or down to the last where nothing in between
reads what they make (a state's next value). Operands that are parts of one tensor, at equal distances, are read and
written there; those that are tensors become rows of one, which lives as long as any of them did.

No large tensor lives longer for it. Kernels of more blocks that do not fill a GPU (a layer's weights in 8 bits) are
joined until they do, and only where what they read is parts of tensors and scalars: they move up, so that no activation
lives longer but what they give. Or they move down, where little lives longer for it (a layer's sums for its biases,
which the last of them joins).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd, prod

from tcomp.ir.batch import Rows, batchable, batched, turns_of
from tcomp.ir.tile import Buffer, Kernel
from tcomp.model.graph import Tensor, View
from tcomp.model.lowering import PlannedLaunch
from tcomp.model.placement import ALIGNMENT
from tcomp.model.zeros import gaps

VECTOR = 16
"""Bytes of a GPU's widest access: an operand of as many, or more, begins at a multiple of them"""

LONGER = 1 << 20
"""Bytes at most that a launch of one block has in tensors which live longer when it is joined with others; one of
several blocks that moves down twice as many"""

Persistent = tuple[Tensor | None, ...]
"""for each operand, the persistent tensor that it is a part of: launches that are one have the same"""

Steps = tuple[int | None, ...]
"""for each operand, how many elements a launch's is behind that of the launch before; None: in a tensor of its own"""


def in_batches(
    launches: Sequence[PlannedLaunch],
    alone: Sequence[bool],
    persistent: Collection[Tensor],
    room: int,
    add: Callable[[Kernel], str],
) -> tuple[tuple[PlannedLaunch, ...], tuple[bool, ...]]:
    """The launches with those of small kernels joined, and `alone` of each (whether it runs in a forward pass alone:
    only launches alike in that are joined). `persistent` tensors stay what they are; `room` is the most threads that
    several blocks are joined to (0: only kernels of one block are); `add` stores a kernel and gives its name."""
    state = _Launches(launches)
    same: dict[tuple[str, bool, Persistent], list[int]] = defaultdict(list)
    for at, (launch, forward) in enumerate(zip(launches, alone, strict=True)):
        kind = tuple(v.tensor if v.tensor in persistent else None for v in launch.views)
        same[launch.key, forward, kind].append(at)
    repeated = [m for m in same.values() if len(m) > 1 and batchable(launches[m[0]].kernel)]
    for members in sorted(repeated, key=lambda m: turns_of(launches[m[0]].kernel) > 1):
        most = _most(launches[members[0]].kernel, room)
        for run in _runs(state.items, members, persistent):
            for piece in _pieces(run, most):
                state.join(piece, persistent, add)
    kept = [(x.launch, forward) for x, forward in zip(state.items, alone, strict=True) if x is not None]
    return tuple(x for x, _ in kept), tuple(forward for _, forward in kept)


def _most(kernel: Kernel, room: int) -> int | None:
    """How many launches of the kernel are one at most; None: as many as there are."""
    blocks = turns_of(kernel)
    if blocks == 1:
        return None
    return room // (blocks * kernel.blocks.shape.threads) if kernel.blocks is not None else 0


def _pieces(run: list[int], most: int | None) -> list[list[int]]:
    """A run in pieces of at most so many launches, two or more each."""
    size = len(run) if most is None else max(1, most)
    return [p for at in range(0, len(run), size) if len(p := run[at : at + size]) > 1]


@dataclass(frozen=True)
class _Item:
    """A launch and what it touches, with whether it writes that: of several that are one, exactly the parts of each."""

    launch: PlannedLaunch
    touched: tuple[tuple[View, bool], ...]

    def moved(self, places: Mapping[Tensor, View]) -> _Item:
        """The same where tensors have become rows of others."""
        if not any(v.tensor in places for v, _ in self.touched):
            return self

        def of(v: View) -> View:
            p = places.get(v.tensor)
            return v if p is None else View(p.tensor, p.offset + v.offset, v.shape)

        launch = replace(self.launch, views=tuple(map(of, self.launch.views)))
        return _Item(launch, tuple((of(v), written) for v, written in self.touched))


def _touched(x: PlannedLaunch) -> Iterator[tuple[View, bool]]:
    yield from ((v, o.name in x.kernel.writes) for o, v in zip(x.kernel.operands, x.views, strict=True))


def _longer(x: _Item, earlier: bool, persistent: Collection[Tensor]) -> int:
    """Bytes of the tensors that live longer where the launch comes earlier (its results) or later (what it reads)."""
    tensors = {v.tensor for v, written in x.touched if written == earlier and v.tensor not in persistent}
    return sum(t.bytes for t in tensors)


def _runs(items: Sequence[_Item | None], members: Sequence[int], persistent: Collection[Tensor]) -> list[list[int]]:
    """The members' positions in runs of two or more that can be one launch, as far as their operands go."""
    runs: list[list[int]] = []
    steps: Steps | None = None
    for i in members:
        before, item = items[runs[-1][-1]] if runs else None, items[i]
        found = None if before is None or item is None else _steps(before.launch, item.launch, persistent)
        if found is not None and (len(runs[-1]) == 1 or found == steps):
            runs[-1].append(i)
            steps = found
        else:
            runs.append([i])
    return [r for r in runs if len(r) > 1]


def _steps(a: PlannedLaunch, b: PlannedLaunch, persistent: Collection[Tensor]) -> Steps | None:
    """How far the second launch's operands are behind the first's; None where the two cannot be one."""
    steps: list[int | None] = []
    for o, v, w in zip(a.kernel.operands, a.views, b.views, strict=True):
        if v.tensor is w.tensor:
            step = w.offset - v.offset
            if o.name in a.kernel.writes if step == 0 else _rows(o, abs(step), 2) is None:
                return None
            steps.append(step)
        elif v.covers and w.covers and v.tensor not in persistent and w.tensor not in persistent:
            steps.append(None)
        else:
            return None
    return None if len({s > 0 for s in steps if s}) > 1 else tuple(steps)


class _Launches:
    """The launches by their positions at first, None where one is part of another; `users` are the positions of those
    that may touch a tensor."""

    def __init__(self, launches: Sequence[PlannedLaunch]) -> None:
        self.items: list[_Item | None] = [_Item(x, tuple(_touched(x))) for x in launches]
        self.users: dict[Tensor, set[int]] = defaultdict(set)
        for i, x in enumerate(launches):
            for v in x.views:
                self.users[v.tensor].add(i)

    def join(self, run: Sequence[int], persistent: Collection[Tensor], add: Callable[[Kernel], str]) -> None:
        """Make the launches at these positions one, if that is possible."""
        items = [x for i in run if (x := self.items[i]) is not None]
        batch, place = _batch([x.launch for x in items], persistent), self.place(run)
        if batch is None or place is None or not self.filled(batch, persistent):
            return
        small, up = turns_of(batch.first.kernel) == 1, place == run[0]
        if not small and up:
            if not batch.reads_parts:
                return
        elif any(_longer(x, up, persistent) > LONGER * (1 if small else 2) for x in items):
            return
        joined = _Item(batch.launch(add), tuple(t for x in items for t in x.touched))
        for i in run:
            self.items[i] = joined if i == place else None
        for old, row in batch.places.items():
            for i in self.users[old]:
                item = self.items[i]
                self.items[i] = None if item is None else item.moved(batch.places)
            self.users[row.tensor] |= self.users[old]

    def filled(self, batch: _Batch, persistent: Collection[Tensor]) -> bool:
        """Is all that lies between parts which are written written, too, by others? It would count as written: who
        gives memory clears what no launch writes, and activations lie where a gradient is not yet."""
        for v in batch.apart:
            touched = (t for i in self.users[v.tensor] if (x := self.items[i]) is not None for t in x.touched)
            written = [(w.offset, w.offset + w.elements) for w, wrote in touched if wrote and w.tensor is v.tensor]
            if v.tensor in persistent and any(gaps(v, written)):
                return False
        return True

    def place(self, run: Sequence[int]) -> int | None:
        """Where all launches of the run may be one: at the first's place or the last's; None where at neither."""
        if all(self.free(i, run[0], i) for i in run):
            return run[0]
        return run[-1] if all(self.free(i, i, run[-1]) for i in run) else None

    def free(self, i: int, low: int, high: int) -> bool:
        """May launch i pass those at low .. high?"""
        x = self.items[i]
        return x is not None and not any(
            (wrote or written) and v.meets(w)
            for v, written in x.touched
            for j in self.users[v.tensor]
            if low <= j <= high and j != i and (y := self.items[j]) is not None
            for w, wrote in y.touched
        )


@dataclass(frozen=True)
class _Batch:
    """What is one launch: its operands' `rows` and `views`, and the `places` of tensors that are rows of others now."""

    first: PlannedLaunch
    turns: int
    rows: dict[str, Rows]
    views: tuple[View, ...]
    places: dict[Tensor, View]

    @property
    def reads_parts(self) -> bool:
        """Is all that it reads a part of what is one tensor anyway?"""
        kernel = self.first.kernel
        made = {p.tensor for p in self.places.values()}
        given = kernel.reads - kernel.writes
        return not any(v.tensor in made for o, v in zip(kernel.operands, self.views, strict=True) if o.name in given)

    @property
    def apart(self) -> Iterator[View]:
        """What it writes in parts that do not lie side by side: from the first to the last."""
        for o, v in zip(self.first.kernel.operands, self.views, strict=True):
            if o.name in self.first.kernel.writes and o.name in self.rows and self.rows[o.name].gaps:
                yield v

    def launch(self, add: Callable[[Kernel], str]) -> PlannedLaunch:
        kernel = batched(self.first.kernel, self.turns, self.rows)
        key = add(kernel)
        return PlannedLaunch(key, replace(kernel, name=key), self.views, f"{self.first.label} (x{self.turns})")


def _batch(run: Sequence[PlannedLaunch], persistent: Collection[Tensor]) -> _Batch | None:
    """The run as one launch; None where its operands do not go together (any more)."""
    between = {_steps(a, b, persistent) for a, b in pairwise(run)}
    steps = between.pop()
    if steps is None or between:
        return None
    if any(s is not None and s < 0 for s in steps):
        run, steps = run[::-1], tuple(None if s is None else -s for s in steps)
    rows: dict[str, Rows] = {}
    views: list[View] = []
    places: dict[Tensor, View] = {}
    for at, (o, view, step) in enumerate(zip(run[0].kernel.operands, run[0].views, steps, strict=True)):
        if step is None:
            shape = _padded(o)
            t = view.tensor
            whole = Tensor(f"{t.name}.x{len(run)}", t.dtype, (len(run), *shape), t.kind, t.owner)
            own = [x.views[at].tensor for x in run]
            if len({*own, *places}) < len(own) + len(places):
                return None
            places |= {t: View(whole, i * prod(shape), shape) for i, t in enumerate(own)}
            rows[o.name] = Rows(whole.shape, scalar=not o.shape)
            views.append(whole.whole())
        elif step == 0:
            views.append(view)
        else:
            found = _rows(o, step, len(run))
            if found is None or view.offset + prod(found.shape) > view.tensor.elements:
                return None
            if run[0].kernel.blocks is not None and view.offset * o.dtype.bytes % VECTOR:
                return None
            rows[o.name] = found
            views.append(View(view.tensor, view.offset, found.shape))
    return _Batch(run[0], len(run), rows, tuple(views), places)


def _rows(o: Buffer, step: int, turns: int) -> Rows | None:
    """So many parts of a tensor, each so many elements behind the one before; None where that is no number of rows."""
    if not o.elements or step < o.elements:
        return None
    if step % o.elements == 0:
        each = step // o.elements
        return Rows(((turns - 1) * each + 1, *o.shape), each, gaps=each > 1)
    rest = prod(o.shape[1:])
    return Rows((turns, step // rest, *o.shape[1:]), gaps=True) if step % rest == 0 else None


def _padded(o: Buffer) -> tuple[int, ...]:
    """The shape of one row of such operands: whole units of the arena's alignment."""
    unit = ALIGNMENT // o.dtype.bytes
    if not o.shape:
        return (unit,)
    first, *rest = o.shape
    unit //= gcd(unit, prod(rest))
    return (-(-first // unit) * unit, *rest)
