"""The measured ceilings: what their machine code computes, and figures that make sense."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tcomp.machine.cpu import detect
from tcomp.runtime.cpu import ceilings
from tcomp.runtime.cpu.function_ceilings import function_kernel, function_rate
from tcomp.runtime.cpu.single import SingleKernel


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


@pytest.mark.parametrize("function", ["exp", "divide"])
def test_a_function_is_evaluated_for_every_element_of_every_thread(function: str) -> None:
    with SingleKernel(function_kernel(function, detect().lanes_f32, 2, 3), detect(), 2) as kernel:
        kernel.array("X")[...] = 0.5
        kernel.run()
        np.testing.assert_allclose(kernel.array("Y"), np.exp(0.5) if function == "exp" else 2.0, rtol=3e-7)
    assert function_rate(function, 1, 10, 3).low > 0


def test_time_grows_with_the_turns() -> None:
    """The loop over turns is not optimised away."""
    rates = [function_rate("exp", 1, turns, 5).high for turns in (200, 2000)]
    assert 0.2 < rates[1] / rates[0] < 5
