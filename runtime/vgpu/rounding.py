"""IEEE arithmetic with every PTX rounding mode, built on NumPy's round-to-nearest and exact error terms.

f32 works through f64: a product of two f32 is exact there, and a sum is made "round to odd" (its last bit
set when inexact), which makes the second rounding to f32 correct in every mode. f64 uses Dekker's and
Knuth's error-free transforms (Boldo and Melquiond, "Emulation of FMA", 2008), with exact rationals for the
few lanes whose exponents leave the range in which those hold.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, indices, one_each, some

CANONICAL32 = np.frombuffer(b"\xff\xff\xff\x7f", np.float32)[0]
_SPLIT = 134217729.0  # 2**27 + 1


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    p = a * b
    t = _SPLIT * a
    ah = t - (t - a)
    al = a - ah
    t = _SPLIT * b
    bh = t - (t - b)
    bl = b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def to_odd(s: Array, error: Array) -> Array:
    """s (f64, rounded to nearest) moved to the odd neighbour on the side of `error` where inexact."""
    s = np.atleast_1d(np.array(s))
    error = np.broadcast_to(error, s.shape)
    bits = s.view(np.int64)
    even = (error != 0) & np.isfinite(error) & np.isfinite(s) & (bits & 1 == 0)
    if some(even):
        away = np.where((error > 0) == (s > 0), 1, -1)
        zero = s == 0
        moved = np.where(zero, np.copysign(5e-324, error).view(np.int64), bits + away)
        bits[even] = moved[even]
    return s


def narrow(s: Array, mode: str) -> Array:
    """f64 (exact, or rounded to odd) -> f32 in `mode`."""
    r = np.atleast_1d(s).astype(np.float32)
    if mode == "rn":
        return r
    wide = r.astype(np.float64)
    return directed(r, np.where(np.isnan(s) | (wide == s), 0.0, np.where(wide > s, -1.0, 1.0)), mode, np.float32)


def directed(r: Array, error: Array, mode: str, dtype: type) -> Array:
    """r (rounded to nearest) corrected for `mode`; the sign of `error` says where the exact value lies."""
    if mode == "rn":
        return r
    up = {"rp": error > 0, "rm": np.zeros(r.shape, bool), "rz": (error > 0) & (r < 0)}[mode]
    down = {"rm": error < 0, "rp": np.zeros(r.shape, bool), "rz": (error < 0) & (r > 0)}[mode]
    big = np.finfo(dtype).max
    r = np.where(up, np.nextafter(r, dtype(np.inf)), r)
    r = np.where(down, np.nextafter(r, dtype(-np.inf)), r)
    overflow = np.isinf(r) & (error != 0)
    if mode == "rz":
        r = np.where(overflow, np.copysign(dtype(big), r), r)
    return r.astype(dtype)


def fma32_rn(a: Array, b: Array, c: Array) -> Array:
    """Correctly rounded f32 fma. Two roundings differ from one only at exact f32 ties and below the normals."""
    p = np.multiply(a, b, dtype=np.float64)
    s = p + c
    r = np.atleast_1d(s).astype(np.float32)
    bits = np.atleast_1d(s).view(np.uint64)
    tie = (bits & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    low = (r.view(np.uint32) << np.uint32(1)) - np.uint32(1) < np.uint32(0x01000000)
    if some(tie) or some(low):
        at = indices(tie | low)
        ps, cs = (one_each(x, len(r))[at].astype(np.float64) for x in (p, c))
        total, error = two_sum(ps, cs)
        if some(error):  # (what is exact was rounded once)
            r[at] = to_odd(total, error).astype(np.float32)
    return r


def fma32(a: Array, b: Array, c: Array, mode: str) -> Array:
    if mode == "rn":
        return fma32_rn(a, b, c)
    s, e = two_sum(np.atleast_1d(np.multiply(a, b, dtype=np.float64)), np.asarray(c, np.float64))
    r = narrow(to_odd(s, e), mode)
    return np.where((s == 0) & (e == 0) & _opposite(np.multiply(a, b, dtype=np.float64), c), _zero(mode), r)


def _opposite(p: Array, c: Array) -> Array:
    return np.asarray(np.signbit(p) != np.signbit(c))


def _zero(mode: str) -> np.float32:
    return np.float32(-0.0) if mode == "rm" else np.float32(0.0)


def sum32(a: Array, b: Array, mode: str) -> Array:
    return fma32(a, np.ones(1, np.float32), b, mode)


def product32(a: Array, b: Array, mode: str) -> Array:
    return narrow(np.multiply(a, b, dtype=np.float64), mode)


def quotient32(a: Array, b: Array, mode: str) -> Array:
    r = np.atleast_1d(np.divide(a, b, dtype=np.float32))
    if mode == "rn":
        return r
    rest = np.asarray(a, np.float64) - r.astype(np.float64) * np.asarray(b, np.float64)
    error = np.where(np.isfinite(rest), np.sign(rest) * np.where(np.signbit(b), -1.0, 1.0), 0.0)
    return directed(r, error, mode, np.float32)


def root32(a: Array, mode: str) -> Array:
    r = np.atleast_1d(np.sqrt(a))
    if mode == "rn":
        return r
    rest = np.asarray(a, np.float64) - r.astype(np.float64) ** 2
    return directed(r, np.where(np.isfinite(rest), rest, 0.0), mode, np.float32)


def _safe(*arrays: Array) -> Array:
    ok = np.ones(np.broadcast_shapes(*(x.shape for x in arrays)), bool)
    for x in arrays:
        exponent = np.abs(x)
        ok &= ((exponent > 1e-120) & (exponent < 1e120)) | (x == 0)
    return ok


def fma64(a: Array, b: Array, c: Array, mode: str) -> Array:
    a, b, c = (np.asarray(x, np.float64) for x in np.broadcast_arrays(np.atleast_1d(a), b, c))
    uh, ul = two_product(a, b)
    th, tl = two_sum(c, ul)
    vh, vl = two_sum(uh, th)
    z, zl = two_sum(tl, vl)
    odd = to_odd(z, zl)
    r, error = two_sum(vh, odd)
    r = directed(r, error, mode, np.float64)
    plain = a * b + c
    special = ~np.isfinite(plain) & (~np.isfinite(a) | ~np.isfinite(b) | ~np.isfinite(c))
    r = np.where(special | (a == 0) | (b == 0), plain, r)
    for n in indices(~_safe(a, b, c) & ~special & (a != 0) & (b != 0)):
        r[n] = _exact(Fraction(a[n]) * Fraction(b[n]) + Fraction(c[n]), mode)
    return r


def _exact(value: Fraction, mode: str) -> float:
    try:
        r = value.numerator / value.denominator
    except OverflowError:
        r = float("inf") if value > 0 else float("-inf")
    if np.isinf(r):
        sign = 1 if value > 0 else -1
    else:
        rest = value - Fraction(r)
        sign = (rest > 0) - (rest < 0)
        return float(directed(np.array([r]), np.array([float(sign)]), mode, np.float64)[0])
    return float(directed(np.array([r]), np.array([-float(sign)]), mode, np.float64)[0])


def sum64(a: Array, b: Array, mode: str) -> Array:
    s, e = two_sum(np.atleast_1d(a), np.asarray(b))
    return np.atleast_1d(a + b) if mode == "rn" else directed(s, np.where(np.isfinite(e), e, 0.0), mode, np.float64)


def product64(a: Array, b: Array, mode: str) -> Array:
    return np.atleast_1d(a * b) if mode == "rn" else fma64(a, b, np.copysign(0.0, np.multiply(a, b)), mode)


def quotient64(a: Array, b: Array, mode: str) -> Array:
    r = np.atleast_1d(np.divide(a, b))
    if mode == "rn":
        return r
    rest = fma64(-r, np.asarray(b), np.asarray(a), "rn")
    error = np.where(np.isfinite(rest), np.sign(rest) * np.where(np.signbit(b), -1.0, 1.0), 0.0)
    return directed(r, error, mode, np.float64)


def root64(a: Array, mode: str) -> Array:
    r = np.atleast_1d(np.sqrt(a))
    if mode == "rn":
        return r
    rest = fma64(-r, r, np.asarray(a), "rn")
    return directed(r, np.where(np.isfinite(rest), rest, 0.0), mode, np.float64)
