"""What the language's casts and its random numbers mean, in NumPy: the reference every backend must equal.

`round_to` rounds float64 to the nearest value of a narrow type (ties to even). `random_uniform` is the
counter-based generator: a 32-bit integer hash (lowbias32, C. Wellons) of seed and counter, top 24 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import DType

Array = NDArray[Any]

_FORMATS = {  # fraction bits, smallest normal exponent, largest finite value, overflow saturates
    DType.BF16: (7, -126, (2 - 2.0**-7) * 2.0**127, False),
    DType.F16: (10, -14, 65504.0, False),
    DType.E4M3: (3, -6, 448.0, True),
    DType.E5M2: (2, -14, 57344.0, True),
}

NARROW = frozenset(_FORMATS)
"""The types to which assigning rounds."""


def round_to(x: Array, dtype: DType) -> Array:
    """The values of `dtype` nearest to `x`, ties to even, subnormals kept, as float64 (i32: towards zero).

    f32 and f64 stand for exact reals here and change nothing. Too large a value becomes infinite in bf16
    and f16, and the largest finite value in e4m3 and e5m2 (as the saturating conversions of GPUs do).
    """
    with np.errstate(invalid="ignore"):  # (what is no number, and NaNs that signal)
        if dtype is DType.I32:
            return np.asarray(x).astype(np.int64)
        x = np.asarray(x).astype(np.float64)
    if dtype not in _FORMATS:
        return x
    bits, low, largest, saturates = _FORMATS[dtype]
    with np.errstate(invalid="ignore", over="ignore"):
        _, exponent = np.frexp(x)
        quantum = np.ldexp(1.0, np.maximum(exponent - 1, low) - bits)
        rounded = np.where(np.isfinite(x), np.round(x / quantum) * quantum, x)
        beyond = np.abs(rounded) > largest
    return np.where(beyond, np.copysign(largest if saturates else np.inf, x), rounded)


def round_stochastic(x: Array, u: Array, dtype: DType) -> Array:
    """The value of `dtype` next to `x` away from zero where the fraction of a unit that is cut off plus `u` reaches 1,
    else the one towards zero, as float64. `u` in [0, 1): uniform, it makes the expected result `x`."""
    with np.errstate(invalid="ignore"):
        x = np.asarray(x).astype(np.float64)
    if dtype not in _FORMATS:
        return x
    bits, low, largest, saturates = _FORMATS[dtype]
    with np.errstate(invalid="ignore", over="ignore"):
        _, exponent = np.frexp(x)
        quantum = np.ldexp(1.0, np.maximum(exponent - 1, low) - bits)
        units = np.abs(x) / quantum
        below = np.floor(units)
        rounded = np.copysign((below + (units - below + u >= 1)) * quantum, x)
        rounded = np.where(np.isfinite(x), rounded, x)
        beyond = np.abs(rounded) > largest
    return np.where(beyond, np.copysign(largest if saturates else np.inf, x), rounded)


def random_uniform(seed: Array, counter: Array) -> Array:
    """Uniform in [0, 1), a multiple of 2**-24; integers are taken modulo 2**32."""
    h = _mix(_word(np.asarray(seed) + 0x9E3779B9)) + _word(counter)
    h = _mix(h & np.uint64(0xFFFFFFFF))
    return (h >> np.uint64(8)).astype(np.float64) * 2.0**-24


def _word(x: Array) -> NDArray[np.uint64]:
    return (np.asarray(x).astype(np.int64) & 0xFFFFFFFF).astype(np.uint64)


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """lowbias32 on 32-bit words held in 64 bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h = h ^ (h >> np.uint64(shift))
        h = (h * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return h
