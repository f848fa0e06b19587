"""Conditions that always hold fall away, and nothing else does."""

from __future__ import annotations

import pytest

from tcomp.dsl.ast import Equation
from tcomp.dsl.load import load_text
from tcomp.schedule.certain import without_certain_conditions


def equation(line: str) -> Equation:
    text = f"op f(X: f32[8, 8]) -> Y: f32[8, 8]:\n  index i: 8\n  index j: 8\n  index k: 8\n  {line}\n"
    return load_text(text).ops["f"].equations[0]


@pytest.mark.parametrize(
    ("line", "simpler"),
    [
        ("Y[i, j] = select(i < 8, X[i, j], 0.0)", "Y[i, j] = X[i, j]"),
        ("Y[i, j] = sum k where k <= 7 and k < j: X[i, k]", "Y[i, j] = sum k where k < j: X[i, k]"),
        ("Y[i, j] = sum k where k <= 7: select(k < 8, X[i, k], 0.0)", "Y[i, j] = sum k: X[i, k]"),
        ("Y[i, select(j <= j, 0, 1)] += X[i, i]", "Y[i, select(j <= j, 0, 1)] += X[i, i]"),
    ],
    ids=["select", "guard", "both", "an index that only a condition names"],
)
def test_what_holds_at_every_point_falls_away(line: str, simpler: str) -> None:
    (found,) = without_certain_conditions((equation(line),), {"i": 8, "j": 8, "k": 8})
    assert found == equation(simpler)
