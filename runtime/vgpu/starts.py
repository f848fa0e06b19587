"""In which order the clusters of a wave start and take turns: as numbered and together, or shuffled by a seed.

A GPU promises no order among blocks. A shuffled wave is dealt to slots at random and cut into a few cohorts, of which
the later ones start after a while, or only when the earlier ones have ended or cannot go on without them. A cohort runs
until all of its lanes wait or spin, then the next one does, so blocks that wait for others never keep those from
running. Which blocks share a wave does not change: one that waits for an earlier block finds it resident or finished.
"""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu.lanes import Array

MOST_COHORTS = 4
GAPS = (0, 2, 16, 1 << 40)
"""how many times all that has started must have waited before the next cohort starts; the last one: until it must"""


def starts(seed: int, first: int, teams: int) -> tuple[Array, list[tuple[int, int]]]:
    """For a wave of `teams` clusters (single blocks where there are none), of which `first` is the first: which of
    them, counted from 0, each place takes, and of each cohort its first place and the round in which it starts.
    Seed 0: in order, in one cohort."""
    if not seed or teams < 2:
        return np.arange(teams), [(0, 0)]
    rng = np.random.default_rng((seed, first))
    cohorts = int(rng.integers(2, min(teams, MOST_COHORTS), endpoint=True))
    cuts = np.sort(rng.choice(np.arange(1, teams), cohorts - 1, replace=False))
    rounds = np.cumsum(rng.choice(GAPS, cohorts - 1))
    return rng.permutation(teams), [(0, 0), *zip(cuts.tolist(), rounds.tolist(), strict=True)]
