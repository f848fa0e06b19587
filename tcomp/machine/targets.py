"""GPU targets: what each can be told, and the lowest PTX version that says it.

A driver refuses PTX newer than itself, so a module's version is the lowest that its target and the instructions in
it allow. The tests ask the assembler: it takes a sample of each feature at that version, and refuses it at the one
before. Source: the PTX ISA's "PTX ISA Notes" of each instruction and the assembler's own answers.
"""

from __future__ import annotations

import difflib
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
        GpuTarget("sm_103a", 103, (8, 8), (10, 3)),
        GpuTarget("sm_110a", 110, (9, 0), (11, 0)),
        GpuTarget("sm_120a", 120, (8, 7), (12, 0)),
    )
}


@dataclass(frozen=True)
class Feature:
    """Instructions that some targets have (`targets`, names of `TARGETS`), from a PTX version on."""

    name: str
    version: Version
    targets: frozenset[str]
    sooner: tuple[tuple[str, Version], ...] = ()
    """targets that had it from an older version on"""

    def version_for(self, target: GpuTarget) -> Version:
        """The oldest PTX version with which the target takes it."""
        return max(dict(self.sooner).get(target.name, self.version), target.version)


_FROM_89 = frozenset(TARGETS) - {"sm_80"}

FEATURES = {
    f.name: f
    for f in (
        Feature("fp8.convert", (8, 1), _FROM_89, sooner=(("sm_90a", (7, 8)),)),
        Feature("fp8.mma", (8, 4), _FROM_89),
    )
}
"""What the code generator writes that a target's own oldest version does not have yet."""


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
