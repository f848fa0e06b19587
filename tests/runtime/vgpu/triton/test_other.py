"""Triton: group norm, rotary embedding, gathers, joins, sorts and libraries' functions in a program, a spin lock."""

from __future__ import annotations

import math

import numpy as np
import pytest

RNG = np.random.default_rng(25)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_group_norm(triton, cap) -> None:  # type: ignore[no-untyped-def]
    x, w, b = normal(2, 12, 35), normal(12), normal(12)
    constants = {"G": 3, "BLOCK": 64}
    found = triton.run("groupnorm", (2, 3), x, w, b, np.zeros_like(x), 12, 35, 1e-5, cap=cap, constants=constants)[3]
    g = x.reshape(2, 3, -1)
    g = (g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)
    assert np.allclose(found, g.reshape(x.shape) * w[:, None] + b[:, None], rtol=1e-4, atol=1e-4)


def test_rotary_embedding(triton, cap) -> None:  # type: ignore[no-untyped-def]
    q, c, s = normal(5, 3, 64), normal(5, 32), normal(5, 32)
    a, b, c1, s1 = q[..., :32], q[..., 32:], c[:, None], s[:, None]
    found = triton.run("rope", (5, 3), q, c, s, np.zeros_like(q), 3, cap=cap, constants={"D": 64})[3]
    assert np.allclose(found, np.concatenate([a * c1 - b * s1, b * c1 + a * s1], 2), rtol=1e-5, atol=1e-5)


def test_programs_that_take_a_lock(triton, cap) -> None:  # type: ignore[no-untyped-def]
    assert triton.run("spinlock", 5, np.zeros(1, np.int32), np.zeros(1, np.int32), 7, cap=cap)[1][0] == 35


@pytest.mark.slow
def test_within_a_program(triton, cap) -> None:  # type: ignore[no-untyped-def]
    """Histogram, join, split, interleave, flip, gather, top k, libdevice, inline assembly, assertions and prints."""
    n = 256
    x, y = normal(n), normal(n)
    index = np.zeros(2 * n + 32, np.int32)
    index[:n] = RNG.integers(0, 32, n)
    _, _, numbers, out = triton.run("misc", 1, x, y, index, np.zeros(3 * n + 32, np.float32), n, cap=cap,
                                    constants={"BLOCK": n})  # fmt: skip
    i = index[:n]
    assert np.array_equal(numbers[n : n + 32], np.bincount(i, minlength=32))
    assert np.array_equal(numbers[n + 32 :], (i << 3) ^ (i + 5))
    assert np.array_equal(out[: 2 * n], np.stack([x, y], 1).ravel()[::-1])
    want = x[i * 7 % n] + np.tanh(x) + (np.abs(x) + 1) ** y + [math.erf(v) for v in x] + np.arcsinh(y)
    assert np.allclose(out[2 * n : 3 * n], want, rtol=1e-4, atol=1e-4)
    assert np.array_equal(out[3 * n :], -np.sort(-x.reshape(-1, 64), 1)[:, :8].ravel())
