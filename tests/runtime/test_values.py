"""Elements of narrow types: what is stored is what round_to says, and reads back as it was."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.numeric import round_to
from tcomp.runtime.values import numpy_type, stored, values

NARROW = (DType.BF16, DType.F16, DType.E4M3, DType.E5M2)


@pytest.mark.parametrize("dtype", NARROW)
def test_every_code_survives(dtype: DType) -> None:
    kind = numpy_type(dtype)
    codes = np.arange(1 << 8 * kind.itemsize).astype(f"u{kind.itemsize}").view(kind)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        meant = values(codes, dtype).astype(np.float64)
    again = values(stored(meant, dtype), dtype).astype(np.float64)
    np.testing.assert_array_equal(again[np.isfinite(meant)], meant[np.isfinite(meant)])
    assert np.isnan(again[np.isnan(meant)]).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_values_are_rounded_to_the_nearest(dtype: DType) -> None:
    x = np.random.default_rng(0).standard_normal(5000) * np.logspace(-4, 2, 5000)
    np.testing.assert_array_equal(values(stored(x, dtype), dtype).astype(np.float64), round_to(x, dtype))


def test_bits_are_taken_as_bits() -> None:
    assert stored(np.array([0x3F80], np.uint16), DType.BF16)[0] == 0x3F80
    assert stored(1.0, DType.BF16) == 0x3F80
    assert stored(1, DType.F32).dtype == np.float32
