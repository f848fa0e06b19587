"""Bytes of matrix operands -> f32 values, exact for every type the tensor cores multiply.

Products of two such values are exact in f32 (24 bits hold 11 x 11), so a float32 matrix product is a sum of
exact products with f32 rounding, which is what PTX promises ("at least single precision", order unspecified).
"""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu import formats
from tcomp.runtime.vgpu.lanes import Array, some

BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1, "f64": 64}
INTEGERS = ("s8", "u8", "s4", "u4", "b1")


def values(raw: Array, kind: str) -> Array:
    """uint8 (..., bytes) -> f32 (..., elements); f64 stays f64. Elements come lowest bits first.

    tf32 drops the low 13 bits, as the hardware does.
    """
    raw = np.ascontiguousarray(raw)
    if kind in ("f16", "bf16"):
        return formats.from16(raw.view(np.uint16), kind)
    if kind == "tf32":
        return (raw.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    if kind in ("e4m3", "e5m2"):
        return formats.from8(raw, kind)
    if kind == "f64":
        return raw.view(np.float64)
    if kind in ("s4", "u4"):
        pair = np.stack([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1).reshape(*raw.shape[:-1], -1)
        wide = pair.astype(np.float32)
        return wide - np.float32(16) * (pair >= 8) if kind == "s4" else wide
    if kind == "b1":
        return np.unpackbits(raw, axis=-1, bitorder="little").astype(np.float32)
    return raw.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32)


def canonical(x: Array) -> Array:
    """Every f32 NaN becomes 0x7fffffff, in place."""
    bad = np.isnan(x)
    if some(bad):
        x.view(np.uint32)[bad] = 0x7FFFFFFF
    return x


def wrap32(x: Array) -> Array:
    """int64 -> int32 modulo 2**32."""
    return x.astype(np.int64).astype(np.uint32).view(np.int32)


def saturate32(x: Array) -> Array:
    return np.clip(x, -(1 << 31), (1 << 31) - 1).astype(np.int32)


def truncated_sum(old: Array, new: Array, bits: int) -> Array:
    """f32 old + new after both are cut towards zero to `bits` significant bits of the larger one.

    Models the fp8 tensor cores of Hopper, which align addends to the largest and keep about 14 bits
    (DeepSeek-V3 report, 2024, section 3.3.2): long sums lose their small addends, and are biased to zero.
    """
    top = np.maximum(np.abs(old), np.abs(new))
    exponent = np.frexp(top)[1] - bits
    unit = np.ldexp(np.float32(1), np.maximum(exponent, -149)).astype(np.float32)
    with np.errstate(all="ignore"):
        cut = np.trunc(old / unit) * unit + np.trunc(new / unit) * unit
    return np.where(np.isfinite(top) & (top > 0), cut, old + new).astype(np.float32)
