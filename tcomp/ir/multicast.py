"""Tiles that the blocks of a cluster share: each block fetches a part of them and delivers it to all.

A tile is the same in all blocks where neither its place nor the loops around it depend on the grid loop along which the
cluster lies. Its first dimension is divided: every part must be whole repetitions of the swizzle's pattern.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import names_in
from tcomp.ir.blocks import Cluster
from tcomp.ir.tile import Buffer, Kernel, Loop, Pack, Statement, Swizzled
from tcomp.ir.walk import grid_nest

HALF = "half of pair"
"""the variable that is 0 in the first block of a pair, 1 in the second, where each has half of a tile"""
PART_ALIGNMENT = 128
"""bytes that a part without swizzle is a multiple of"""


def shared_packs(
    phase: Sequence[Statement],
    cluster: Cluster | None,
    buffers: Mapping[str, Buffer],
    anywhere: bool = False,
    whole: bool = False,
) -> dict[int, Pack]:
    """By their numbers, the tensor copies at the start of pipe loops that the blocks of a cluster share; `anywhere`:
    also those that a loop of one turn has left without a ring; `whole`: also of tiles that do not divide into parts."""
    found: dict[int, Pack] = {}

    def shareable(s: Pack, cluster: Cluster) -> bool:
        return s.by == "tma" and _same(s, cluster) and (whole or divisible(buffers[s.buffer], cluster.blocks))

    def visit(body: Sequence[Statement], pipe: bool) -> None:
        for s in body:
            assert cluster is not None
            if isinstance(s, Loop):
                if s.level == "grid" or cluster.variable not in names_in(s.start) | names_in(s.stop):
                    visit(s.body, s.level == "pipe")
            elif isinstance(s, Pack) and (pipe or anywhere) and shareable(s, cluster):
                found[id(s)] = s

    if cluster is not None:
        visit(phase, False)
    return found


def _same(pack: Pack, cluster: Cluster) -> bool:
    """Do all blocks of the cluster copy the same?"""
    named = {n for a in pack.axes for e in (a.start, a.stop) for n in names_in(e)}
    named |= {n for s in pack.source.subscripts for n in names_in(s)}
    return not named & {cluster.variable, HALF}


def divisible(tile: Buffer, parts: int) -> bool:
    """Can the tile be delivered in so many equal parts?"""
    if len(tile.shape) < 2 or tile.shape[0] % parts:
        return False
    rows = math.prod(tile.shape[:-1]) // parts
    if isinstance(tile.layout, Swizzled):
        return rows % tile.layout.rows == 0
    return rows * tile.shape[-1] * tile.dtype.bytes % PART_ALIGNMENT == 0


def without_idle_cluster(kernel: Kernel) -> Kernel:
    """The kernel without its cluster, where at its extents no tile divides among the blocks."""
    if kernel.blocks is None or kernel.blocks.cluster is None:
        return kernel
    buffers = kernel.buffers
    if any(shared_packs(p, cluster_of(kernel, p), buffers, anywhere=True) for p in kernel.phases):
        return kernel
    return replace(kernel, blocks=replace(kernel.blocks, cluster=None))


def cluster_of(kernel: Kernel, phase: Sequence[Statement]) -> Cluster | None:
    """The kernel's cluster, in a phase that has the grid loop it lies along."""
    cluster = kernel.gpu.cluster
    along = cluster is not None and any(loop.variable == cluster.variable for loop in grid_nest(phase)[0])
    return cluster if along else None
