"""Triton kernels: matrix products of unusual kinds, by descriptors, in groups, in clusters, and of other types."""

import triton
import triton.language as tl


@triton.jit
def persistent(
    da, db, dc, M, N, K, PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WS: tl.constexpr
):
    tm, tn = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tm * tn, PROGRAMS, flatten=True, warp_specialize=WS):
        pm, pn = tile // tn, tile % tn
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(tl.cdiv(K, BK)):
            a = da.load([pm * BM, k * BK])
            b = db.load([pn * BN, k * BK])
            acc = tl.dot(a, b.T, acc)
        dc.store([pm * BM, pn * BN], acc.to(tl.float16))


@triton.jit
def persistent_dev(a, b, c, M, N, K, PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    da = tl.make_tensor_descriptor(a, [M, K], [K, 1], [BM, BK])
    db = tl.make_tensor_descriptor(b, [N, K], [K, 1], [BN, BK])
    dc = tl.make_tensor_descriptor(c, [M, N], [N, 1], [BM, BN])
    tm, tn = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tm * tn, PROGRAMS, flatten=True):
        pm, pn = tile // tn, tile % tn
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(tl.cdiv(K, BK)):
            acc = tl.dot(da.load([pm * BM, k * BK]), db.load([pn * BN, k * BK]).T, acc)
        dc.store([pm * BM, pn * BN], acc.to(tl.float16))


@triton.jit
def persistent_ptr(a, b, c, M, N, K, PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    tm, tn = tl.cdiv(M, BM), tl.cdiv(N, BN)
    kt = tl.cdiv(K, BK)
    for tile in tl.range(tl.program_id(0), tm * tn, PROGRAMS, flatten=True):
        pm, pn = tile // tn, tile % tn
        rm, rn, rk = pm * BM + tl.arange(0, BM), pn * BN + tl.arange(0, BN), tl.arange(0, BK)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(kt):
            x = tl.load(
                a + rm[:, None] * K + (k * BK + rk)[None, :],
                mask=(rm[:, None] < M) & ((k * BK + rk)[None, :] < K),
                other=0.0,
            )
            y = tl.load(
                b + rn[None, :] * K + (k * BK + rk)[:, None],
                mask=(rn[None, :] < N) & ((k * BK + rk)[:, None] < K),
                other=0.0,
            )
            acc = tl.dot(x, y, acc)
        tl.store(c + rm[:, None] * N + rn[None, :], acc.to(tl.float16), mask=(rm[:, None] < M) & (rn[None, :] < N))


@triton.jit
def grouped(
    ptrs_a, ptrs_b, ptrs_c, sizes, groups, PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    tile = tl.program_id(0)
    last = 0
    for g in range(groups):
        M, N, K = tl.load(sizes + g * 3), tl.load(sizes + g * 3 + 1), tl.load(sizes + g * 3 + 2)
        tm, tn = tl.cdiv(M, BM), tl.cdiv(N, BN)
        while tile >= last and tile < last + tm * tn:
            a = tl.load(ptrs_a + g).to(tl.pointer_type(tl.float16))
            b = tl.load(ptrs_b + g).to(tl.pointer_type(tl.float16))
            c = tl.load(ptrs_c + g).to(tl.pointer_type(tl.float16))
            t = tile - last
            rm, rn, rk = t // tn * BM + tl.arange(0, BM), t % tn * BN + tl.arange(0, BN), tl.arange(0, BK)
            acc = tl.zeros((BM, BN), tl.float32)
            for k in range(0, K, BK):
                x = tl.load(
                    a + rm[:, None] * K + k + rk[None, :], mask=(rm < M)[:, None] & (k + rk < K)[None, :], other=0.0
                )
                y = tl.load(
                    b + (k + rk)[:, None] * N + rn[None, :], mask=(rn < N)[None, :] & (k + rk < K)[:, None], other=0.0
                )
                acc = tl.dot(x, y, acc)
            tl.store(c + rm[:, None] * N + rn[None, :], acc.to(tl.float16), mask=(rm < M)[:, None] & (rn < N)[None, :])
            tile += PROGRAMS
        last += tm * tn


@triton.jit
def batched(a, b, c, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    ib, im, ii, ik = tl.arange(0, B), tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + ib[:, None, None] * M * K + im[None, :, None] * K + ik[None, None, :])
    y = tl.load(b + ib[:, None, None] * N * K + ik[None, :, None] * N + ii[None, None, :])
    tl.store(c + ib[:, None, None] * M * N + im[None, :, None] * N + ii[None, None, :], tl.dot(x, y))


@triton.jit
def int8dot(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    im, ii, ik = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + im[:, None] * K + ik[None, :])
    y = tl.load(b + ik[:, None] + ii[None, :] * K)
    tl.store(c + im[:, None] * N + ii[None, :], tl.dot(x, y, out_dtype=tl.int32))


@triton.jit
def scaled(a, sa, b, sb, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    im, ii, ik, ks = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K), tl.arange(0, K // 32)
    x = tl.load(a + im[:, None] * K + ik[None, :])
    y = tl.load(b + ik[:, None] * N + ii[None, :])
    u = tl.load(sa + im[:, None] * (K // 32) + ks[None, :])
    v = tl.load(sb + ii[:, None] * (K // 32) + ks[None, :])
    tl.store(c + im[:, None] * N + ii[None, :], tl.dot_scaled(x, u, "e4m3", y, v, "e4m3"))


@triton.jit
def descreduce(dx, y, n, BM: tl.constexpr, BN: tl.constexpr):
    v = tl.load(y + tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :])
    dx.atomic_add([tl.program_id(0) % 2 * BM, 0], v)
