"""The measured ceilings: what their machine code computes, and figures that make sense."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tcomp.runtime.cpu import ceilings


@pytest.mark.parametrize("kind", ["read", "triad"])
def test_the_memory_loops_touch_every_element(kind: str) -> None:
    a, b, c = (ceilings._aligned(4096, v) for v in (0, 1, 2))
    ceilings._function(kind, *[ctypes.c_void_p] * 3)(4096, *[x.ctypes.data for x in (a, b, c)])
    if kind == "triad":
        assert (a == 7).all()
    else:
        assert a[: ceilings.vector_widths()[-1]].sum() == 4096
        assert not a[ceilings.vector_widths()[-1] :].any()


def test_the_arithmetic_loop_does_all_its_turns() -> None:
    lanes = ceilings.vector_widths()[-1]
    data = ceilings._aligned(2 * lanes, 0.5)
    ceilings._function(f"fma{lanes}", ctypes.c_void_p)(100, data.ctypes.data)
    assert data[0] == ceilings.ACCUMULATORS * (0.5 + 100 * 0.25)


def test_rates_are_positive_and_ordered() -> None:
    for found in (ceilings.fma_peak(1, seconds=0.001, repetitions=3), ceilings.bandwidth("triad", 1, 8, 3)):
        assert 0 < found.low <= found.median <= found.high
        assert found.unit in str(found)
    assert np.isfinite(ceilings.bandwidth("read", 2, 8, 3).median)
