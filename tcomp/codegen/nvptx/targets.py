"""GPU targets: what each can be told, and the lowest PTX version that says it.

A driver refuses PTX newer than itself, so a module's version is the lowest that its target and the instructions in
it allow. `FEATURES` lists the instructions whose version is above some target's own lowest; each carries a sample,
which the tests give to the assembler at that version (accepted) and the one before (refused). Source: the PTX ISA's
"PTX ISA Notes" of each instruction and the assembler's own answers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tcomp.errors import UserError

Version = tuple[int, int]

VERSIONS: tuple[Version, ...] = (
    (7, 0), (7, 1), (7, 2), (7, 3), (7, 4), (7, 5), (7, 6), (7, 7), (7, 8),
    (8, 0), (8, 1), (8, 2), (8, 3), (8, 4), (8, 5), (8, 6), (8, 7), (8, 8), (9, 0),
)  # fmt: skip
"""PTX versions that code is written for, oldest first."""


@dataclass(frozen=True)
class GpuTarget:
    """A compilation target. `version` is the oldest PTX version that knows it."""

    name: str
    sm: int
    version: Version
    capability: Version

    def ptx_version(self, features: Iterable[str] = ()) -> Version:
        """The oldest PTX version for code that uses these features. UserError for one that the target lacks."""
        return max([self.version, *(feature(f, self).version_for(self) for f in features)])

    def llvm_features(self, features: Iterable[str] = ()) -> str:
        """LLVM's feature string for that version: "+ptx80". LLVM ends the process when it is below the target's own."""
        major, minor = self.ptx_version(features)
        return f"+ptx{major}{minor}"


TARGETS = {
    t.name: t
    for t in (
        GpuTarget("sm_80", 80, (7, 0), (8, 0)),
        GpuTarget("sm_89", 89, (7, 8), (8, 9)),
        GpuTarget("sm_90a", 90, (8, 0), (9, 0)),
        GpuTarget("sm_100a", 100, (8, 6), (10, 0)),
        GpuTarget("sm_120a", 120, (8, 7), (12, 0)),
    )
}


@dataclass(frozen=True)
class Feature:
    """Instructions that need a PTX version and a target. `pattern` finds them in PTX; `sample` is one of them.

    `targets` are the names of `TARGETS` that have it.
    """

    name: str
    version: Version
    targets: frozenset[str]
    pattern: str
    sample: str
    sooner: tuple[tuple[str, Version], ...] = ()
    """targets that had it from an older version on"""

    def version_for(self, target: GpuTarget) -> Version:
        """The oldest PTX version with which the target takes it."""
        return max(dict(self.sooner).get(target.name, self.version), target.version)


_ALL = frozenset(TARGETS)
_FROM_89 = _ALL - {"sm_80"}
_FROM_90 = _FROM_89 - {"sm_89"}
_FROM_100 = _FROM_90 - {"sm_90a"}

FEATURES = {
    f.name: f
    for f in (
        Feature(
            "prefetch.l2", (7, 4), _ALL, r"\bL2::(64B|128B|256B)\b", "ld.global.L2::128B.f32 %f0, [%d0];"
        ),
        Feature(
            "cache.policy", (7, 4), _ALL, r"\bcreatepolicy\.|\bL2::cache_hint\b",
            "createpolicy.fractional.L2::evict_first.b64 %d1, 1.0;",
        ),
        Feature("movmatrix", (7, 8), _ALL, r"\bmovmatrix\.", "movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r1;"),
        Feature("bf16.convert", (7, 1), _ALL, r"\bcvt\.f32\.bf16\b", "cvt.f32.bf16 %f0, %h0;"),
        Feature(
            "bf16.arithmetic", (7, 8), _FROM_90, r"\b(add|sub|mul)(\.rn)?\.bf16(x2)?\b",
            "add.bf16x2 %r0, %r1, %r2;",
        ),
        Feature("bf16.exp2", (7, 8), _FROM_90, r"\bex2\.approx\.ftz\.bf16", "ex2.approx.ftz.bf16x2 %r0, %r1;"),
        Feature(
            "bf16.atomic", (7, 8), _FROM_90, r"\b(red|atom)\.[\w.:]*bf16",
            "red.global.add.noftz.bf16x2 [%d0], %r0;",
        ),
        Feature(
            "stmatrix", (7, 8), _FROM_90, r"\bstmatrix\.",
            "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r0], {%r1};",
        ),
        Feature("cluster", (7, 8), _FROM_90, r"\bbarrier\.cluster\.|\bmapa\.", "barrier.cluster.arrive.aligned;"),
        Feature("griddepcontrol", (7, 8), _FROM_90, r"\bgriddepcontrol\.", "griddepcontrol.wait;"),
        Feature(
            "mbarrier.try_wait", (7, 8), _FROM_90, r"\bmbarrier\.try_wait\.",
            "mbarrier.try_wait.parity.shared.b64 %p0, [%r0], %r1;",
        ),
        Feature("elect", (8, 0), _FROM_90, r"\belect\.sync\b", "elect.sync _|%p0, -1;"),
        Feature("fence.proxy", (8, 0), _FROM_90, r"\bfence\.proxy\.async\b", "fence.proxy.async;"),
        Feature("bulk", (8, 0), _FROM_90, r"\bcp(\.reduce)?\.async\.bulk\.", "cp.async.bulk.commit_group;"),
        Feature("setmaxnreg", (8, 0), _FROM_90, r"\bsetmaxnreg\.", "setmaxnreg.inc.sync.aligned.u32 240;"),
        Feature("wgmma", (8, 0), frozenset({"sm_90a"}), r"\bwgmma\.", "wgmma.fence.sync.aligned;"),
        Feature(
            "fp8.convert", (8, 1), _FROM_89, r"\bcvt\.[\w.]*(e4m3x2|e5m2x2)\b",
            "cvt.rn.satfinite.e4m3x2.f32 %h0, %f0, %f1;", sooner=(("sm_90a", (7, 8)),),
        ),
        Feature(
            "vector.atomic", (8, 1), _FROM_90, r"\b(red|atom)\.[\w.:]*\.v[248]\.",
            "red.global.add.v4.f32 [%d0], {%f0, %f1, %f2, %f3};",
        ),
        Feature(
            "fp8.mma", (8, 4), _FROM_89, r"\bmma\.sync\.[\w.]*(e4m3|e5m2)\.(e4m3|e5m2)\.f32\b",
            "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
            "{%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};",
        ),
        Feature("f32x2", (8, 6), _FROM_100, r"\b(add|mul|fma)\.(\w+\.)*f32x2\b", "fma.rn.f32x2 %d0, %d1, %d2, %d3;"),
        Feature(
            "bulk.cta", (8, 6), _FROM_90, r"\bcp\.async\.bulk\.(tensor\.\dd\.)?shared::cta\.global\b",
            "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r0], [%d0], 16, [%r1];",
        ),
        Feature(
            "access.256", (8, 8), _FROM_100, r"\b(ld|st)\.global\.[\w.:]*v8\.",
            "ld.global.v8.f32 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, [%d0];",
        ),
    )
}  # fmt: skip


def target_named(name: str) -> GpuTarget:
    """The target `sm_90a`. UserError with the list for any other name."""
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.75)
    listing = f"GPU targets: {', '.join(TARGETS)}"
    raise UserError(f"there is no GPU target {name!r}", f"did you mean {near[0]!r}? {listing}" if near else listing)


def feature(name: str, target: GpuTarget) -> Feature:
    """The feature of that name; UserError where the target lacks it, KeyError where nobody has heard of it."""
    found = FEATURES[name]
    if target.name not in found.targets:
        raise UserError(
            f"{target.name} has no {name} instructions", f"targets that have them: {', '.join(sorted(found.targets))}"
        )
    return found


def features_in(ptx: str) -> frozenset[str]:
    """Features used by a PTX text."""
    return frozenset(f.name for f in FEATURES.values() if re.search(f.pattern, ptx))
