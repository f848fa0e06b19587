"""Reductions of whole numbers are exact past 2**24, wherever parts of them are kept: in tiles, or left by blocks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tcomp.nvptx.support import lowered, run

TEXT = """
op f(X: i32[M, K]) -> s: i32[M]:
  s[m] = {reducer} k: X[m, k]

schedule f on gpu:
  m -> grid.x(4)
  k -> {levels}
"""
LEVELS = {
    "one tile after the other": "seq(16) / lane.x",
    "parts of blocks": "grid.y(16) / lane.x\n  combine s over k by partials",
    "parts in tiles": "grid.y(32) / seq(16) / lane.x\n  combine s over k by partials",
}


@pytest.mark.parametrize("reducer", ["sum", "max", "min"])
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_whole_numbers_stay_whole(levels: str, reducer: str) -> None:
    x = np.full((8, 75), 0x1000001, np.int32)
    x[:, 3:] = 0xFFFFF
    x[0] = -x[0]
    run(lowered(TEXT.format(reducer=reducer, levels=levels), {"M": 8, "K": 75}), {"X": x}, tolerance=1e-12)
