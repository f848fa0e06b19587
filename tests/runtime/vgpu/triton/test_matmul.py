"""Triton: matrix products by mma.sync with cp.async pipelines (sm_80) and by wgmma (sm_90), flash attention."""

from __future__ import annotations

import numpy as np
import pytest

RNG = np.random.default_rng(23)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def product(triton, a, b, c, tile, cap, types=None, precision="tf32", **options):  # type: ignore[no-untyped-def]
    (m, k), n = a.shape, b.shape[1]
    bm, bn, bk = tile
    grid = -(-m // bm) * -(-n // bn)
    return triton.run("matmul", grid, a, b, c, m, n, k, k, 1, n, 1, n, 1, cap=cap, types=types, **options,
                      constants={"BM": bm, "BN": bn, "BK": bk, "GROUP": 4, "PRECISION": precision})[2]  # fmt: skip


@pytest.mark.parametrize("shape,stages", [((64, 64, 64), 1), ((100, 72, 56), 3), ((65, 130, 40), 3)], ids=str)
def test_half_precision(triton, cap, shape, stages) -> None:  # type: ignore[no-untyped-def]
    m, n, k = shape
    a, b = normal(m, k).astype(np.float16), normal(k, n).astype(np.float16)
    c = product(triton, a, b, np.zeros((m, n), np.float16), (64, 64, 32), cap, num_stages=stages)
    assert np.allclose(c, a.astype(np.float32) @ b.astype(np.float32), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("precision,tolerance", [("tf32", 3e-2), ("tf32x3", 1e-4), ("ieee", 1e-4)])
def test_single_precision(triton, cap, precision, tolerance) -> None:  # type: ignore[no-untyped-def]
    a, b = normal(40, 72), normal(72, 48)
    c = product(triton, a, b, np.zeros((40, 48), np.float32), (32, 32, 32), cap, precision=precision, num_stages=2)
    assert np.allclose(c, a @ b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("warps", [2, 4, 8])
def test_brain_floats(triton, cap, warps) -> None:  # type: ignore[no-untyped-def]
    a, b = (RNG.integers(-8, 8, s).astype(np.float32) / 4 for s in ((70, 64), (64, 96)))
    bits = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
    c = product(triton, *bits, np.zeros((70, 96), np.float32), (64, 32, 32), cap, num_warps=warps)
    assert np.array_equal(c, a @ b)


def test_eight_bit_floats(triton) -> None:  # type: ignore[no-untyped-def]
    import torch

    a, b = (RNG.integers(-8, 8, s).astype(np.float32) / 4 for s in ((64, 64), (64, 64)))
    e4 = [torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy() for x in (a, b)]
    c = product(triton, *e4, np.zeros((64, 64), np.float32), (64, 64, 64), 90, types={0: "*fp8e4nv", 1: "*fp8e4nv"})
    assert np.array_equal(c, a @ b)


def test_split_k_with_atomics(triton, cap) -> None:  # type: ignore[no-untyped-def]
    a, b = (RNG.integers(-8, 8, s).astype(np.float16) for s in ((50, 90), (90, 40)))
    c = triton.run("split_k", (2, 2, 2), a, b, np.zeros((50, 40), np.float32), 50, 40, 90, cap=cap,
                   constants={"BM": 32, "BN": 32, "BK": 32, "SPLIT": 2})[2]  # fmt: skip
    assert np.array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


@pytest.mark.parametrize("causal,length,stages", [(True, 130, 3), (False, 100, 2)])
def test_flash_attention(triton, cap, causal, length, stages) -> None:  # type: ignore[no-untyped-def]
    heads, width = 2, 64
    q, k, v = (normal(heads, length, width).astype(np.float16) for _ in range(3))
    out, lse = triton.run(
        "attention",
        (-(-length // 64), heads),
        q,
        k,
        v,
        np.zeros_like(q),
        np.zeros((heads, length), np.float32),
        length,
        width**-0.5,
        cap=cap,
        num_stages=stages,
        constants={"HEAD": width, "BM": 64, "BN": 32, "CAUSAL": causal},
    )[3:]
    score = np.einsum("hid,hjd->hij", q.astype(np.float64), k.astype(np.float64)) * width**-0.5
    if causal:
        score = np.where(np.tril(np.ones((length, length), bool)), score, -np.inf)
    p = np.exp(score - score.max(axis=2, keepdims=True))
    total = p.sum(axis=2, keepdims=True)
    assert np.allclose(out, np.einsum("hij,hjd->hid", p / total, v.astype(np.float64)), rtol=1e-2, atol=5e-3)
    want = (score.max(axis=2) + np.log(total[:, :, 0])) / np.log(2)
    assert np.allclose(lse, want, rtol=1e-3, atol=1e-3)
