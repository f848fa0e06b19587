"""Special registers: thread and block coordinates, lane masks, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.types import Scalar

_AXES = {"x": 0, "y": 1, "z": 2}


def special(m: Machine, name: str, t: Scalar, line: int) -> Callable[[Any], Any]:
    """A reader of special register `name` as type `t`."""
    base, _, axis = name.partition(".")
    if axis == "w":
        return lambda sel: t.dtype.type(0)
    if base == "%tid":
        row = m.tid[_AXES[axis]]
        return lambda sel: row[sel].astype(t.dtype, copy=False)
    if base in ("%cluster_ctaid", "%cluster_nctaid", "%clusterid", "%nclusterid"):
        return _cluster(m, base, _AXES[axis], t)
    if base == "%ctaid":
        number = m.ctaid[_AXES[axis]]
        return lambda sel: number[sel].astype(t.dtype, copy=False)
    if base == "%ntid":
        size = t.dtype.type(m.block[_AXES[axis]])
        return lambda sel: size
    if base == "%nctaid":
        n = _AXES[axis]
        return lambda sel: t.dtype.type(m.grid[n])
    lane = m.lane_in_warp
    one = np.uint32(1)
    rows: dict[str, Callable[[Any], Any]] = {
        "%laneid": lambda sel: lane[sel],
        "%warpid": lambda sel: m.warp[sel].astype(np.uint32),
        "%nwarpid": lambda sel: np.uint32(64),
        "%smid": lambda sel: m.slot[sel].astype(np.uint32) % np.uint32(132),
        "%nsmid": lambda sel: np.uint32(132),
        "%gridid": lambda sel: np.uint32(1),
        "%lanemask_eq": lambda sel: one << lane[sel],
        "%lanemask_lt": lambda sel: (one << lane[sel]) - one,
        "%lanemask_le": lambda sel: (one << lane[sel]) | ((one << lane[sel]) - one),
        "%lanemask_gt": lambda sel: ~((one << lane[sel]) | ((one << lane[sel]) - one)),
        "%lanemask_ge": lambda sel: ~((one << lane[sel]) - one),
        "%clock": lambda sel: np.uint32(m.now & 0xFFFFFFFF),
        "%clock_hi": lambda sel: np.uint32(m.now >> 32),
        "%clock64": lambda sel: np.uint64(m.now),
        "%globaltimer": lambda sel: np.uint64(time.time_ns()),
        "%globaltimer_lo": lambda sel: np.uint32(time.time_ns() & 0xFFFFFFFF),
        "%dynamic_smem_size": lambda sel: np.uint32(m.shared_size - m.program.shared_bytes),
        "%total_smem_size": lambda sel: np.uint32(m.shared_size),
        "%aggr_smem_size": lambda sel: np.uint32(m.shared_size),
        "%cluster_ctarank": lambda sel: m.rank[sel].astype(np.uint32),
        "%cluster_nctarank": lambda sel: np.uint32(m.ranks),
        "%is_explicit_cluster": lambda sel: np.bool_(m.explicit_cluster),
    }
    if base in ("%envreg1", "%envreg2"):
        return _workspace(m, base, t)
    if base not in rows:
        raise PtxError(f"unknown register `{name}`", line)
    get = rows[base]
    if t.kind == "p":
        return get
    return lambda sel: get(sel).astype(t.dtype, copy=False)


def _cluster(m: Machine, base: str, axis: int, t: Scalar) -> Callable[[Any], Any]:
    """Coordinates of the block in its cluster and of the cluster in the grid."""
    size = m.cluster[axis]
    if base == "%cluster_nctaid":
        return lambda sel: t.dtype.type(size)
    if base == "%nclusterid":
        return lambda sel: t.dtype.type(m.grid[axis] // size)
    row, by = m.ctaid[axis], np.uint32(size)
    if base == "%clusterid":
        return lambda sel: (row[sel] // by).astype(t.dtype, copy=False)
    return lambda sel: (row[sel] % by).astype(t.dtype, copy=False)


def _workspace(m: Machine, base: str, t: Scalar) -> Callable[[Any], Any]:
    """%envreg1 and 2: the address (high and low half) of the driver's workspace for grid-wide barriers, zeroed."""
    found = next((s for s in m.memory.segments if s.name == "grid workspace"), None)
    if found is None:
        found = m.memory.allocate(256, "grid workspace")
        found.initialised = True
    half = t.dtype.type(found.base >> 32 if base == "%envreg1" else found.base & 0xFFFFFFFF)
    return lambda sel: half
