"""Slots' elements in NumPy: types that NumPy lacks (bf16, the 8-bit floats) are held as their bits.

`stored` makes what a slot holds from values, `values` gives back what it means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tcomp.dsl.ast import DType
from tcomp.numeric import round_to

Array = NDArray[Any]

_NUMPY: dict[DType, Any] = {
    DType.F64: np.float64,
    DType.F32: np.float32,
    DType.F16: np.float16,
    DType.BF16: np.uint16,
    DType.I32: np.int32,
    DType.E4M3: np.uint8,
    DType.E5M2: np.uint8,
}


def numpy_type(dtype: DType) -> np.dtype[Any]:
    """The type of a slot's elements in NumPy."""
    kind: np.dtype[Any] = np.dtype(_NUMPY[dtype])
    return kind


def stored(value: ArrayLike, dtype: DType) -> Array:
    """`value` as elements of a slot of `dtype`, rounded to nearest even. bf16 given as uint16 is taken as bits."""
    given = np.asarray(value)
    if dtype is DType.BF16 and given.dtype != np.uint16:
        bits = round_to(given, dtype).astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    if dtype in (DType.E4M3, DType.E5M2) and given.dtype != np.uint8:
        codes = _eight_bits(dtype)
        order = np.argsort(codes, kind="stable")
        rounded = round_to(given, dtype)
        return order[np.searchsorted(codes[order], rounded)].astype(np.uint8)
    return np.asarray(given, dtype=numpy_type(dtype))


def values(array: Array, dtype: DType) -> Array:
    """What a slot's elements mean: floats for those held as bits, other arrays as they are."""
    if dtype is DType.BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype in (DType.E4M3, DType.E5M2):
        return _eight_bits(dtype)[array]
    return array


def _eight_bits(dtype: DType) -> Array:
    """The values of all 256 codes of an 8-bit float (OCP FP8): e4m3 has no infinities."""
    code = np.arange(256)
    bits, bias = (3, 7) if dtype is DType.E4M3 else (2, 15)
    sign = np.where(code >> 7, -1.0, 1.0)
    exponent, fraction = code >> bits & (0xF if bits == 3 else 0x1F), code & ((1 << bits) - 1)
    normal = np.ldexp(1 + fraction / (1 << bits), exponent - bias)
    found = sign * np.where(exponent == 0, np.ldexp(fraction / (1 << bits), 1 - bias), normal)
    if dtype is DType.E4M3:
        found[(code & 0x7F) == 0x7F] = np.nan
    else:
        found[exponent == 0x1F] = np.nan
        found[(code & 0x7F) == 0x7C] = sign[(code & 0x7F) == 0x7C] * np.inf
    return found
