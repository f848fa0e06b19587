"""Addresses across the blocks of a cluster (PTX ISA 9.7.9.23 and .24): mapa, getctarank; isspacep for shared::cta.

Rank r's memory begins at (r + 1) steps, and in clusters of several blocks variables have their addresses there; an
address below CLUSTER_STEP is the own block's too. Generic addresses are the same, moved into the shared window.
"""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, ids, one_each, some
from tcomp.runtime.vgpu.memory import CLUSTER_STEP, SHARED_WINDOW, WINDOW
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.types import scalar


def _inside(d: Decoder, i: Instr, sel: Sel, a: Array) -> Array:
    """Offsets in the window of shared memory; reports generic addresses that lie elsewhere."""
    if i.parts[1] == "shared::cluster":
        return a
    bad = (a < SHARED_WINDOW) | (a >= SHARED_WINDOW + WINDOW)
    if some(bad):
        d.m.finding("out of bounds shared", i, ids(sel)[np.broadcast_to(bad, len(ids(sel)))],
                    f"`{i.parts[0]}` of a generic address that is not in shared memory", int(a[bad][0]))  # fmt: skip
    return np.where(bad, 0, a - SHARED_WINDOW)


@instruction("mapa")
def map_address(d: Decoder, i: Instr) -> Run:
    m, t = d.m, scalar(i.parts[-1], i.line)
    put, a, b = d.put(i.operands[0], t), d.source(i.operands[1], t), d.source(i.operands[2], "u32")
    base = 0 if i.parts[1] == "shared::cluster" else SHARED_WINDOW

    def run(sel: Sel) -> None:
        lanes = ids(sel)
        offset = _inside(d, i, sel, one_each(a(sel), len(lanes)).astype(np.int64)) % CLUSTER_STEP
        rank = one_each(b(sel), len(lanes)).astype(np.int64)
        bad = rank >= m.ranks
        if some(bad):
            m.finding("out of bounds shared", i, lanes[bad],
                      f"block rank {int(rank[bad][0])} of a cluster of {m.ranks}")  # fmt: skip
        mapped = np.where(rank == m.rank[sel], offset, offset + (rank + 1) * CLUSTER_STEP)
        put(sel, (base + mapped).astype(t.dtype))

    return run


@instruction("getctarank")
def rank_of_address(d: Decoder, i: Instr) -> Run:
    m, t = d.m, scalar(i.parts[-1], i.line)
    put, a = d.put(i.operands[0], "u32"), d.source(i.operands[1], t)

    def run(sel: Sel) -> None:
        offset = _inside(d, i, sel, one_each(a(sel), len(ids(sel))).astype(np.int64))
        rank = offset // CLUSTER_STEP - 1
        put(sel, np.where(rank < 0, m.rank[sel], rank).astype(np.uint32))

    return run
