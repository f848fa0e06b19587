"""Blocks that stand for all of a launch: the ways of their warps, and the counts of each.

Warps that take the same way count once for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tcomp.autotune.gpu_counts import Copies, Counts, counts_of
from tcomp.autotune.opcodes import LANES
from tcomp.autotune.sass import Function
from tcomp.autotune.sass_walk import Walk, Way
from tcomp.codegen.nvptx.launch import LaunchShape

GOLDEN = (5**0.5 - 1) / 2
"""whose multiples, without their whole parts, lie as far apart as such places can"""
Count = Callable[[Counts], float]
"""One of a warp's counts."""


@dataclass(frozen=True)
class Sample:
    """The counts of a block: each kind of warp with how many there are of it."""

    warps: tuple[tuple[int, Counts], ...]
    ways: tuple[Way, ...]
    """of each kind of warp"""
    groups: tuple[Way, ...]
    """of each four warps, that of the one whose way is longest"""
    unknown: int
    cut: bool
    steps: int

    def total(self, count: Count) -> float:
        """Of all the block's warps together."""
        return float(sum(n * count(c) for n, c in self.warps))

    def most(self, count: Count) -> float:
        """Of the warp that has the most."""
        return float(max((count(c) for _, c in self.warps), default=0.0))

    def many(self, which: Callable[[Counts], bool]) -> int:
        """How many of the block's warps are such."""
        return sum(n for n, c in self.warps if which(c))

    @property
    def wgmma(self) -> bool:
        """Does the block multiply by wgmma?"""
        return any(c.wgmma for _, c in self.warps)

    @property
    def tcgen05(self) -> bool:
        """Are the block's sums in tensor memory, multiplied by one of its threads?"""
        return any(c.tcgen05 for _, c in self.warps)


def sample_block(
    function: Function, launch: LaunchShape, block: int, constants: Mapping[int, int], copy: Copies
) -> Sample:
    """Walk the block's warps, or a few that stand for all."""
    warps = -(-launch.threads // LANES)
    bank = {0x0: launch.threads, 0xC: launch.blocks, 0x360: launch.threads, 0x370: launch.blocks, **constants}
    kinds: dict[tuple[tuple[int, int], ...], tuple[int, Counts, Way]] = {}
    unknown, cut, steps = 0, False, 0
    every: list[Way] = []
    roles = any(i.name == "SYNCS" for i in function.instructions)
    for w, members in _representatives(warps, roles):
        special = {
            "SR_TID.X": w * LANES, "SR_CTAID.X": block, "SR_LANEID": 0, "SR_TID.Y": 0, "SR_TID.Z": 0, "SR_CTAID.Y": 0,
            "SR_CTAID.Z": 0, "SR_CgaCtaId": 0, "SR_NCTAID.X": launch.blocks, "SR_VIRTID": 0,
        }  # fmt: skip
        path = Walk(function, special, bank).run()
        every += [path] * members
        unknown, cut = max(unknown, path.unknown), cut or path.cut
        steps = max(steps, sum(path.visits.values()))
        key = tuple(sorted(path.visits.items()))
        if key in kinds:
            kinds[key] = kinds[key][0] + members, kinds[key][1], path
        else:
            kinds[key] = members, counts_of(function, path, copy), path
    warps_of = tuple((n, c) for n, c, _ in kinds.values())
    groups = tuple(max(every[g : g + 4], key=lambda w: len(w.path)) for g in range(0, warps, 4))
    return Sample(warps_of, tuple(w for _, _, w in kinds.values()), groups, unknown, cut, steps)


def _representatives(warps: int, roles: bool) -> list[tuple[int, int]]:
    """(warp, how many it stands for): every warp where they have roles, else the first and the last."""
    if roles:
        return [(w, 1) for w in range(warps)]
    return [(0, warps)] if warps < 3 else [(0, warps - 1), (warps - 1, 1)]


def some_blocks(blocks: int, at_once: bool) -> list[int]:
    """Blocks that are followed: where all run at once those at the ends and between them, since the longest decides; of
    rounds of them a few that no stride meets. (Of attention over 16,384 tokens every 86th block has the last rows of a
    head, which are cut: the first, the last and every quarter were such blocks.)"""
    if at_once:
        return list(dict.fromkeys((blocks // 2, 0, blocks // 4, 3 * blocks // 4, blocks - 1)))
    return list(dict.fromkeys(int(k * GOLDEN % 1.0 * blocks) for k in range(1, 6)))
