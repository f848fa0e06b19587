"""Masks and values of lanes, against NumPy's own functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tcomp.runtime.vgpu.lanes import distinct, every, some


@given(st.lists(st.integers(-3, 3), max_size=40))
def test_masks_and_values_are_as_numpy_says(values: list[int]) -> None:
    a = np.array(values, np.int64)
    assert (some(a > 1), every(a > -3), some(a)) == ((a > 1).any(), (a > -3).all(), a.any())
    np.testing.assert_array_equal(distinct(a), np.unique(a))


@pytest.mark.parametrize("holds", [False, True])
def test_a_mask_of_one_value(holds: bool) -> None:
    assert some(np.array(holds)) is every(np.array(holds)) is some(np.bool_(holds)) is holds
