"""What the tensor copies of a phase move, from tile IR: one is issued for each panel of a tile, and the blocks of a
cluster copy parts of what they share to all of them.
"""

from __future__ import annotations

from tcomp.autotune.gpu_work import Copies
from tcomp.codegen.nvptx.layout import statements_in
from tcomp.codegen.nvptx.tensor_copy import panels
from tcomp.ir.multicast import cluster_of, shared_packs
from tcomp.ir.tile import Kernel, Pack, Statement, Unpack


def copies_of(kernel: Kernel, phase: tuple[Statement, ...]) -> Copies:
    """The mean sizes of a phase's tensor copies, each Pack's and Unpack's counted once."""
    buffers = {b.name: b for b in kernel.operands + kernel.tiles}
    cluster = cluster_of(kernel.cluster, phase)
    shared = shared_packs(phase, cluster, buffers)
    packs = [s for s in statements_in(phase) if isinstance(s, Pack) and s.by == "tma"]
    asked = landed = written = 0.0
    for p in packs:
        size = buffers[p.buffer].bytes
        landed += size
        asked += size / (cluster.blocks if cluster is not None and id(p) in shared else 1)
    filled = sum(len(panels(buffers[p.buffer])) for p in packs)
    results = [s for s in statements_in(phase) if isinstance(s, Unpack)]
    written = sum(buffers[s.buffer].bytes for s in results)
    stored = sum(len(panels(buffers[s.buffer])) for s in results)
    return Copies(asked / max(1, filled), landed / max(1, filled), written / max(1, stored))
