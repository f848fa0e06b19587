"""Triton: softmax, layernorm forward and backward, scans, sorts, histograms, atomics between programs."""

from __future__ import annotations

import numpy as np
import pytest

RNG = np.random.default_rng(22)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("columns,warps", [(77, 1), (256, 4), (77, 8)])
def test_softmax(triton, cap, columns, warps) -> None:  # type: ignore[no-untyped-def]
    x = normal(9, columns)
    out = triton.run("softmax", 9, x, np.zeros_like(x), columns, cap=cap, constants={"BLOCK": 256}, num_warps=warps)[1]
    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    assert np.allclose(out, e / e.sum(axis=1, keepdims=True), rtol=1e-5)


def test_layernorm_and_its_derivative(triton, cap) -> None:  # type: ignore[no-untyped-def]
    rows, columns = 11, 200
    x, dy, w, b = normal(rows, columns), normal(rows, columns), normal(columns), normal(columns)
    _, _, _, y, mean, rstd = triton.run(
        "layernorm", rows, x, w, b, np.zeros_like(x), np.zeros(rows, np.float32), np.zeros(rows, np.float32), columns,
        1e-5, cap=cap, constants={"BLOCK": 256})  # fmt: skip
    normalised = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    assert np.allclose(y, normalised * w + b, rtol=1e-4, atol=1e-5)
    outs = triton.run(
        "layernorm_back", rows, dy, x, w, mean, rstd, np.zeros_like(x), np.zeros((4, columns), np.float32),
        np.zeros((4, columns), np.float32), np.zeros(4, np.int32), columns, cap=cap,
        constants={"GROUP": 4, "BLOCK": 256})  # fmt: skip
    wg = w * dy
    dx = (wg - normalised * (wg * normalised).mean(axis=1, keepdims=True) - wg.mean(axis=1, keepdims=True)) * rstd[
        :, None
    ]
    assert np.allclose(outs[5], dx, rtol=1e-3, atol=1e-4)
    assert np.allclose(outs[6].sum(axis=0), (dy * normalised).sum(axis=0), rtol=1e-4, atol=1e-4)
    assert np.allclose(outs[7].sum(axis=0), dy.sum(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("warps", [1, 4])
def test_scans(triton, cap, warps) -> None:  # type: ignore[no-untyped-def]
    n = 333
    x = RNG.integers(-4, 5, n).astype(np.float32) / 4
    _, sums, products, reverse = triton.run("scans", 1, x, *[np.zeros_like(x) for _ in range(3)], n, cap=cap,
                                            constants={"BLOCK": 512}, num_warps=warps)  # fmt: skip
    assert np.array_equal(sums, x.cumsum()) and np.array_equal(reverse, x[::-1].cumsum()[::-1])
    assert np.allclose(products, np.cumprod(x.astype(np.float64) * 0.5 + 0.75), rtol=1e-4, atol=1e-30)


def test_linear_recurrence_as_an_associative_scan(triton, cap) -> None:  # type: ignore[no-untyped-def]
    a, b = RNG.uniform(0, 1, (100, 4)).astype(np.float32), normal(100, 4)
    out = triton.run("recurrence", 1, a, b, np.zeros_like(a), 100, cap=cap, constants={"BLOCK": 128, "COLUMNS": 4})[2]
    h = np.zeros(4)
    for row in range(100):
        h = a[row] * h + b[row]
        assert np.allclose(out[row], h, rtol=1e-4, atol=1e-4)


def test_atomics(triton, cap) -> None:  # type: ignore[no-untyped-def]
    n = 900
    x = RNG.integers(0, 1000, n).astype(np.int32)
    start = [np.zeros(1, np.int32), np.full(4, -1, np.int32), np.full(4, 5000, np.int32), np.zeros(1, np.int32),
             np.zeros(4, np.float32), np.zeros(16, np.int32)]  # fmt: skip
    _, total, top, low, bits, floats, counts = triton.run("atomics", 4, x, *start, n, cap=cap, constants={"BLOCK": 256})
    groups = [x[x % 4 == g] for g in range(4)]
    assert total[0] == x.sum() and bits[0] == np.bitwise_or.reduce(x)
    assert top.tolist() == [g.max() for g in groups] and low.tolist() == [g.min() for g in groups]
    assert floats.tolist() == [g.sum() * 0.25 for g in groups]
    assert np.array_equal(counts, np.bincount(x % 16, minlength=16))


def test_the_last_program_adds_up(triton, cap) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 9, 1500).astype(np.float32)
    out = triton.run("ticket", 6, np.zeros(6, np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32), x, 1500,
                     cap=cap, constants={"BLOCK": 256})[1]  # fmt: skip
    assert out[0] == x.sum()


def test_histogram(triton, cap) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 64, 1700).astype(np.int32)
    out = triton.run("histogram", 4, x, np.zeros(64, np.int32), 1700, cap=cap, constants={"BINS": 64, "BLOCK": 512})[1]
    assert np.array_equal(out, np.bincount(x, minlength=64))


@pytest.mark.parametrize("cap,warps", [(80, 1), (90, 4)])
def test_sort_and_argmax(triton, cap, warps) -> None:  # type: ignore[no-untyped-def]
    x = normal(3, 128)
    _, up, down, where = triton.run("sorted_rows", 3, x, np.zeros_like(x), np.zeros_like(x), np.zeros(3, np.int32),
                                    cap=cap, constants={"BLOCK": 128}, num_warps=warps)  # fmt: skip
    assert np.array_equal(up, np.sort(x)) and np.array_equal(down, np.sort(x)[:, ::-1])
    assert np.array_equal(where, x.argmax(axis=1))


@pytest.mark.parametrize("warps", [1, 8])
def test_reductions_along_both_axes(triton, cap, warps) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(-99, 99, (32, 64)).astype(np.float32)
    _, total, top, where, count = triton.run(
        "reductions", 1, x, np.zeros(64, np.float32), np.zeros(32, np.float32), np.zeros(32, np.int32),
        np.zeros(1, np.int32), cap=cap, constants={"M": 32, "N": 64}, num_warps=warps)  # fmt: skip
    assert np.array_equal(total, x.sum(axis=0)) and np.array_equal(top, x.max(axis=1))
    assert np.array_equal(where, x.argmin(axis=1)) and count[0] == (x > 0).sum()
