"""Elements of narrow types: what is stored is what round_to says, and reads back as it was."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.numeric import round_to
from tcomp.runtime.values import numpy_type, store, stored, values

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


SPECIAL = np.array(
    [0x0000_0001, 0x7F7F_FFFF, 0x7F80_0000, 0x8000_8000, 0x8001_8000, 0x7F80_0001, 0xFFFF_FFFF], np.uint32
)
"""A tiny subnormal, what rounds to infinity, infinity, two ties, NaNs of which bf16 would keep no bit or all of them"""


def test_f32_is_rounded_to_bf16_by_its_bits() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 100_001, dtype=np.uint32)
    bits = np.concatenate([bits, bits & ~np.uint32(0x7FFF), SPECIAL])  # every second of these is a tie
    given = bits.view(np.float32)
    nan = np.isnan(given)
    with np.errstate(invalid="ignore"):
        found, meant = values(stored(given, DType.BF16), DType.BF16), round_to(given, DType.BF16)
    assert np.isnan(found[nan]).all()
    np.testing.assert_array_equal(found[~nan].astype(np.float64), meant[~nan])
    np.testing.assert_array_equal(np.signbit(found), np.signbit(given))


@pytest.mark.parametrize("turned", [False, True])
def test_values_are_stored_in_memory_that_is_there(turned: bool) -> None:
    given = np.random.default_rng(2).standard_normal((301, 200)).astype(np.float32)
    given = given.T if turned else given
    out = np.empty(given.shape, np.uint16)
    store(given, DType.BF16, out)
    np.testing.assert_array_equal(out, stored(given, DType.BF16))
    store(1.5, DType.BF16, out)
    assert (values(out, DType.BF16) == 1.5).all()
