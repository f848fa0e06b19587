"""Blocks that multiply in pairs (tcgen05, `.cta_group::2`): of a product's right operand, which both blocks of a
cluster need, each keeps one half.

    before    W.shared: 256 x 64    pack W from n on                 each block fetches a half and delivers it to both
    after     W.shared: 128 x 64    pack W from n + 128 * half on    each block fetches its half

One thread of the first block multiplies for both, 256 rows by all columns: each block has the operands' rows that it
fetched, and its tensor memory gets the sums of its own 128 rows. So shared memory takes in and gives out half as much
of that operand. PTX ISA, "CTA Pair".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tcomp.codegen.nvptx.layout import leading_packs, pieces_in_tensor_memory, summed_in_tensor_memory
from tcomp.dsl.ast import Binary, Name, Num
from tcomp.instructions import INSTRUCTIONS
from tcomp.instructions.matching import MatchError, match
from tcomp.instructions.tcgen05 import ROWS
from tcomp.ir.multicast import HALF, cluster_of, shared_packs
from tcomp.ir.rewrite import map_leaves
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Statement, Swizzled, Unpack
from tcomp.ir.walk import statements_in

COLUMNS = 32
"""of which a product of two blocks has a multiple (8-bit operands across k; others 16)"""


def in_pairs(kernel: Kernel, target: str) -> Kernel:
    """The kernel with the halves, where it has clusters of two, all of whose products can be of both blocks; else the
    kernel as it is."""
    cluster = kernel.gpu.cluster
    if cluster is None or cluster.blocks != 2 or cluster.paired:
        return kernel
    halves: dict[str, int] = {}
    for phase in kernel.phases:
        if cluster_of(kernel, phase) is None:
            continue
        if pieces_in_tensor_memory(phase):
            return kernel
        for loop in statements_in(phase):
            product = summed_in_tensor_memory(loop)
            if product is None or not isinstance(loop, Loop):
                continue
            found = _half_of(loop, product, phase, kernel, target)
            if found is None:
                return kernel
            halves |= dict((found,))
    if not halves:
        return kernel

    def halved(s: Compute | Pack | Unpack) -> Iterable[Statement]:
        if not isinstance(s, Pack) or s.buffer not in halves:
            return (s,)
        d = halves[s.buffer]
        axis, half = s.axes[d], s.axes[d].block // 2
        start = Binary("+", axis.start, Binary("*", Name(HALF), Num(half)))
        return (replace(s, axes=(*s.axes[:d], replace(axis, start=start, block=half), *s.axes[d + 1 :])),)

    tiles = []
    for t in kernel.tiles:
        shape = tuple(n // (2 if halves.get(t.name) == d else 1) for d, n in enumerate(t.shape))
        tiles.append(replace(t, shape=shape))
    return replace(
        kernel, tiles=tuple(tiles), phases=tuple(map_leaves(p, halved) for p in kernel.phases),
        blocks=replace(kernel.gpu, cluster=replace(cluster, paired=True)),
    )  # fmt: skip


def _half_of(
    loop: Loop, product: Compute, phase: Sequence[Statement], kernel: Kernel, target: str
) -> tuple[str, int] | None:
    """The tile of the loop's right operand and its dimension of columns, of which each block can have a half; None
    where it cannot."""
    buffers, packs = kernel.buffers, {p.buffer: p for p in leading_packs(loop)}
    try:
        found = match(product, buffers, target, INSTRUCTIONS)
    except MatchError:  # (said where its code would be written)
        return None
    left, right = (packs.get(o.buffer.name) for o in (found.a, found.b))
    same = shared_packs(phase, cluster_of(kernel, phase), buffers, whole=True)
    if left is None or right is None or len(packs) != 2 or id(left) in same or id(right) not in same:
        return None
    columns, tile, layout = found.n.block, found.b.buffer, found.b.buffer.layout
    if found.instruction.m != ROWS or columns > found.instruction.n[-1] or columns % COLUMNS:
        return None
    if not isinstance(layout, Swizzled) or len(tile.shape) != 2 or len(right.axes) != 2:
        return None
    along_k = found.b.along_k
    whole = columns // 2 % layout.rows if along_k else columns // 2 * tile.dtype.bytes % layout.width
    return None if whole else (tile.name, 0 if along_k else 1)
