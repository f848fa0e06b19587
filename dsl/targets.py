"""What a schedule may say for each family of targets: levels, spaces, copies, flags and machine facts.

A target is a family (`cpu`, `gpu`) or one of its members (`cpu.avx2`, `sm_90a`); a schedule for a family
holds for every member that has no schedule of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`levels` are listed outermost first. `directives` are those that mean something there: one that would
    be ignored is refused instead."""

    name: str
    levels: tuple[str, ...]
    spaces: tuple[str, ...]
    copies: tuple[str, ...]
    layouts: tuple[str, ...]
    directives: tuple[str, ...]
    flags: tuple[str, ...]
    instructions: tuple[str, ...]
    facts: tuple[str, ...]


CPU = Family(
    name="cpu",
    levels=("core", "seq", "unroll", "vec"),
    spaces=("packed", "cache"),
    copies=("copy", "prefetch", "ahead", "widening"),
    layouts=(),
    directives=("of", "order", "fuse", "stage", "use", "cast", "combine", "tune", "where"),
    flags=("inline",),
    instructions=("vdpbf16ps",),
    facts=("lanes", "vector", "registers", "l1", "l2", "l3", "cores"),
)
GPU = Family(
    name="gpu",
    levels=(
        *("grid", "grid.x", "grid.y", "grid.z", "cluster", "seq", "pipe", "warpgroup"),
        *("warp", "warp.x", "warp.y", "lane", "lane.x", "lane.y", "mma", "unroll", "vec"),
    ),
    spaces=("shared", "registers"),
    copies=("copy", "cp.async", "tma"),
    layouts=("pad", "swizzle"),
    directives=("of", "order", "fuse", "stage", "use", "cast", "combine", "tune", "where"),
    flags=(
        "inline",
        "producer",
        "persistent",
        "raster",
        "reverse",
        "stagger",
        "pingpong",
        "stream",
        "overlap",
        "promote",
    ),
    instructions=("fma", "mma.sync", "mma.sync.tf32", "wgmma", "wgmma.tf32", "tcgen05", "tcgen05.tf32"),
    facts=("smem", "regs", "sms", "l2", "lanes", "vector", "early"),
)
CONDITIONAL = ("stagger", "pingpong", "stream")
"""flags whose argument is the condition under which they hold"""
CPU_TARGETS = ("cpu", "cpu.sse2", "cpu.avx2", "cpu.avx512", "cpu.avx512bf16", "cpu.neon")
GPU_TARGETS = ("gpu", "sm_80", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a")
_GPU_NAME = re.compile(r"sm_[0-9]+a?")


def family_of(target: str) -> Family | None:
    """The family a target belongs to, or None for an unknown target."""
    if target in CPU_TARGETS:
        return CPU
    if target == "gpu" or _GPU_NAME.fullmatch(target):
        return GPU
    return None
