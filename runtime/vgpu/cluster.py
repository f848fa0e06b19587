"""Clusters of blocks: their shape at launch, and barrier.cluster (PTX ISA 9.7.13.3).

The blocks of a cluster have neighbouring slots of a wave. Each thread counts its arrivals and each cluster its
completed barriers; a thread may pass its wait when the cluster has completed as many as the thread has arrived at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tcomp.errors import UserError
from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, every, ids, some
from tcomp.runtime.vgpu.machine import Dim, Machine, WaveState
from tcomp.runtime.vgpu.ptx import Instr

PORTABLE, MOST = 8, 16


def shape(kernel: str, directives: Mapping[str, tuple[int, ...]], given: int | Sequence[int] | None, grid: Dim) -> Any:
    """The cluster of a launch, None where there is none. UserError where it does not fit the kernel or the grid."""
    found = _dim(given) if given is not None else None
    required = directives.get("reqnctapercluster")
    if required is not None:
        wanted = _dim(required)
        if found is not None and found != wanted:
            raise UserError(
                f"`{kernel}` requires clusters of {wanted}, the launch asks for {found}",
                "launch it with that shape, or with none",
            )
        found = wanted
    if found is None:
        if "explicitcluster" in directives:
            raise UserError(f"`{kernel}` is .explicitcluster: launch it with a cluster shape", "give one: --cluster 2")
        return None
    size = math.prod(found)
    if min(found) < 1 or size > MOST:
        raise UserError(f"a cluster of {found} blocks: a GPU takes 1 to {PORTABLE}, {MOST} where non-portable sizes "
                        "are allowed", "choose a smaller shape")  # fmt: skip
    limit = directives.get("maxclusterrank")
    if limit and size > limit[0]:
        raise UserError(
            f"`{kernel}` allows {limit[0]} blocks in a cluster, the launch asks for {size}", "choose a smaller shape"
        )
    if any(g % c for g, c in zip(grid, found, strict=True)):
        raise UserError(
            f"a grid of {grid} is no whole number of clusters of {found}",
            "choose a grid that is a multiple of the cluster, axis by axis",
        )
    return found


def _dim(value: int | Sequence[int]) -> Dim:
    parts = [value] if isinstance(value, int) else [int(v) for v in value]
    x, y, z = ([*parts, 1, 1, 1])[:3]
    return x, y, z


class ClusterBarrier(WaveState):
    """The barrier of every cluster of a wave."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.start()
        m.parts.append(self)

    def start(self) -> None:
        m = self.m
        self.arrived: Array = np.zeros(m.lanes, np.int32)
        self.passed: Array = np.zeros(m.lanes, np.int32)
        self.completed: Array = np.zeros(m.order.teams, np.int32)
        self.collected: Array = np.zeros((2, m.order.teams, m.order.width), np.int32)
        self.joined: Array = np.zeros((2, m.order.teams, m.order.width), np.int32)
        shape = (m.order.teams, m.order.warps_of_team)
        self.arrivals: Array = np.zeros(shape, np.int64)  # when each warp last arrived, also relaxed,
        self.met: Array = np.zeros(shape, np.int64)  # and when it had at the last completed barrier
        self.known: Array = np.zeros((m.slots, m.order.warps_of_team), np.int64)  # and so to each block, having waited

    def arrive(self, i: Instr, sel: Sel, relaxed: bool) -> None:
        m, lanes = self.m, ids(sel)
        twice = self.arrived[lanes] > self.passed[lanes]
        if some(twice):
            m.finding("cluster barrier misuse", i, lanes[twice], "arrives again without having waited")
            lanes = lanes[~twice]
        self.arrived[lanes] += 1
        warps, warp = np.unique(lanes >> 5, return_inverse=True)
        first = warps << 5
        team, place = m.team[first], m.place[first]
        rows = m.order.rows(team, place, m.now, relaxed, (warp, lanes))
        self.arrivals[team, place] = m.now
        m.order.collect(self.collected, team, rows)
        if not relaxed:
            for b in distinct(m.block_of_lane[first]).tolist():
                m.fences.setdefault(b, []).append(m.now)
        m.now += 1
        m.progress += 1
        self.complete(distinct(team))

    def complete(self, teams: Array) -> None:
        m = self.m
        span = m.ranks * m.stride
        for t in teams.tolist():
            of = slice(t * span, (t + 1) * span)
            if every(self.arrived[of][m.alive[of]] > self.completed[t]):
                self.completed[t] += 1
                self.joined[:, t] = self.collected[:, t]
                self.met[t] = self.arrivals[t]
                self.collected[:, t] = 0
                m.progress += 1

    def wait(self, i: Instr, sel: Sel) -> Array:
        """The lanes that may go on."""
        m, lanes = self.m, ids(sel)
        early = self.arrived[lanes] == self.passed[lanes]
        if some(early):
            m.finding("cluster barrier misuse", i, lanes[early], "waits without having arrived")
        team = m.team[lanes]
        self.complete(distinct(team))
        ready = early | (self.completed[team] >= self.arrived[lanes])
        go: Array = lanes[ready]
        self.passed[go] = self.arrived[go]
        if len(go):
            first = distinct(go >> 5) << 5
            m.order.acquire(m.team[first], m.place[first], self.joined[:, m.team[first]])
            self.known[m.slot[first]] = self.met[m.team[first]]
            m.shared_floor = m.order.floor()
            m.now += 1
            for b in distinct(m.block_of_lane[first]).tolist():
                m.strong[b] = m.now
        return go

    def describe(self, lane: int) -> str:
        m = self.m
        t, span = int(m.team[lane]), m.ranks * m.stride
        of = slice(t * span, (t + 1) * span)
        have = int((self.arrived[of][m.alive[of]] > self.completed[t]).sum())
        return f"waits at the cluster barrier: {have} of {int(m.alive[of].sum())} threads of its cluster have arrived"


def barrier(m: Machine, i: Instr) -> Callable[[Sel], Any]:
    """The closure of one barrier.cluster instruction: None or the lanes that may go on."""
    found = ClusterBarrier.of(m)
    aligned = "aligned" in i.parts

    def check(sel: Sel) -> None:
        if aligned and m.options.checks:
            lanes = ids(sel)
            here = np.bincount(lanes >> 5, minlength=m.lanes // 32)
            bad = (here < m.alive.reshape(-1, 32).sum(axis=1))[lanes >> 5]
            if some(bad):
                m.finding("divergent barrier", i, lanes[bad],
                          "only some lanes of the warp came to this aligned barrier")  # fmt: skip

    if "arrive" in i.parts:
        relaxed = "relaxed" in i.parts

        def arrive(sel: Sel) -> None:
            check(sel)
            found.arrive(i, sel, relaxed)

        return arrive
    m.explain[i.line, i.opcode] = found.describe
    return lambda sel: found.wait(i, sel)
