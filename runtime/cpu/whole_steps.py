"""Training steps one behind the other, as programs that overlap: what an update leaves for the next step, and where a
gradient's norm is summed.

    forward, backward | norm, AdamW | forward, ...   -->   AdamW (embeddings) | forward    | backward, norm | ...
                                                                              | AdamW ...  |

An update of parameters by flat vectors is memory's work on one thread already, while products wait for arithmetic. So
an update ends with its scalars (learning rate, norm), and its vectors (those of its last launches, as far as these have
nothing to do with each other) are cut into shares, in the order in which the next step needs them. What is needed up to
the first launch that arithmetic binds is done by all threads; from there on some threads do the rest of the shares,
while the others go on (`interpreter.py`). Which bytes a launch needs, or writes over, follows from the places of its
operands, so nothing is assumed of the model. Of a table whose rows are chosen by an input, the shares with those rows
come first; they are found anew in each step. The scalars that the shares read are copied, for who runs a step writes
some (its number).

A norm reads all gradients once more. Its partial sums go by fixed blocks; each is summed as soon as its gradients are
final, when part of them is still in a cache.

Every share computes what it would in the programs alone, so results are bitwise the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tcomp.ir.rows import chosen_rows
from tcomp.ir.shares import Shares, flat_shares
from tcomp.ir.tile import Kernel
from tcomp.model.step import Launch, Step

SHARE = 1 << 15
"""Elements of a share: long enough to stream, short enough that nobody waits for the one before"""
SHADOW = 64
"""Bytes from one copied scalar to the next"""
ARITHMETIC = 16
"""FLOPs a byte of operands from which on a launch leaves the memory to others"""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """A phase of a launch: all of it, or shares `first` to `last` - 1 of `parts`. `region` numbers the launches of the
    update, whose phases have memory in common that others leave alone (-1: the team's). `needs` entries beside must be
    done before."""

    launch: Launch
    phase: int
    region: int = -1
    parts: int = 0
    first: int = 0
    last: int = 0
    needs: int = 0


@dataclass(frozen=True)
class Chosen:
    """Shares of what the update left that a launch before the fork reads rows of: `count` 32-bit numbers at byte `at`
    of the arena say which rows, of `row` elements, from element `base` on. `starts` are the shares' first elements and
    the end; `places` has the place of each in the list beside (-1: not there). Entry `entry` is for the shares found.
    """

    at: int
    count: int
    row: int
    base: int
    starts: Ints
    places: Ints
    entry: int

    def among(self, numbers: Ints) -> Ints:
        """The shares in which rows of these numbers lie, of those that are in the list beside; ascending."""
        low = self.base + np.unique(numbers) * self.row
        change = np.zeros(len(self.starts) + 1, np.int64)
        np.add.at(change, np.searchsorted(self.starts, low, side="right") - 1, 1)
        np.add.at(change, np.searchsorted(self.starts, low + self.row, side="left"), -1)
        met = np.flatnonzero(np.cumsum(change)[: len(self.places)])
        return met[self.places[met] >= 0]


@dataclass(frozen=True)
class Program:
    """`side` runs beside `entries`, from entry `fork` on. `turns` numbers the launches that entries belong to; `wanted`
    has the first launch that each entry of `side` must come before. `chosen` is what data may put in front."""

    entries: tuple[Entry, ...]
    side: tuple[Entry, ...] = ()
    fork: int = 0
    turns: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()
    chosen: tuple[Chosen, ...] = ()


class WholeSteps:
    """The overlapping programs of a step. Scalars of what is left for the next step are copied to `shadow` (bytes from
    the arena's beginning) and every `SHADOW` bytes on."""

    def __init__(self, step: Step, shadow: int) -> None:
        self.step = step
        self._known: dict[str, list[tuple[str, int, bool]]] = {}
        self._shares: dict[tuple[str, int], Shares | None] = {}
        update = list(step.programs.get("update", ()))
        first = len(update)
        while first and self._can_wait(update[first - 1], update[first:]):
            first -= 1
        self.now, self.later = update[:first], update[first:]
        self.scalars: dict[int, int] = {}
        """offset and bytes of the scalars to copy"""
        self._shadowed = [self._shadow(launch, shadow) for launch in self.later]
        self.held = [
            (at, at + size) for launch in self.later for at, size, _ in self._vectors(launch, self._later(launch))
        ]
        """bytes that are as the step leaves them only when all is done"""

    # ------------------------------------------------------------------------------------------------ programs

    def rest(self) -> Program:
        """What the update left, and nothing else."""
        return Program(
            tuple(Entry(x, len(self.kernel(x).phases) - 1, len(self.now) + i) for i, x in enumerate(self._shadowed))
        )

    def program(self, name: str, pending: bool, update: bool) -> Program:
        """The program of that name, behind what the last update left (`pending`), followed by an `update`."""
        launches = self.step.programs[name]
        before: list[Entry] = []
        side: list[tuple[int, Entry]] = []
        chosen: tuple[Chosen, ...] = ()
        fork = len(launches)
        if pending:
            fork, before, side, chosen = self._beside(launches)
        early = self._early(launches) if update else {}
        turned = [(-1, e) for e in before]
        at = 0
        for i, launch in enumerate(launches):
            if i == fork:
                at = len(turned)
            turned += [(i, e) for e in (*self._whole(launch), *early.get(i, ()))]
        if update:
            turned += [(len(launches), e) for e in (*early.get(-1, ()), *self._ending(bool(early)))]
        turns, wanted = [i for i, _ in turned], [w for w, _ in side]
        needs = np.searchsorted(np.array(wanted, np.int64), turns, side="right")
        entries = tuple(replace(e, needs=int(n)) for (_, e), n in zip(turned, needs, strict=True))
        return Program(entries, tuple(e for _, e in side), at if side else 0, tuple(turns), tuple(wanted), chosen)

    def _beside(
        self, launches: Sequence[Launch]
    ) -> tuple[int, list[Entry], list[tuple[int, Entry]], tuple[Chosen, ...]]:
        """The launch at which threads part; what all do before; what some do from there on, each with the launch that
        needs it first; what of that data may put in front."""
        fork = next((i for i, x in enumerate(launches) if self._arithmetic(x)), len(launches))
        if fork >= len(launches) - 1:  # the last one is everyone's
            fork = len(launches)
        rows = {(i, o): numbers for i, x in enumerate(launches[:fork]) for o, numbers in self._rows(x)}
        before: list[Entry] = []
        later: list[tuple[int, int, int]] = []  # first needed by, launch, share
        counts = [self._count(self._later(x)) for x in self.later]
        for d, launch in enumerate(self.later):
            wanted = self._first_use(launch, launches, rows.keys())
            later += [(int(w), d, j) for j, w in enumerate(wanted) if w > fork]
            before += [self._part(d, counts[d], a, b) for a, b in _runs([j for j, w in enumerate(wanted) if w <= fork])]
        later.sort()
        side = [(w, self._part(d, counts[d], j, j + 1)) for w, d, j in later]
        chosen: list[Chosen] = []
        for (i, o), (at, count) in rows.items():
            operand, begin = self.kernel(launches[i]).operands[o], launches[i].offsets[o]
            for d, launch in enumerate(self.later):
                shares = self._later(launch)
                places = np.full(counts[d], -1, np.int64)
                for k, (_, owner, j) in enumerate(later):
                    if owner == d:
                        places[j] = k
                for start, size, changes in self._vectors(launch, shares):
                    if changes and start <= begin < start + size:
                        row, base = operand.elements // operand.shape[0], (begin - start) // operand.dtype.bytes
                        chosen.append(Chosen(at, count, row, base, _starts(shares, counts[d]), places, len(before)))
                        before.append(self._part(d, counts[d], 0, 0))
        return fork, before, side, tuple(chosen)

    def _rows(self, launch: Launch) -> Iterator[tuple[int, tuple[int, int]]]:
        """The operands, by number, of which a launch reads only rows that an input of the step chooses, with the byte
        at which the rows' numbers begin, and how many there are."""
        kernel = self.kernel(launch)
        inputs = [self.step.slots[name] for name in self.step.inputs]
        for o, operand in enumerate(kernel.operands):
            by = chosen_rows(kernel, operand.name)
            for index, at in zip(kernel.operands, launch.offsets, strict=True):
                end = at + index.bytes
                if index.name == by and any(s.offset <= at and end <= s.offset + s.bytes for s in inputs):
                    yield o, (at, index.elements)

    def _early(self, launches: Sequence[Launch]) -> dict[int, list[Entry]]:
        """Blocks of the norm by the launch behind which they can be summed (-1: behind all)."""
        entries: dict[int, list[Entry]] = {}
        for region, launch in enumerate(self.now):
            shares = self._fixed_shares(region)
            if shares is None:
                continue
            ready = np.full(shares.pieces, -1, np.int64)
            for i, other in enumerate(launches):
                for lo, hi in self._touched(launch, shares, other, shares.pieces, written=True):
                    ready[lo:hi] = i
            for i in np.unique(ready):
                found = [int(j) for j in np.flatnonzero(ready == i)]
                runs = [Entry(launch, 0, region, shares.pieces, a, b) for a, b in _runs(found)]
                entries.setdefault(int(i), []).extend(runs)
        return entries

    def _ending(self, early: bool) -> Iterator[Entry]:
        """The update without what is done early or left for later."""
        for region, launch in enumerate(self.now):
            skipped = early and self._fixed_shares(region) is not None
            yield from list(self._whole(launch, region))[skipped:]
        for i, launch in enumerate(self.later):
            yield from list(self._whole(launch, len(self.now) + i))[:-1]

    # ------------------------------------------------------------------------------------------------- launches

    def kernel(self, launch: Launch) -> Kernel:
        return self.step.kernels[launch.kernel]

    def _flat(self, launch: Launch, phase: int) -> Shares | None:
        key = launch.kernel, phase
        if key not in self._shares:
            self._shares[key] = flat_shares(self.kernel(launch), phase)
        return self._shares[key]

    def _whole(self, launch: Launch, region: int = -1) -> Iterator[Entry]:
        return (Entry(launch, phase, region) for phase in range(len(self.kernel(launch).phases)))

    def _part(self, d: int, parts: int, first: int, last: int) -> Entry:
        launch = self._shadowed[d]
        return Entry(launch, len(self.kernel(launch).phases) - 1, len(self.now) + d, parts, first, last)

    def _last_shares(self, launch: Launch) -> Shares | None:
        found = self._flat(launch, len(self.kernel(launch).phases) - 1)
        return found if found is not None and found.writes else None

    def _later(self, launch: Launch) -> Shares:
        found = self._last_shares(launch)
        assert found is not None
        return found

    def _can_wait(self, launch: Launch, others: Sequence[Launch]) -> bool:
        """Whether shares of a launch of the update may be left for the next step, in any order among those of `others`
        behind it: nothing that one of them writes is in the other. (An optimizer in several launches has such.)"""
        shares = self._last_shares(launch)
        if shares is None:
            return False
        reads = [(at, at + size) for (_, size, _), at in zip(self._operands(launch), launch.offsets, strict=True)]
        writes = [(at, at + size) for at, size, changes in self._vectors(launch, shares) if changes]
        for other in others:
            for (_, size, changes), at in zip(self._operands(other), other.offsets, strict=True):
                met = reads if changes else writes
                if any(at < end and start < at + size for start, end in met):
                    return False
        return True

    def _fixed_shares(self, number: int) -> Shares | None:
        """The shares of the first phase of a launch of the update, where blocks of it can be computed early: it reads
        only vectors that nothing before it in the update writes."""
        launch = self.now[number]
        shares = self._flat(launch, 0)
        if shares is None or not shares.fixed or shares.writes or shares.scalars or len(self.kernel(launch).phases) < 2:
            return None
        before = self.now[:number]
        written = any(True for x in before for _ in self._touched(launch, shares, x, shares.pieces, written=True))
        return None if written else shares

    def _shadow(self, launch: Launch, shadow: int) -> Launch:
        """The launch with its scalars in the copies."""
        offsets = list(launch.offsets)
        for i, operand in enumerate(self.kernel(launch).operands):
            if not operand.shape:
                self.scalars[offsets[i]] = operand.bytes
                offsets[i] = shadow + SHADOW * list(self.scalars).index(offsets[i])
        return replace(launch, offsets=tuple(offsets))

    def _arithmetic(self, launch: Launch) -> bool:
        kernel = self.kernel(launch)
        return kernel.flops > ARITHMETIC * kernel.traffic

    @staticmethod
    def _count(shares: Shares) -> int:
        return max(1, min(shares.pieces, shares.extent // SHARE))

    def _first_use(self, launch: Launch, launches: Sequence[Launch], rows: Collection[tuple[int, int]]) -> Ints:
        """For each share of an update's launch the first of the launches that may not run before it. Operands (launch,
        number) of which only `rows` are read do not count."""
        shares = self._later(launch)
        count = self._count(shares)
        found = np.full(count, len(launches), np.int64)
        for i in range(len(launches) - 1, -1, -1):
            without = [o for at, o in rows if at == i]
            for lo, hi in self._touched(launch, shares, launches[i], count, without=without):
                found[lo:hi] = i
        return found

    def _touched(
        self, launch: Launch, shares: Shares, other: Launch, count: int, written: bool = False,
        without: Collection[int] = (),
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        """The ranges of `launch`'s shares, of so many, whose vectors another launch writes, or (unless only what is
        `written` counts) reads where they write."""
        starts = _starts(shares, count)
        vectors = list(self._vectors(launch, shares))
        for number, ((_, bytes_, writes), begin) in enumerate(zip(self._operands(other), other.offsets, strict=True)):
            if number in without:
                continue
            end = begin + bytes_
            for at, size, changes in vectors:
                if begin >= at + size or end <= at or not (writes or (changes and not written)):
                    continue
                item = size // shares.extent
                lo, hi = max(0, begin - at) // item, min(size, end - at + item - 1) // item
                first = int(np.searchsorted(starts, lo, side="right")) - 1
                yield first, int(np.searchsorted(starts, hi, side="left"))

    def _vectors(self, launch: Launch, shares: Shares) -> Iterator[tuple[int, int, bool]]:
        """Offset and bytes of each vector of a launch, and whether it is written."""
        for (name, bytes_, _), at in zip(self._operands(launch), launch.offsets, strict=True):
            if name in shares.reads or name in shares.writes:
                yield at, bytes_, name in shares.writes

    def _operands(self, launch: Launch) -> list[tuple[str, int, bool]]:
        """Name and bytes of a kernel's operands, and whether it writes them; worked out once."""
        if launch.kernel not in self._known:
            kernel = self.kernel(launch)
            self._known[launch.kernel] = [(o.name, o.bytes, o.name in kernel.writes) for o in kernel.operands]
        return self._known[launch.kernel]


@cache
def _starts(shares: Shares, count: int) -> Ints:
    """The first element of each of so many shares, and the end."""
    return np.minimum(np.arange(count + 1) * shares.pieces // count * shares.step, shares.extent)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges: first, last + 1."""
    for i, n in enumerate(numbers):
        if i == 0 or numbers[i - 1] != n - 1:
            start = n
        if i == len(numbers) - 1 or numbers[i + 1] != n + 1:
            yield start, n + 1
