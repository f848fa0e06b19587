"""Narrow float formats as bits: f16, bf16, tf32, e4m3, e5m2, to and from f32 with PTX's rounding and NaN forms."""

from __future__ import annotations

from functools import cache

import numpy as np

from tcomp.runtime.vgpu.lanes import Array


def from16(bits: Array, kind: str) -> Array:
    """uint16 bits of f16 or bf16 -> f32."""
    bits = np.ascontiguousarray(bits)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to16(x: Array, kind: str, mode: str = "rn") -> Array:
    """f32 or f64 (rounded to odd when not exact) -> uint16 bits; NaN becomes 0x7FFF."""
    x = np.asarray(x)
    if kind == "f16":
        half = x.astype(np.float16)
        if mode != "rn":
            half = _directed16(x, half, mode)
        bits = half.view(np.uint16)
    else:
        if x.dtype == np.float64:
            x = _odd32(x)
        raw = np.ascontiguousarray(x).view(np.uint32)
        keep = raw >> np.uint32(16)
        low = raw & np.uint32(0xFFFF)
        negative = raw >> np.uint32(31) != 0
        if mode == "rn":
            up = (low > 0x8000) | ((low == 0x8000) & (keep & np.uint32(1) != 0))
        else:
            up = (low != 0) & ({"rz": False, "rp": ~negative, "rm": negative}[mode])
        bits = (keep + up).astype(np.uint16)
        if mode in ("rz", "rm", "rp"):
            bits = np.where(np.isinf(x), keep.astype(np.uint16), bits)
    return np.where(np.isnan(x), np.uint16(0x7FFF), bits)


def _odd32(x: Array) -> Array:
    """f64 -> f32 rounded to odd, so that a second rounding is still correct."""
    r = x.astype(np.float32)
    wide = r.astype(np.float64)
    inexact = (wide != x) & np.isfinite(x)
    bits = np.atleast_1d(r).view(np.int32).reshape(r.shape)
    toward = np.where(np.abs(wide) > np.abs(x), -1, 0)
    truncated = bits + np.where(inexact, toward, 0)
    return np.ascontiguousarray(np.where(inexact, truncated | 1, bits).astype(np.int32)).view(np.float32)


def _directed16(x: Array, half: Array, mode: str) -> Array:
    wide = half.astype(np.float64)
    up, down = wide < x, wide > x
    if mode == "rz":
        up, down = up & (x < 0), down & (x > 0)
    inf = np.float16(np.inf)
    if mode != "rm":
        half = np.where(up, np.nextafter(half, inf), half)
    if mode != "rp":
        half = np.where(down, np.nextafter(half, -inf), half)
    return half


def to_tf32(x: Array, mode: str) -> Array:
    """f32 -> f32 with 10 mantissa bits: rn (ties to even), rna (ties away), rz."""
    raw = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if mode == "rna":
        out = raw + np.uint32(0x1000)
    elif mode == "rn":
        out = raw + np.uint32(0xFFF) + (raw >> np.uint32(13) & np.uint32(1))
    else:
        out = raw
    out = np.where(np.isfinite(x), out & np.uint32(0xFFFFE000), raw)
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), out).astype(np.uint32)


@cache
def table8(kind: str) -> Array:
    """The f32 value of each of the 256 codes of e4m3 (no infinity) or e5m2."""
    exponent_bits, bias = (4, 7) if kind == "e4m3" else (5, 15)
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    e = code >> mantissa_bits & (1 << exponent_bits) - 1
    m = code & (1 << mantissa_bits) - 1
    value = np.where(e == 0, m * 2.0 ** (1 - bias - mantissa_bits), (1 + m / (1 << mantissa_bits)) * 2.0 ** (e - bias))
    value = sign * value
    if kind == "e4m3":
        value[code & 0x7F == 0x7F] = np.nan
    else:
        value[(e == 31) & (m == 0)] = np.inf * sign[(e == 31) & (m == 0)]
        value[(e == 31) & (m != 0)] = np.nan
    return value.astype(np.float32)


def from8(bits: Array, kind: str) -> Array:
    found: Array = table8(kind)[bits]
    return found


def to8(x: Array, kind: str) -> Array:
    """f32 -> uint8 codes, rn, satfinite."""
    positive = table8(kind)[: 0x7F if kind == "e4m3" else 0x7C].astype(np.float64)
    a = np.minimum(np.abs(np.asarray(x, np.float64)), positive[-1])
    a = np.where(np.isnan(a), 0.0, a)
    high = np.minimum(np.searchsorted(positive, a), len(positive) - 1)
    low = np.maximum(high - 1, 0)
    up, down = positive[high] - a, a - positive[low]
    code = np.where((up < down) | ((up == down) & (high % 2 == 0)), high, low)
    code = code | np.where(np.signbit(x), 0x80, 0)
    return np.where(np.isnan(x), 0x7F, code).astype(np.uint8)
