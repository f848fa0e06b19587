"""Triton's ways to write a bf16 matrix product X W^T for sm_90, which `sass_loop.py` compiles: pointers, tensor
descriptors, and descriptors in a persistent loop that may be specialised. (Triton needs its kernels in a file.)"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pointers(
    x, w, y, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    number = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = number // (GROUP * tiles_n) * GROUP
    size = min(tiles_m - first, GROUP)
    i = (first + number % (GROUP * tiles_n) % size) * BM + tl.arange(0, BM)
    j = number % (GROUP * tiles_n) // size * BN + tl.arange(0, BN)
    kk = tl.arange(0, BK)
    px, pw = x + i[:, None] * k + kk[None, :], w + j[None, :] * k + kk[:, None]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for _ in range(0, k // BK):
        acc = tl.dot(tl.load(px), tl.load(pw), acc)
        px += BK
        pw += BK
    tl.store(y + i[:, None] * n + j[None, :], acc.to(tl.bfloat16))


@triton.jit
def descriptors(x, w, y, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for kk in range(0, k, BK):
        acc = tl.dot(x.load([i, kk]), w.load([j, kk]).T, acc)
    y.store([i, j], acc.to(tl.bfloat16))


@triton.jit
def persistent(
    x, w, y, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SMS: tl.constexpr,
    FLATTEN: tl.constexpr, SPECIALIZE: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    for number in tl.range(
        tl.program_id(0), tiles_m * tiles_n, SMS, flatten=FLATTEN, warp_specialize=SPECIALIZE
    ):  # fmt: skip
        first = number // (GROUP * tiles_n) * GROUP
        size = min(tiles_m - first, GROUP)
        i = (first + number % (GROUP * tiles_n) % size) * BM
        j = number % (GROUP * tiles_n) // size * BN
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for kk in range(0, tl.cdiv(k, BK)):
            acc = tl.dot(x.load([i, kk * BK]), w.load([j, kk * BK]).T, acc)
        y.store([i, j], acc.to(tl.bfloat16))
