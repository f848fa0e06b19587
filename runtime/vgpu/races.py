"""Who touched each word last, and when: the shadow from which data races are read off.

Per granule (4 bytes; refined to 2 or 1 when a narrower access comes): the last plain write, the last plain
read, the last plain read by another reader, and the last atomic, each as (actor, time). In shared memory the
writer is a lane and the reader a warp; in global memory both are blocks. Times are instruction steps of the
launch. Who is ordered after whom is asked of the caller. Where several others read, the actor is MANY and only the
latest time is known; in shared memory it is a code below MANY that stands for those warps and their times (`Sets`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, distinct, every, greatest, indices, one_each, some

MANY = -2
BITS = 63
"""places that a set may have to be a number"""
# (earlier actor, its time, position among the current lanes) -> ordered before the current access?
Ordered = Callable[[Array, Array, Array, bool], Array]


class Sets:
    """Sets of readers, each with the time of its last read, as negative codes. `columns` gives, for a reader's number,
    its place among those that a set may hold (warps that never meet share places)."""

    def __init__(self, columns: Array) -> None:
        self.columns = columns
        self.clear()

    def clear(self) -> None:
        """Forget all sets, of which none is in use any more."""
        self.members: list[tuple[tuple[int, int], ...]] = []
        self.codes: dict[tuple[tuple[int, int], ...], int] = {}

    def union(self, *parts: tuple[Array, Array]) -> Array:
        """Codes of the sets that join readers (and when they read) or sets, position by position."""
        if not len(parts[0][0]):
            return parts[0][0]
        rows = [
            row
            for who, when in parts
            for row in (np.where(who < 0, who, self.columns[np.maximum(who, 0)]), np.where(who < 0, 0, when))
        ]
        codes = np.stack(rows)
        if every(codes == codes[:, :1]):
            return np.full(codes.shape[1], self._code(codes[:, 0].tolist()), np.int32)
        kinds, which = np.unique(codes, axis=1, return_inverse=True)
        found = np.array([self._code(k) for k in kinds.T.tolist()], np.int32)
        out: Array = found[which.reshape(-1)]
        return out

    def of_readers(self, key: Array, reader: Array, now: int) -> tuple[Array, Array]:
        """Of pairs of a granule and a warp that reads it now: the granules that several read, and codes of the sets of
        those that do."""
        wide = greatest(reader) + 1
        pairs = distinct(key.astype(np.int64) * wide + reader)
        granules, readers = np.divmod(pairs, wide)
        first = indices(np.concatenate(([True], granules[1:] != granules[:-1])))
        chosen = np.diff(np.append(first, len(pairs))) > 1
        places = self.columns[readers]
        if greatest(places) >= BITS:  # (a large cluster's)
            codes = [self._of_places(set(p.tolist()), now) for p in np.split(places, first[1:])]
            return granules[first][chosen], np.array(codes, np.int32)[chosen]
        sets = np.bitwise_or.reduceat(np.int64(1) << places, first)[chosen]
        kinds, which = np.unique(sets, return_inverse=True)
        of_kind = [self._of_places({n for n in range(BITS) if kind >> n & 1}, now) for kind in kinds.tolist()]
        return granules[first][chosen], np.array(of_kind, np.int32)[which]

    def _of_places(self, places: set[int], now: int) -> int:
        return self._code_of(tuple((place, now) for place in sorted(places)))

    def _code(self, parts: list[int]) -> int:
        last: dict[int, int] = {}
        for who, when in zip(parts[::2], parts[1::2], strict=True):
            for place, time in self.members[MANY - who] if who < 0 else ((who, when),):
                last[place] = max(time, last.get(place, 0))
        return self._code_of(tuple(sorted(last.items())))

    def _code_of(self, members: tuple[tuple[int, int], ...]) -> int:
        """That of places with times, in their order."""
        if members not in self.codes:
            self.codes[members] = MANY - len(self.members)
            self.members.append(members)
        return self.codes[members]

    def readers(self, code: int) -> tuple[Array, Array]:
        """The columns of a set's readers, and when each read last."""
        places, times = np.array(self.members[MANY - code]).T
        return places, times


class RaceShadow:
    def __init__(self, size: int) -> None:
        self.granule = 4
        self.sets: Sets | None = None  # of shared memory; without it MANY says no more than that
        n = size // 4
        self.write_actor, self.write_time = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self.read_actor, self.read_time = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self.other_actor: Array | None = None  # the latest reader beside read_actor
        self.other_time: Array | None = None
        self.atomic_actor: Array | None = None
        self.atomic_time: Array | None = None
        self.async_time: Array | None = None
        self.latest_write = 0
        self.latest_read = 0

    def asynchronous(self) -> Array:
        """When an asynchronous copy wrote each granule last; a write at that very time was not an ordinary one."""
        if self.async_time is None:
            self.async_time = np.zeros_like(self.write_time)
        return self.async_time

    def clear(self) -> None:
        self.write_time[:] = 0
        self.read_time[:] = 0
        if self.other_time is not None:
            self.other_time[:] = 0
        if self.atomic_time is not None:
            self.atomic_time[:] = 0
        if self.async_time is not None:
            self.async_time[:] = 0
        if self.sets is not None:
            self.sets.clear()
        self.latest_write = self.latest_read = 0

    def refine(self, granule: int) -> None:
        if granule >= self.granule:
            return
        times = self.granule // granule
        for name in ("write_actor", "write_time", "read_actor", "read_time", "other_actor", "other_time",
                     "atomic_actor", "atomic_time", "async_time"):  # fmt: skip
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, np.repeat(value, times))
        self.granule = granule

    def read(self, key: Any, writer: Any, reader: Any, now: int, floor: int, ordered: Ordered) -> Array | None:
        """Records a read; positions that race with an earlier write, or None."""
        bad = self.unordered_writes(key, writer, floor, ordered)
        self.latest_read = now
        if reader.ndim and not isinstance(key, np.ndarray | slice):  # every lane reads the same granule
            several = reader[0] != reader[-1]
            self._note_reader(slice(key, key + 1), reader[-1:], now, floor)
            if several:
                self._note_others(np.full(len(reader), key), reader, now, floor)
            return bad
        self._note_reader(key, reader, now, floor)
        if isinstance(key, np.ndarray):
            lost = self.read_actor[key] != reader
            if some(lost):
                self._note_others(key[lost], one_each(reader, len(key))[lost], now, floor)
        return bad

    def unordered_writes(self, key: Any, writer: Any, floor: int, ordered: Ordered) -> Array | None:
        """Positions where a read would race with an earlier write."""
        bad = None
        if self.latest_write > floor:
            bad = _conflicts(self.write_actor, self.write_time, key, writer, floor, ordered, False)
        if self.atomic_time is not None and self.atomic_actor is not None:
            bad = _join(bad, _conflicts(self.atomic_actor, self.atomic_time, key, writer, floor, ordered, False))
        return bad

    def note_read(self, key: Array, reader: Array, now: int, floor: int) -> None:
        """Records a read that was looked at before, each granule once."""
        self.latest_read = now
        self._note_reader(key, reader, now, floor)

    def _note_reader(self, key: Any, reader: Any, now: int, floor: int) -> None:
        """`reader` is now the latest; the one before it, when it is another, becomes the other reader."""
        old_time = self.read_time[key]
        if greatest(old_time) > floor:
            moved = (old_time > floor) & (self.read_actor[key] != reader)
            if some(moved):
                at = key[moved] if isinstance(key, np.ndarray) else np.arange(key.start, key.stop, key.step or 1)[moved]
                who, when = self.read_actor[at], self.read_time[at]
                actors, times = self._others()
                mine = reader if np.ndim(reader) == 0 or len(reader) == 1 else reader[moved]
                third = (times[at] > floor) & (actors[at] != who) & (actors[at] != mine)
                before = (actors[at[third]], times[at[third]])
                several = self.sets.union(before, (who[third], when[third])) if self.sets is not None else MANY
                actors[at] = who
                actors[at[third]] = several
                times[at] = when
        self.read_actor[key] = reader
        self.read_time[key] = now

    def _note_others(self, key: Array, reader: Array, now: int, floor: int) -> None:
        """Readers of the same step beside the one that was noted; in shared memory they join those before them."""
        actors, times = self._others()
        beside = reader != self.read_actor[key]
        key, reader = key[beside], reader[beside]
        if not len(key):
            return
        earlier = distinct(key[times[key] > floor]) if self.sets is not None else key[:0]
        before = (actors[earlier], times[earlier])
        times[key] = now
        actors[key] = reader
        clashing = actors[key] != reader
        if some(clashing):
            if self.sets is None:
                actors[key[clashing]] = MANY
                return
            several, codes = self.sets.of_readers(key, reader, now)
            actors[several] = codes
        if self.sets is not None and len(earlier):
            actors[earlier] = self.sets.union(before, (actors[earlier], times[earlier]))

    def _others(self) -> tuple[Array, Array]:
        if self.other_actor is None or self.other_time is None:
            self.other_actor, self.other_time = np.zeros_like(self.read_actor), np.zeros_like(self.read_time)
        return self.other_actor, self.other_time

    def _readers(self, key: Any, reader: Any, floor: int, ordered: Ordered) -> Array | None:
        """Positions that race with an earlier read."""
        bad = _conflicts(self.read_actor, self.read_time, key, reader, floor, ordered, True)
        if self.other_actor is not None and self.other_time is not None:
            bad = _join(bad, _conflicts(self.other_actor, self.other_time, key, reader, floor, ordered, True))
        return bad

    def write(
        self, key: Any, writer: Any, reader: Any, now: int, floor: int, ordered: Ordered,
        after_atomic: Ordered | None = None,
    ) -> Array | None:  # fmt: skip
        """Records a plain write; positions that race, or None. `after_atomic`: the order after atomics, if another."""
        bad = None
        if self.latest_write > floor:
            bad = _conflicts(self.write_actor, self.write_time, key, writer, floor, ordered, False)
        if self.latest_read > floor:
            bad = _join(bad, self._readers(key, reader, floor, ordered))
        if self.atomic_time is not None and self.atomic_actor is not None:
            bad = _join(
                bad, _conflicts(self.atomic_actor, self.atomic_time, key, writer, floor, after_atomic or ordered, False)
            )
        self.write_actor[key] = writer
        self.write_time[key] = now
        self.latest_write = now
        return bad

    def inval(self, key: Any, writer: Any, reader: Any, now: int, floor: int, ordered: Ordered) -> Array | None:
        """A write that ends an mbarrier: what lanes of its own warp did to the object came before it.

        libcu++ counts on it: a warp votes, and one of its lanes invalidates. Whoever comes later finds no object.
        """

        def after(who: Array, when: Array, at: Array, reads: bool) -> Array:
            known: Array = ordered(who, when, at, reads) | (who >> 5 == reader[at])
            return known

        return self.write(key, writer, reader, now, floor, ordered, after)

    def atomic(self, key: Any, writer: Any, reader: Any, now: int, floor: int, ordered: Ordered) -> Array | None:
        """Records an atomic access: it races with plain accesses only."""
        bad = None
        if self.latest_write > floor:
            bad = _conflicts(self.write_actor, self.write_time, key, writer, floor, ordered, False)
        if self.latest_read > floor:
            bad = _join(bad, self._readers(key, reader, floor, ordered))
        if self.atomic_time is None or self.atomic_actor is None:
            self.atomic_actor = np.zeros_like(self.write_actor)
            self.atomic_time = np.zeros_like(self.write_time)
        self.atomic_actor[key] = writer
        self.atomic_time[key] = now
        return bad


def _conflicts(
    actors: Array, times: Array, key: Any, me: Any, floor: int, ordered: Ordered, reads: bool
) -> Array | None:
    when = times[key].reshape(-1)
    recent = when > floor
    if not some(recent):
        return None
    who = actors[key].reshape(-1)
    recent = recent & (who != me)
    at = indices(recent)
    if not len(at):
        return None
    if len(who) == 1 and np.ndim(me) and len(me) > 1:
        who, when = np.broadcast_to(who, len(me)), np.broadcast_to(when, len(me))
    bad = at[~ordered(who[at], when[at], at, reads)]
    return bad if len(bad) else None


def _join(a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return a if b is None else b
    joined: Array = np.union1d(a, b)
    return joined
