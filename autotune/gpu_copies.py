"""What the tensor copies of a phase move, from tile IR: one is issued for each panel of a tile, and the blocks of a
cluster copy parts of what they share to all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from tcomp.autotune.gpu_counts import Copies
from tcomp.codegen.llvm.integers import affine_form
from tcomp.codegen.nvptx.copies.tensor_copy import panels
from tcomp.ir.multicast import cluster_of, shared_packs
from tcomp.ir.tile import Kernel, Loop, Pack, Statement, Unpack


def copies_of(kernel: Kernel, phase: tuple[Statement, ...]) -> Copies:
    """The mean sizes of a phase's tensor copies, each counted as often as its loops inside of a block run it."""
    buffers = kernel.buffers
    cluster = cluster_of(kernel, phase)
    shared = shared_packs(phase, cluster, buffers)
    asked = landed = written = filled = stored = 0.0
    for s, times in _copies(phase, 1.0):
        tile = buffers[s.buffer]
        if isinstance(s, Unpack):
            written += times * tile.bytes
            stored += times * len(panels(tile)) * s.groups
        else:
            landed += times * tile.bytes
            asked += times * tile.bytes / (cluster.blocks if cluster is not None and id(s) in shared else 1)
            filled += times * len(panels(tile))
    return Copies(asked / max(1, filled), landed / max(1, filled), written / max(1, stored))


def _copies(body: tuple[Statement, ...], times: float) -> Iterator[tuple[Pack | Unpack, float]]:
    """Copies, and how often a block runs each in a turn of the grid; loops whose turns differ count as one turn."""
    for s in body:
        if isinstance(s, Loop):
            yield from _copies(s.body, times * (1.0 if s.level == "grid" else _turns(s)))
        elif isinstance(s, Unpack) or (isinstance(s, Pack) and s.by == "tma"):
            yield s, times


def _turns(loop: Loop) -> float:
    start, stop = affine_form(loop.start), affine_form(loop.stop)
    if start is None or stop is None or (stop - start).terms:
        return 1.0
    return max(1.0, (stop - start).constant / loop.step)
