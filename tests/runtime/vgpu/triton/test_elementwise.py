"""Triton: element-wise kernels, conversions, random numbers, transposes."""

from __future__ import annotations

import math

import numpy as np
import pytest

RNG = np.random.default_rng(21)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    raw = x.astype(np.float32).view(np.uint32)
    return ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("n,warps", [(1000, 1), (1024, 2), (1024, 4), (1000, 8)])
def test_vector_add(triton, cap, n, warps) -> None:  # type: ignore[no-untyped-def]
    x, y = normal(2, n)
    out = triton.run("add", 4, x, y, np.zeros_like(x), n, cap=cap, constants={"BLOCK": 256}, num_warps=warps)[2]
    assert np.array_equal(out, x + y)


def test_conversions(triton) -> None:  # type: ignore[no-untyped-def]
    import torch

    n = 250
    x = (normal(n) * 8).astype(np.float32)
    outs = [np.zeros(n, t) for t in (np.uint8, np.uint8, np.float16, np.uint16, np.int8, np.float32, np.float16)]
    _, e4, e5, h, b, i8, back4, back5 = triton.run(
        "converted", 1, x, *outs, n, cap=90, types={1: "*fp8e4nv", 2: "*fp8e5", 4: "*bf16"}, constants={"BLOCK": 256}
    )
    t = torch.from_numpy(x)
    assert np.array_equal(e4, t.to(torch.float8_e4m3fn).view(torch.uint8).numpy())
    assert np.array_equal(e5, t.to(torch.float8_e5m2).view(torch.uint8).numpy())
    assert np.array_equal(h, x.astype(np.float16)) and np.array_equal(b, to_bf16(x))
    assert np.array_equal(i8, np.trunc(x).astype(np.int8))
    assert np.array_equal(back4, t.to(torch.float8_e4m3fn).float().numpy())
    assert np.array_equal(back5, t.to(torch.float8_e5m2).half().numpy())


def test_integer_arithmetic(triton, cap) -> None:  # type: ignore[no-untyped-def]
    n = 201
    a = RNG.integers(-(2**31), 2**31, n).astype(np.int32)
    b = RNG.integers(-1000, 1000, n).astype(np.int32)
    b[b == 0] = 7
    out = triton.run("integer_math", 1, a, b, np.zeros_like(a), n, cap=cap, constants={"BLOCK": 256})[2]
    x, y = a.astype(object), b.astype(object)
    for i in range(n):
        q = abs(x[i]) // abs(y[i]) * (1 if (x[i] < 0) == (y[i] < 0) else -1)
        r = q * 3 + (x[i] - q * y[i])
        r ^= x[i] * y[i] >> 7
        r += (x[i] % 2**32) * (y[i] % 2**32) >> 32
        r = r if x[i] > y[i] else ~r
        assert out[i] == (r + 2**31) % 2**32 - 2**31


def test_float_functions(triton, cap) -> None:  # type: ignore[no-untyped-def]
    n = 130
    x = normal(n) * 3
    out = triton.run("float_math", 1, x, np.zeros((6, n), np.float32), n, cap=cap, constants={"BLOCK": 256})[1]
    v = x.astype(np.float64)
    a = np.abs(v)
    erf = np.array([math.erf(t) for t in v])
    wants = [np.sin(v) + np.cos(v), np.sqrt(a) + 1 / np.sqrt(a + 1), erf + np.floor(v) + np.ceil(v * 3),
             np.log(a + 1) * 2**v, 1 / (1 + np.exp(-v)) + v / (v * v + 1) + np.sqrt(a),
             np.clip(v, -0.5, 0.75) + v * v + v]  # fmt: skip
    for got, want in zip(out, wants, strict=True):
        assert np.allclose(got, want, rtol=2e-5, atol=2e-5)


def test_dropout_by_philox(triton, cap) -> None:  # type: ignore[no-untyped-def]
    n, p = 3000, 0.25
    x = normal(n) + 10
    first, second, other = (
        triton.run("dropout", 12, x, np.zeros_like(x), n, p, seed, cap=cap, constants={"BLOCK": 256})[1]
        for seed in (123, 123, 124)
    )
    kept = first != 0
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert np.allclose(first[kept], x[kept] / np.float32(1 - p), rtol=1e-6) and 0.7 < kept.mean() < 0.8


def test_transpose_through_shared_memory(triton, cap) -> None:  # type: ignore[no-untyped-def]
    x = normal(70, 100).astype(np.float16)
    out = triton.run("transposed", (3, 2), x, np.zeros((100, 70), np.float16), 70, 100, cap=cap,
                     constants={"BM": 32, "BN": 64})[1]  # fmt: skip
    assert np.array_equal(out, x.T)


def test_gather(triton, cap) -> None:  # type: ignore[no-untyped-def]
    x, index = normal(32, 16), RNG.integers(0, 32, (32, 16)).astype(np.int32)
    out = triton.run("gathered", 1, x, index, np.zeros_like(x), cap=cap, constants={"ROWS": 32, "COLUMNS": 16})[2]
    assert np.array_equal(out, np.take_along_axis(x, index, 0))
