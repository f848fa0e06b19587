"""Masks and values of lanes, against NumPy's own functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tcomp.runtime.vgpu.lanes import changes, distinct, every, greatest, indices, least, one_each, some


@given(st.lists(st.integers(-3, 3), max_size=40))
def test_masks_and_values_are_as_numpy_says(values: list[int]) -> None:
    a = np.array(values, np.int64)
    assert (some(a > 1), every(a > -3), some(a)) == ((a > 1).any(), (a > -3).all(), a.any())
    np.testing.assert_array_equal(distinct(a), np.unique(a))
    np.testing.assert_array_equal(indices(a > 1), np.flatnonzero(a > 1))
    np.testing.assert_array_equal(changes(a), [i == 0 or v != values[i - 1] for i, v in enumerate(values)])
    assert not values or (least(a), greatest(a)) == (min(values), max(values))


@pytest.mark.parametrize("holds", [False, True])
def test_a_mask_of_one_value(holds: bool) -> None:
    assert some(np.array(holds)) is every(np.array(holds)) is some(np.bool_(holds)) is holds


def test_one_value_stands_for_each_lane() -> None:
    np.testing.assert_array_equal(one_each(np.uint32(7), 3), np.full(3, 7, np.uint32))
    np.testing.assert_array_equal(one_each(np.arange(3), 3), [0, 1, 2])
    with pytest.raises(ValueError):
        one_each(np.arange(2), 3)
