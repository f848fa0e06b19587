"""nvcc: the math library in f64 and f32 with its slow paths, rounding modes, halves, brain floats, fp8."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

RNG = np.random.default_rng(5)
UNARY = [
    "sin",
    "cos",
    "tan",
    "exp",
    "exp2",
    "exp10",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "cbrt",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "atan",
    "erf",
    "erfc",
    "lgamma",
    "tgamma",
    "floor",
    "ceil",
    "trunc",
    "rint",
    "round",
    "fabs",
    "erfinv",
    "normcdf",
    "j0",
    "sinpi",
    "cospi",
]
SELDOM: dict[str, Callable[[float], float]] = {
    "exp10": lambda v: 10.0**v, "rsqrt": lambda v: 1 / math.sqrt(v), "tgamma": math.gamma, "rint": np.rint,
    "round": lambda v: math.copysign(math.floor(abs(v) + 0.5), v), "sinpi": lambda v: math.sin(math.pi * v),
    "cospi": lambda v: math.cos(math.pi * v), "normcdf": lambda v: 0.5 * math.erfc(-v / math.sqrt(2)),
    "erfinv": lambda v: math.nan, "j0": lambda v: math.nan,
}  # fmt: skip


def reference(name: str, v: float) -> float:
    try:
        return float((SELDOM.get(name) or getattr(math, name))(v))
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.nan


@pytest.mark.parametrize("kernel,dtype,tolerance", [("doubles", np.float64, 1e-13), ("singles", np.float32, 2e-6)])
def test_math_library(cuda, kernel, dtype, tolerance) -> None:  # type: ignore[no-untyped-def]
    x = np.concatenate(
        [RNG.uniform(-3, 3, 60), RNG.uniform(0.01, 20, 40), [1e-5, 0.5, 1.0, -0.0, 1e5, 123456.75, -3e7]]
    )
    x = x.astype(dtype)
    out = cuda.run("floats", kernel, 2, 64, x, np.zeros((len(UNARY), len(x)), dtype), len(x), arch="sm_90")[1]
    for name, got in zip(UNARY, out, strict=True):
        want = np.array([reference(name, float(v)) for v in x])
        known = np.isfinite(want) & (np.abs(want) < np.finfo(dtype).max) & (np.abs(want) > np.finfo(dtype).tiny)
        if name in ("sinpi", "cospi"):
            known &= np.abs(x) < 100
        assert np.allclose(got[known], want[known], rtol=tolerance, atol=tolerance), name
        assert known.sum() > 20 or name in ("erfinv", "j0")
    inside = np.abs(x) < 1
    back = np.array([math.erf(v) for v in out[UNARY.index("erfinv")][inside]])
    assert np.allclose(back, x[inside], rtol=1e-5, atol=1e-6)


def test_functions_of_two_numbers(cuda) -> None:  # type: ignore[no-untyped-def]
    x, y = RNG.uniform(0.1, 9, 90), RNG.uniform(-5, 5, 90)
    xf, yf = x.astype(np.float32), y.astype(np.float32)
    outs = cuda.run("floats", "binary", 1, 96, x, y, np.zeros((14, 90)), xf, yf, np.zeros((14, 90), np.float32), 90,
                    arch="sm_90")  # fmt: skip
    for a, b, got, rtol in ((x, y, outs[2], 1e-13), (xf, yf, outs[5], 2e-6)):
        u, v = a.astype(np.float64), b.astype(np.float64)
        mantissa, exponent = np.frexp(u)
        wants = [
            u**v,
            np.fmod(u, v),
            np.arctan2(u, v),
            np.hypot(u, v),
            np.array([math.remainder(*p) for p in zip(u, v, strict=True)]),
            u / v,
            u * v + u,
            np.minimum(u, v) - np.maximum(u, v),
            mantissa + exponent,
            np.ldexp(u, v.astype(int)),
            u,
            np.copysign(u, v),
            np.nextafter(a, b),
            np.maximum(u - v, 0),
        ]
        for n, want in enumerate(wants):
            assert np.allclose(got[n], want, rtol=rtol, atol=rtol), n


def test_rounding_modes(cuda) -> None:  # type: ignore[no-untyped-def]
    n = 40
    x, y = (RNG.standard_normal(n) * 100).astype(np.float32), RNG.standard_normal(n).astype(np.float32)
    u, v = RNG.standard_normal(n) * 1e5, RNG.standard_normal(n)
    q, w = np.zeros((8, n), np.int32), np.zeros((4, n), np.int64)
    q[0], w[0] = RNG.integers(-(2**31), 2**31, n), RNG.integers(-(2**63), 2**63, n)
    outs = cuda.run("floats", "rounding", 1, 64, x, y, np.zeros((11, n), np.float32), u, v, np.zeros((7, n)), q, w, n,
                    arch="sm_90")  # fmt: skip
    o, p, ints, longs = outs[2], outs[5], outs[6], outs[7]
    for i in range(n):
        a, b, c, d = Fraction(float(x[i])), Fraction(float(y[i])), Fraction(float(u[i])), Fraction(float(v[i]))
        exact = [a + b, a + b, a * b, a * b + a, a / b, None, 1 / b, min(max(a, Fraction(0)), Fraction(1)), c,
                 Fraction(int(q[0, i])), a - b]  # fmt: skip
        for k, (mode, value) in enumerate(zip("ud0ud0u-d00", exact, strict=True)):
            if value is not None and mode != "-":
                check(np.float32, o[k, i], value, mode)
        check(np.float32, o[7, i], exact[7] or Fraction(0), "n")
        for k, (mode, value) in enumerate(
            zip("ud0u-d0", [c + d, c * d, c * d + c, c / d, None, Fraction(int(w[0, i])), 1 / d], strict=True)
        ):
            if value is not None:
                check(np.float64, p[k, i], value, mode)
    assert np.array_equal(ints[1], np.rint(x)) and np.array_equal(ints[2], np.floor(x))
    assert np.array_equal(ints[3], np.ceil(np.abs(x))) and np.array_equal(ints[4], np.trunc(u))
    assert np.array_equal(longs[1], np.rint(u)) and np.array_equal(longs[2], np.ceil(x))
    assert np.array_equal(ints[7], 4 + 8 * np.signbit(v))


def check(dtype: type, got: float, exact: Fraction, mode: str) -> None:
    """`got` is the neighbour of `exact` on the side that the mode says."""
    value = Fraction(float(got))
    up = mode == "u" or (mode == "0" and exact < 0)
    if mode == "n":
        assert abs(value - exact) <= abs(Fraction(float(np.nextafter(dtype(got), dtype(np.inf)))) - value)
    elif up:
        assert value >= exact > Fraction(float(np.nextafter(dtype(got), dtype(-np.inf))))
    else:
        assert value <= exact < Fraction(float(np.nextafter(dtype(got), dtype(np.inf))))


def test_fast_intrinsics(cuda) -> None:  # type: ignore[no-untyped-def]
    x = RNG.uniform(-3, 3, 60).astype(np.float32)
    out = cuda.run("floats", "fast", 1, 64, x, np.zeros((13, 60), np.float32), 60, arch="sm_90")[1]
    v, a = x.astype(np.float64), np.abs(x).astype(np.float64)
    s1000, s1m = (x * np.float32(1000)).astype(np.float64), (x * np.float32(1e6)).astype(np.float64)
    wants = [np.sin(v), np.cos(v), np.exp(v), np.log(a), a**1.5, v / (v + 7), None, 10**v, np.log2(a), 1 / np.sqrt(a),
             1 / a, 2 * np.sin(s1000) + np.cos(s1000), np.sin(s1m)]  # fmt: skip
    for n, want in enumerate(wants):
        assert want is None or np.allclose(out[n], want, rtol=1e-5, atol=2e-6), n


@pytest.mark.parametrize("kind", ["half", "bf16"])
def test_packed_arithmetic(cuda, arch, kind) -> None:  # type: ignore[no-untyped-def]
    def narrow(x: np.ndarray) -> np.ndarray:
        if kind == "half":
            return x.astype(np.float16)
        raw = x.astype(np.float32).view(np.uint32)
        return ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16)

    def widen(x: np.ndarray) -> np.ndarray:
        return (x if kind == "half" else (x.astype(np.uint32) << 16).view(np.float32)).astype(np.float64)

    a, b = (narrow(RNG.uniform(-2, 2, 80)) for _ in range(2))
    out = cuda.run("floats", f"{kind}_math", 1, 64, a, b, np.zeros((22, 80), a.dtype), 40, arch=arch)[2]
    x, y, got = widen(a), widen(b), widen(out)
    eps = 2.0**-10 if kind == "half" else 2.0**-7
    lows = np.stack([x[::2], y[::2]], axis=1).ravel()
    pick = np.repeat(x[::2] < y[1::2], 2)
    xr, xi, yr, yi = x[::2], x[1::2], y[::2], y[1::2]
    complex_ = np.stack([xr * yr - xi * yi + xr, xr * yi + xi * yr + xi], axis=1).ravel()
    wants = [x * y + x, np.maximum(x, y), np.minimum(x, y), np.clip(x + y, 0, 1), x / y, np.exp(x), np.sqrt(np.abs(x)),
             1 / y, -x, x > y, lows, np.maximum(x * y + x, 0), np.floor(x), np.where(pick, x, y), np.tanh(x), x,
             np.log(np.abs(x)), np.sin(x), complex_, np.rint(x), (x - y) * (x * y), x != y]  # fmt: skip
    for n, want in enumerate(wants):
        slack = 4 if n in (18, 20) else 1
        assert np.allclose(got[n], want, rtol=slack * eps, atol=slack * eps), n


def test_half_conversions(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    n = 50
    a = RNG.uniform(-90, 90, n).astype(np.float16)
    a[0] = 3.5
    ints = RNG.integers(-60000, 60000, n).astype(np.int32)
    _, q, s, w, o, _ = cuda.run(
        "floats",
        "half_convert",
        1,
        64,
        a,
        np.zeros((3, n), np.int32),
        np.zeros((2, n), np.int16),
        np.zeros(n, np.uint64),
        np.zeros((8, n), np.float16),
        ints,
        n,
        arch=arch,
    )
    v = a.astype(np.float64)
    assert np.array_equal(q[0], np.rint(v)) and np.array_equal(q[1], np.trunc(np.abs(v))) and (q[2] == 4).all()
    assert np.array_equal(s[0], np.floor(v)) and np.array_equal(s[1], a.view(np.int16))
    assert np.array_equal(w, np.ceil(np.abs(v)))
    assert (np.abs(o[0].astype(np.float64)) <= np.abs(ints)).all()
    assert np.array_equal(o[1], ints.astype(np.int16).astype(np.float16))
    assert np.array_equal(o[2], (ints / 7.0).astype(np.float16))
    assert (o[3] <= (ints.astype(np.float32) / np.float32(7))).all() and (o[4].astype(np.float64) >= ints).all()
    assert np.allclose(o[5], np.sqrt(np.abs(v)), rtol=1e-3) and np.allclose(o[7], v / 3.5, rtol=1e-3)


def test_eight_bit_floats(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    torch = pytest.importorskip("torch")
    n = 60
    x = (RNG.standard_normal(n) * 10).astype(np.float32)
    h = RNG.standard_normal(2 * n).astype(np.float16)
    _, e4, e5, b4, b5, quad, _, pair = cuda.run(
        "floats", "fp8", 1, 64, x, np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.zeros(n, np.float32),
        np.zeros(n, np.float32), np.zeros(n, np.uint32), h, np.zeros(n, np.uint16), n, arch=arch)  # fmt: skip

    def code(v: np.ndarray, kind: object) -> np.ndarray:
        return np.asarray(torch.from_numpy(v).to(kind).view(torch.uint8).numpy())

    f4, f5 = torch.float8_e4m3fn, torch.float8_e5m2
    assert np.array_equal(e4, code(x, f4)) and np.array_equal(e5, code(x, f5))
    assert np.array_equal(b4, torch.from_numpy(x).to(f4).float().numpy())
    assert np.array_equal(b5, torch.from_numpy(x).to(f5).float().numpy())
    four = np.stack([x, -x, x * 2, np.full(n, np.float32(0.1))], axis=1).copy()
    assert np.array_equal(quad, code(four, f4).view(np.uint32).ravel())
    assert np.array_equal(pair, code(h.astype(np.float32), f5).view(np.uint16))
