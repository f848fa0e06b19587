"""Who is ordered before whom among the warps that can share memory: vector clocks, joined by every synchronisation.

A team is a cluster (one block where there is none); its warps are numbered by `m.place`. `clock[t, a, b]` is
the time up to which warp a knows what warp b did. Behind the warps come columns for what whole warpgroups read
asynchronously (wgmma): each of their warps that has waited for it may speak for all. `fenced`, kept only for
kernels that have proxy fences, is the same for what was made visible to the asynchronous proxy.

Of kernels with mbarriers, where single lanes arrive and wait, further columns tell of each lane: an arrival releases
what its lanes did, and what their warps had done when all its lanes last met. What all lanes of a warp have released is
known of the warp. (Two lanes or more that arrive at once speak for their warp's reads.) What a lane alone has learnt
it keeps `apart` until its warp meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, changes, distinct, every, indices

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.machine import Machine

HISTORY = 8
LATEST = np.int32(2**31 - 1)


class Order:
    def __init__(self, teams: int, ranks: int, warps: int, groups: int = 0, alive: Array | None = None) -> None:
        """`alive`: which lanes of the wave have not ended, where each is to have a column."""
        self.teams, self.ranks, self.warps, self.groups, self.alive = teams, ranks, warps, groups, alive
        self.warps_of_team = ranks * warps
        self.far = self.width = ranks * (warps + groups)
        every_lane = np.arange(teams * self.warps_of_team * 32)
        within = every_lane % max(self.warps_of_team * 32, 1)
        self.column: Array = within >> 5
        """the column that tells of each lane of the wave"""
        if alive is not None:
            self.column = within + self.far
            self.width += self.warps_of_team * 32
        self.clock: Array = np.zeros((teams, self.warps_of_team, self.width), np.int32)
        self.fenced: Array | None = None
        self.released: Array | None = None  # each warp's row at its last memory fence
        self.deferred: Array | None = None  # what relaxed waits have seen, until a memory fence
        self.lane_fences: Array | None = None  # the last proxy fences of each lane
        # what a fence by some lanes of a warp covers: theirs alone until the warp synchronises with someone
        self.partial: dict[tuple[int, int], dict[int, Array]] = {}
        # rows (2, width) that a lane has acquired without the rest of its warp
        self.apart: dict[int, Array] = {}
        self.is_apart: Array = np.zeros(len(every_lane), bool)
        self.start_time = 0
        self.flags: dict[int, Array] = {}  # word of shared memory -> rows published there (flags.py)
        self._columns: Array | None = None

    def start(self, now: int) -> None:
        self.start_time = now
        self.clock[:] = now
        if self.fenced is not None:
            self.fenced[:] = now
        if self.lane_fences is not None:
            self.lane_fences[:] = 0
        self.released = self.deferred = None
        self.partial.clear()
        self.apart.clear()
        self.is_apart[:] = False
        self.flags.clear()

    def floor(self) -> int:
        """The time before which everything is known to every warp."""
        return int(self.clock[:, :, : self.warps_of_team].min())

    # --- block barriers
    def whole_blocks(self, first: int, last: int, now: int) -> None:
        """All warps of the blocks in slots first .. last meet."""
        if self.partial:
            self._share(*(np.array(x) for x in zip(*self.partial, strict=True)))
        for lane in [n for n in self.apart if first <= n // (self.warps * 32) < last]:
            self._rejoin(lane)
        if self.ranks == 1:
            self.clock[first:last] = now
            if self.fenced is not None:
                part = self.fenced[first:last]
                part[:] = part.max(axis=1, keepdims=True)
            return
        for slot in range(first, last):
            warps = slot % self.ranks * self.warps + np.arange(self.warps)
            self.join(slot // self.ranks, warps, warps, now)

    def join(self, team: int, took: Array, gone: Array, now: int) -> None:
        """Warps `took` arrived; those in `gone` go on knowing all that the arrived ones knew."""
        self._meet(np.full(len(took), team), took)
        clock = self.clock[team]
        joined = clock[took].max(axis=0)
        joined[took] = now
        if self.alive is not None:
            joined[self.far :].reshape(-1, 32)[took] = now
        clock[gone] = np.maximum(clock[gone], joined)
        if self.fenced is not None:
            part = self.fenced[team]
            part[gone] = np.maximum(part[gone], part[took].max(axis=0))

    def warp_sync(self, team: Array, place: Array, now: int) -> None:
        """The lanes of these warps meet."""
        self._meet(team, place)
        self.clock[team, place, place] = now
        if self.alive is not None:
            self._lanes(self.clock)[team, place, place] = now

    def _lanes(self, rows: Array) -> Array:
        """The columns of lanes in rows of clocks, by warp."""
        found: Array = rows[..., self.far :].reshape(*rows.shape[:-1], self.warps_of_team, 32)
        return found

    # --- release and acquire through an object (mbarrier, cluster barrier): pairs of rows, stacked
    def rows(
        self, team: Array, place: Array, now: int, relaxed: bool = False, by: tuple[Array, Array] | None = None
    ) -> Array:
        """(2, n, width): what these warps release: clock rows and fenced rows. `by`: only these lanes do, each of the
        warp at its index; all of the warps without."""
        if by is None or self.alive is None:
            by = None
            self._meet(team, place)
        out, n = np.zeros((2, len(team), self.width), np.int32), np.arange(len(team))
        if relaxed:
            if self.released is not None:
                out[:] = self.released[:, team, place]
            if by is not None:
                self._only(out[0], team, place, *by)
            return out
        out[0] = self.clock[team, place]
        if self.fenced is not None:
            out[1] = self.fenced[team, place]
        if by is None:
            out[0][n, place] = now
            if self.alive is not None:
                self._lanes(out[0])[n, place] = now
            return out
        of, lanes = by
        out[0][of, self.column[lanes]] = now
        many = self._many(team, place, of)
        out[0][n[many], place[many]] = now
        for k, lane in zip(of.tolist(), lanes.tolist(), strict=True) if self.partial else ():
            row = self.partial.get((int(team[k]), int(place[k])), {}).get(lane)
            if row is not None:
                out[1][k] = np.maximum(out[1][k], row)
        for k in indices(self.is_apart[lanes]).tolist() if self.apart else ():
            out[:, of[k]] = np.maximum(out[:, of[k]], self.apart[int(lanes[k])])
        return out

    def _many(self, team: Array, place: Array, of: Array) -> Array:
        """Which of the warps have two lanes or more in `of`, their indices, or the only one that they have left."""
        assert self.alive is not None
        left = self.alive.reshape(self.teams, self.warps_of_team, 32)[team, place].sum(axis=1)
        found: Array = np.bincount(of, minlength=len(team)) >= np.minimum(left, 2)
        return found

    def _only(self, rows: Array, team: Array, place: Array, of: Array, lanes: Array) -> None:
        """Of their own warps' lanes, let rows tell no more than those of `lanes` released."""
        n, own = np.arange(len(team)), self.column[lanes]
        kept, all_ = rows[of, own], self._lanes(rows)
        all_[n, place] = np.minimum(all_[n, place], self._lanes(self.clock)[team, place, place])
        rows[of, own] = kept
        one = ~self._many(team, place, of)
        rows[n[one], place[one]] = np.minimum(rows[n, place], self.clock[team, place, place])[one]

    @staticmethod
    def collect(into: Array, of: Array, rows: Array) -> None:
        """Adds (2, n, width) `rows` to those that `into` has collected, each at its place `of`."""
        by_place = of.argsort(kind="stable")
        first = indices(changes(of[by_place]))
        at = of[by_place[first]]
        into[:, at] = np.maximum(into[:, at], np.maximum.reduceat(rows[:, by_place], first, axis=1))

    def acquire(self, team: Array, place: Array, rows: Array, relaxed: bool = False) -> None:
        """Warps (team, place), each once, learn the (2, n, width) rows."""
        if relaxed:
            if self.deferred is None:
                self.deferred = np.zeros((2, *self.clock.shape), np.int32)
            self.deferred[:, team, place] = np.maximum(self.deferred[:, team, place], rows)
            return
        for known, new in ((self.clock, rows[0]), (self.fenced, rows[1])):
            if known is None:
                continue
            joined = np.maximum(known[team, place], new)
            if self.alive is not None:  # what every lane of a warp has told is known of the warp
                gone = ~self.alive.reshape(self.teams, self.warps_of_team, 32)[team]
                least = np.where(gone, LATEST, self._lanes(joined)).min(axis=2)
                least[gone.all(axis=2)] = 0
                joined[:, : self.warps_of_team] = np.maximum(joined[:, : self.warps_of_team], least)
            known[team, place] = joined

    def acquire_apart(self, lane: int, rows: Array) -> None:
        """One of several lanes that its warp has left learns (2, width) rows."""
        assert self.alive is not None
        self.apart[lane] = np.maximum(self.apart[lane], rows) if lane in self.apart else rows.copy()
        self.is_apart[lane] = True
        warp = slice(lane & ~31, (lane | 31) + 1)
        if every(self.is_apart[warp] | ~self.alive[warp]):  # what each of them has learnt the warp knows
            all_ = [self.apart[n] for n in range(warp.start, warp.stop) if n in self.apart]
            team, place = divmod(lane >> 5, self.warps_of_team)
            self.acquire(np.array([team]), np.array([place]), np.min(all_, axis=0)[:, None])

    def seen(self, lanes: Array, column: Array) -> Array:
        """The time up to which each lane knows what happened in its `column`."""
        warp = lanes >> 5
        found: Array = self.clock[warp // self.warps_of_team, warp % self.warps_of_team, column]
        for lane, at in self._those_apart(lanes):
            found[at] = np.maximum(found[at], self.apart[lane][0][column[at]])
        return found

    def _those_apart(self, lanes: Array) -> Iterator[tuple[int, Array]]:
        """Of these lanes, which may come several times, those that know more than their warps; and where each is."""
        for lane in distinct(lanes[self.is_apart[lanes]]).tolist() if self.apart else ():
            yield lane, indices(lanes == lane)

    def _meet(self, team: Array, place: Array) -> None:
        """The lanes of these warps share what some of them have learnt, and fenced."""
        if self.partial:
            self._share(team, place)
        if self.apart:
            warps = set((team * self.warps_of_team + place).tolist())
            for lane in [n for n in self.apart if n >> 5 in warps]:
                self._rejoin(lane)

    def _rejoin(self, lane: int) -> None:
        team, place = divmod(lane >> 5, self.warps_of_team)
        self.is_apart[lane] = False
        self.acquire(np.array([team]), np.array([place]), self.apart.pop(lane)[:, None])

    def fence(self, team: Array, place: Array, now: int, by: tuple[Array, Array] | None = None) -> None:
        """A memory fence: relaxed arrivals after it release what came before it, and earlier relaxed waits count."""
        if self.deferred is not None:
            self.acquire(team, place, self.deferred[:, team, place])
        if self.released is None:
            self.released = np.zeros((2, *self.clock.shape), np.int32)
        self.released[:, team, place] = self.rows(team, place, now, by=by)

    # --- the asynchronous proxy
    def track_proxy(self, lanes: int) -> None:
        """Called when a kernel has a proxy fence."""
        if self.fenced is None:
            self.fenced = np.zeros_like(self.clock)
            self.lane_fences = np.zeros((lanes, HISTORY), np.int32)

    def fence_proxy(self, m: Machine, lanes: Array) -> None:
        """fence.proxy.async by `lanes`: all that their warps know becomes visible to the async proxy."""
        assert self.fenced is not None and self.lane_fences is not None
        warps, counts = np.unique(m.warp_of_lane[lanes], return_counts=True)
        first = warps.astype(np.int64) * 32
        team, place = m.team[first], m.place[first]
        rows = np.maximum(self.fenced[team, place], self.clock[team, place])
        whole = counts == m.alive.reshape(-1, 32)[warps].sum(axis=1)
        self.fenced[team[whole], place[whole]] = rows[whole]
        self.fenced[team[whole], place[whole], place[whole]] = m.now
        if self.alive is not None:
            self._lanes(self.fenced)[team[whole], place[whole], place[whole]] = m.now
        for k in indices(~whole).tolist():
            lanes_of = lanes[lanes >> 5 == warps[k]].tolist()
            self.partial.setdefault((int(team[k]), int(place[k])), {}).update(dict.fromkeys(lanes_of, rows[k]))
        for lane in lanes[self.is_apart[lanes]].tolist() if self.apart else ():
            at = int(m.team[lane]), int(m.place[lane])
            known = np.maximum(self.fenced[at], self.partial.setdefault(at, {}).get(lane, self.clock[at]))
            self.partial[at][lane] = np.maximum(known, self.apart[lane].max(axis=0))
        self.lane_fences[lanes, 1:] = self.lane_fences[lanes, :-1]
        self.lane_fences[lanes, 0] = m.now

    def group_reader(self, slot: Array, warp: Array) -> Array:
        """The reader, beyond all warps, that stands for the warpgroup of these warps."""
        found: Array = self.teams * self.warps_of_team + slot * self.groups + warp // 4
        return found

    def group_has_read(self, reader: int, now: int) -> None:
        """This warpgroup has waited for what it read: each of its warps knows."""
        slot, group = divmod(reader - self.teams * self.warps_of_team, self.groups)
        rank = slot % self.ranks
        first = rank * self.warps + group * 4
        last = min(first + 4, (rank + 1) * self.warps)
        self.clock[slot // self.ranks, first:last, self.warps_of_team + rank * self.groups + group] = now

    def readers(self, warps: Array, lanes: Array) -> Array:
        """Who is remembered to read: of a step's lanes, in order, those that are alone of their warp; else the warp."""
        if self.alive is None:
            return warps
        new = changes(warps)
        alone = new & np.append(new[1:], True)
        found: Array = np.where(alone, self.lane_reader(lanes), warps).astype(np.int32)
        return found

    def lane_reader(self, lanes: Array) -> Array:
        """The readers, beyond all warps and warpgroups, that lanes are."""
        found: Array = self.teams * self.ranks * (self.warps + self.groups) + lanes
        return found

    def columns(self) -> Array:
        """The clock's column of every reader: the warps of the wave, then its warpgroups, then its lanes."""
        if self._columns is None:
            slots = self.teams * self.ranks
            warp, group = np.arange(slots * self.warps), np.arange(slots * self.groups)
            slot = group // max(self.groups, 1)
            far = self.warps_of_team + slot % self.ranks * self.groups + group - slot * self.groups
            self._columns = np.concatenate([warp % self.warps_of_team, far, self.column])
        return self._columns

    def _share(self, team: Array, place: Array) -> None:
        """These warps synchronise: what some of their lanes have fenced holds for those who learn of it."""
        assert self.fenced is not None
        for key in zip(team.tolist(), place.tolist(), strict=True):
            for row in self.partial.pop(key, {}).values():
                self.fenced[key] = np.maximum(self.fenced[key], row)

    def fenced_for(self, m: Machine, writer: Array, when: Array, issuer: Array) -> Array:
        """Were ordinary writes by lanes `writer` at times `when` made visible to the async proxy for `issuer`?"""
        if self.fenced is None or self.lane_fences is None:
            return when <= self.start_time
        team, mine, theirs = m.team[issuer], m.place[issuer], self.column[writer]
        known = when <= self.fenced[team, mine, theirs]
        for lane in distinct(issuer).tolist() if self.partial else ():
            row = self.partial.get((int(m.team[lane]), int(m.place[lane])), {}).get(lane)
            if row is not None:
                known |= (issuer == lane) & (when <= row[theirs])
        if every(known):
            return known
        history = self.lane_fences[writer]
        for lane, at in self._those_apart(issuer):
            known[at] |= when[at] <= self.apart[lane][1][theirs[at]]
        seen = np.where(writer == issuer, np.int32(m.now), self.seen(issuer, theirs))
        own = ((history >= when[:, None]) & (history <= seen[:, None])).any(axis=1)
        forgotten = (history[:, -1] > 0) & (history[:, -1] >= when)
        result: Array = known | own | forgotten
        return result
