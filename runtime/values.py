"""Slots' elements in NumPy: types that NumPy lacks (bf16, the 8-bit floats) are held as their bits.

`stored` makes what a slot holds from values (`store` in memory that is there already), `values` gives back what it
means.
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


_BLOCK = 1 << 15
"""Elements that are rounded at a time, so that their words stay in a cache and need no memory to speak of."""


def numpy_type(dtype: DType) -> np.dtype[Any]:
    """The type of a slot's elements in NumPy."""
    kind: np.dtype[Any] = np.dtype(_NUMPY[dtype])
    return kind


def stored(value: ArrayLike, dtype: DType) -> Array:
    """`value` as elements of a slot of `dtype`, rounded to nearest even. bf16 given as uint16 is taken as bits."""
    given = np.asarray(value)
    if dtype is DType.BF16 and given.dtype == np.float32:
        out = np.empty(given.shape, np.uint16)
        _round_words(np.ascontiguousarray(given).reshape(-1), out.reshape(-1))
        return out
    if dtype is DType.BF16 and given.dtype != np.uint16:
        bits = round_to(given, dtype).astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    if dtype in (DType.E4M3, DType.E5M2) and given.dtype != np.uint8:
        codes = _eight_bits(dtype)
        order = np.argsort(codes, kind="stable")
        rounded = round_to(given, dtype)
        return order[np.searchsorted(codes[order], rounded)].astype(np.uint8)
    return np.asarray(given, dtype=numpy_type(dtype))


def store(value: ArrayLike, dtype: DType, out: Array) -> None:
    """Write `value`, broadcast, into a slot's array `out`: what `stored` gives, without a copy of a large f32 one."""
    given = np.asarray(value)
    whole = given.shape == out.shape and given.flags.c_contiguous and out.flags.c_contiguous
    if dtype is DType.BF16 and given.dtype == np.float32 and whole:
        _round_words(given.reshape(-1), out.reshape(-1))
    else:
        out[...] = stored(given, dtype)


def _round_words(given: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """f32 as bf16 by its bits: half a unit of the last place that stays is added, less one bit where that one is even.
    The carry goes on into the exponent, up to infinity."""
    room = np.empty(min(_BLOCK, given.size), np.uint32)
    for at in range(0, given.size, _BLOCK):
        bits = given[at : at + _BLOCK].view(np.uint32)
        words = room[: bits.size]
        np.right_shift(bits, 16, out=words)
        np.bitwise_and(words, 1, out=words)
        np.add(words, 0x7FFF, out=words)
        np.add(words, bits, out=words)
        part = out[at : at + _BLOCK]
        np.right_shift(words, 16, out=part, casting="unsafe")
        nan = np.isnan(given[at : at + _BLOCK])
        if nan.any():
            part[nan] = bits[nan] >> 16 | 0x40  # quiet, whatever the bits that are cut off


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
