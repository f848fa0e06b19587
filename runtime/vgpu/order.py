"""Who is ordered before whom among the warps that can share memory: vector clocks, joined by every synchronisation.

A team is a cluster (one block where there is none); its warps are numbered by `m.place`. `clock[t, a, b]` is
the time up to which warp a knows what warp b did. Behind the warps come columns for what whole warpgroups read
asynchronously (wgmma): each of their warps that has waited for it may speak for all. `fenced`, kept only for
kernels that have proxy fences, is the same for what was made visible to the asynchronous proxy. An arrival by
one lane counts for its whole warp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, distinct, every, indices

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.machine import Machine

HISTORY = 8


class Order:
    def __init__(self, teams: int, ranks: int, warps: int, groups: int = 0) -> None:
        self.teams, self.ranks, self.warps, self.groups = teams, ranks, warps, groups
        self.warps_of_team = ranks * warps
        self.width = ranks * (warps + groups)
        self.clock: Array = np.zeros((teams, self.warps_of_team, self.width), np.int32)
        self.fenced: Array | None = None
        self.released: Array | None = None  # each warp's row at its last memory fence
        self.deferred: Array | None = None  # what relaxed waits have seen, until a memory fence
        self.lane_fences: Array | None = None  # the last proxy fences of each lane
        # what a fence by some lanes of a warp covers: theirs alone until the warp synchronises with someone
        self.partial: dict[tuple[int, int], dict[int, Array]] = {}
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
        self.flags.clear()

    def floor(self) -> int:
        """The time before which everything is known to every warp."""
        return int(self.clock[:, :, : self.warps_of_team].min())

    # --- block barriers
    def whole_blocks(self, first: int, last: int, now: int) -> None:
        """All warps of the blocks in slots first .. last meet."""
        if self.partial:
            self._share(*(np.array(x) for x in zip(*self.partial, strict=True)))
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
        if self.partial:
            self._share(np.full(len(took), team), took)
        clock = self.clock[team]
        joined = clock[took].max(axis=0)
        joined[took] = now
        clock[gone] = np.maximum(clock[gone], joined)
        if self.fenced is not None:
            part = self.fenced[team]
            part[gone] = np.maximum(part[gone], part[took].max(axis=0))

    def warp_sync(self, team: Array, place: Array, now: int) -> None:
        if self.partial:
            self._share(team, place)
        self.clock[team, place, place] = now

    # --- release and acquire through an object (mbarrier, cluster barrier): pairs of rows, stacked
    def rows(self, team: Array, place: Array, now: int, relaxed: bool = False) -> Array:
        """(2, n, width): what these warps release: clock rows and fenced rows."""
        if self.partial:
            self._share(team, place)
        out = np.zeros((2, len(team), self.width), np.int32)
        if relaxed:
            if self.released is not None:
                out[:] = self.released[:, team, place]
            return out
        out[0] = self.clock[team, place]
        out[0][np.arange(len(team)), place] = now
        if self.fenced is not None:
            out[1] = self.fenced[team, place]
        return out

    def acquire(self, team: Array, place: Array, rows: Array, relaxed: bool = False) -> None:
        """Warps (team, place), each once, learn the (2, n, width) rows."""
        if relaxed:
            if self.deferred is None:
                self.deferred = np.zeros((2, *self.clock.shape), np.int32)
            self.deferred[:, team, place] = np.maximum(self.deferred[:, team, place], rows)
            return
        self.clock[team, place] = np.maximum(self.clock[team, place], rows[0])
        if self.fenced is not None:
            self.fenced[team, place] = np.maximum(self.fenced[team, place], rows[1])

    def fence(self, team: Array, place: Array, now: int) -> None:
        """A memory fence: relaxed arrivals after it release what came before it, and earlier relaxed waits count."""
        if self.deferred is not None:
            self.acquire(team, place, self.deferred[:, team, place])
        if self.released is None:
            self.released = np.zeros((2, *self.clock.shape), np.int32)
        self.released[:, team, place] = self.rows(team, place, now)

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
        for k in indices(~whole).tolist():
            lanes_of = lanes[lanes >> 5 == warps[k]].tolist()
            self.partial.setdefault((int(team[k]), int(place[k])), {}).update(dict.fromkeys(lanes_of, rows[k]))
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

    def columns(self) -> Array:
        """The clock's column of every reader: the warps of the wave, then its warpgroups."""
        if self._columns is None:
            slots = self.teams * self.ranks
            warp, group = np.arange(slots * self.warps), np.arange(slots * self.groups)
            slot = group // max(self.groups, 1)
            far = self.warps_of_team + slot % self.ranks * self.groups + group - slot * self.groups
            self._columns = np.concatenate([warp % self.warps_of_team, far])
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
        team, mine, theirs = m.team[issuer], m.place[issuer], m.place[writer]
        known = when <= self.fenced[team, mine, theirs]
        for lane in distinct(issuer).tolist() if self.partial else ():
            row = self.partial.get((int(m.team[lane]), int(m.place[lane])), {}).get(lane)
            if row is not None:
                known |= (issuer == lane) & (when <= row[theirs])
        if every(known):
            return known
        history = self.lane_fences[writer]
        seen = np.where(writer == issuer, np.int32(m.now), self.clock[team, mine, theirs])
        own = ((history >= when[:, None]) & (history <= seen[:, None])).any(axis=1)
        forgotten = (history[:, -1] > 0) & (history[:, -1] >= when)
        result: Array = known | own | forgotten
        return result
