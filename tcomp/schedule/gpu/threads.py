"""Which thread of a GPU block takes which values of an equation's indices.

Each index names the warp and lane dimensions it is divided along. In one equation a dimension serves one index:
the target's last index claims first, then the others leftward, then the reduced ones; an index that finds its
dimension taken uses the other one if that is free, and is otherwise walked by every thread.

    qk[q, k] = sum d    q: lane.y, k: lane.x                      k claims x, q claims y
    m[q] = max k        q claims y; k, reduced, claims x          partial maxima are joined by shuffles
    o[q, e] = sum k     e: lane.x claims x, q y; k is sequential  each thread reads its row of weights

Loops that end in mma are shared out as accumulators of matrix instructions are: rows over 8 lanes along y, columns in
pairs over 4 lanes along x. They prefer the dimension of their warps (warpgroups are along y), else x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Access, names_in
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import SERIAL, Spread
from tcomp.schedule.kernel_plan import KernelPlan, LoopMap
from tcomp.schedule.tree.assignment import Assignment
from tcomp.schedule.tree.nest import leaf_uses
from tcomp.schedule.tree.tiling import RegisterTile


class GpuTiler:
    """Chooses how a block's threads share each equation of one kernel."""

    def __init__(self, plan: KernelPlan, shape: ThreadShape) -> None:
        self.plan = plan
        self.lanes = {"x": shape.lanes_x, "y": shape.lanes_y}
        self.warps = {"x": shape.warps_x, "y": shape.warps_y}

    def tile(self, a: Assignment, blocks: Mapping[str, int]) -> RegisterTile:
        """One Spread per index; TcError when a scattered index is divided among threads."""
        free_lanes = {d for d, n in self.lanes.items() if n > 1}
        free_warps = {d for d, n in self.warps.items() if n > 1}
        spreads: dict[str, Spread] = {}
        for index in (*_by_contiguity(a.target, a.parallel), *a.reduced):
            m = self.plan.mapping(index, (a.target.tensor, *a.leaf.sums_for))
            if m is None or blocks[index] == 1:
                spreads[index] = SERIAL
                continue
            self._check_scatter(a, index, m)
            if m.mma and index in a.reduced and leaf_uses(self.plan, a.leaf, a.target):
                spreads[index] = SERIAL
                continue
            if m.warp is not None and m.warp.group and blocks[index] < self.warps["y"] * m.warp.tile:
                m = replace(m, warp=None)  # too short for all warpgroups: another index may be what they divide
            wanted = m.lane.place if m.lane is not None else ""
            if m.mma:
                wanted = m.warp.place if m.warp is not None else "x"
            lane = _claim(free_lanes, wanted, index in a.reduced)
            place = m.warp.place if m.warp is not None else ""
            alone = m.mma and place != "" and self.warps[place] == 1  # one warp has it all: it needs no other dimension
            warp = "" if alone else _claim(free_warps, place, index in a.reduced)
            spreads[index] = Spread(
                (2 if lane == "x" else 1) if m.mma else m.grain,
                lane,
                self.lanes[lane] if lane else 1,
                warp,
                self.warps[warp] if warp else 1,
                m.warp.tile if warp and m.warp is not None else 0,
            )
        return RegisterTile(None, 1, dict.fromkeys(spreads, 1), spreads)

    def _check_scatter(self, a: Assignment, index: str, m: LoopMap) -> None:
        if index in a.leaf.gathered and not a.leaf.atomic and (m.lane is not None or m.warp is not None or m.mma):
            raise TcError(
                f"loop '{index}' is divided among threads, but '{a.target.tensor}' is scattered over it",
                m.span,
                f"divide a loop that stands bare on the left instead, and map '{index}' to seq",
                (f"two threads both update {a.target.tensor} where the gathered values are equal",),
            )


def _by_contiguity(target: Access, parallel: tuple[str, ...]) -> list[str]:
    """Parallel indices, the one of the target's last subscript first."""
    position = {n: d for d, s in enumerate(target.subscripts) for n in names_in(s)}
    return sorted(parallel, key=lambda i: -position.get(i, -1))


def _claim(free: set[str], wanted: str, reduced: bool) -> str:
    """Take the wanted dimension, or (for a parallel index) the other one; "" when there is none."""
    if not wanted:
        return ""
    if wanted not in free:
        other = "y" if wanted == "x" else "x"
        if reduced or other not in free:
            return ""
        wanted = other
    free.remove(wanted)
    return wanted
