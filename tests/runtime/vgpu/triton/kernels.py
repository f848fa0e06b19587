"""Triton kernels that the tests beside this compile to PTX (Triton needs the source in a file)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    tl.store(out + i, tl.load(x + i, mask=inside) + tl.load(y + i, mask=inside, other=0), mask=inside)


@triton.jit
def softmax(x, y, columns, BLOCK: tl.constexpr):
    row, j = tl.program_id(0), tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + j, mask=j < columns, other=-float("inf"))
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(y + row * columns + j, e / tl.sum(e, axis=0), mask=j < columns)


@triton.jit
def layernorm(x, w, b, y, mean_out, rstd_out, columns, eps, BLOCK: tl.constexpr):
    row, j = tl.program_id(0), tl.arange(0, BLOCK)
    inside = j < columns
    v = tl.load(x + row * columns + j, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(v, axis=0) / columns
    d = tl.where(inside, v - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(d * d, axis=0) / columns + eps)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)
    out = d * rstd * tl.load(w + j, mask=inside) + tl.load(b + j, mask=inside)
    tl.store(y + row * columns + j, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def layernorm_back(dy, x, w, mean, rstd, dx, dw, db, lock, columns, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """dx per row; dw and db into GROUP partial sums, each guarded by a spin lock, as Triton's tutorial does it."""
    row, j = tl.program_id(0), tl.arange(0, BLOCK)
    inside = j < columns
    v = tl.load(x + row * columns + j, mask=inside, other=0.0)
    g = tl.load(dy + row * columns + j, mask=inside, other=0.0)
    s = tl.load(w + j, mask=inside, other=0.0)
    r = tl.load(rstd + row)
    normal = tl.where(inside, (v - tl.load(mean + row)) * r, 0.0)
    wg = s * g
    c1 = tl.sum(normal * wg, axis=0) / columns
    c2 = tl.sum(wg, axis=0) / columns
    tl.store(dx + row * columns + j, (wg - (normal * c1 + c2)) * r, mask=inside)
    group = row % GROUP
    lock += group
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    at = group * columns + j
    tl.store(dw + at, tl.load(dw + at, mask=inside) + g * normal, mask=inside)
    tl.store(db + at, tl.load(db + at, mask=inside) + g, mask=inside)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def matmul(
    a, b, c, m, n, k, am, ak, bk, bn, cm, cn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    per_group = GROUP * tiles_n
    first = pid // per_group * GROUP
    size = min(tiles_m - first, GROUP)
    pm, pn = first + pid % per_group % size, pid % per_group // size
    i = (pm * BM + tl.arange(0, BM)) % m
    j = (pn * BN + tl.arange(0, BN)) % n
    kk = tl.arange(0, BK)
    pa = a + i[:, None] * am + kk[None, :] * ak
    pb = b + kk[:, None] * bk + j[None, :] * bn
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, tl.cdiv(k, BK)):
        left = tl.load(pa, mask=kk[None, :] < k - step * BK, other=0.0)
        right = tl.load(pb, mask=kk[:, None] < k - step * BK, other=0.0)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        pa += BK * ak
        pb += BK * bk
    i = pm * BM + tl.arange(0, BM)
    j = pn * BN + tl.arange(0, BN)
    tl.store(
        c + i[:, None] * cm + j[None, :] * cn, acc.to(c.dtype.element_ty), mask=(i[:, None] < m) & (j[None, :] < n)
    )


@triton.jit
def matmul_descriptors(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Tensor descriptors made in the kernel: TMA on sm_90."""
    da = tl.make_tensor_descriptor(a, [m, k], [k, 1], [BM, BK])
    db = tl.make_tensor_descriptor(b, [n, k], [k, 1], [BN, BK])
    dc = tl.make_tensor_descriptor(c, [m, n], [n, 1], [BM, BN])
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for kk in range(0, k, BK):
        acc = tl.dot(da.load([i, kk]), db.load([j, kk]).T, acc)
    dc.store([i, j], acc.to(c.dtype.element_ty))


@triton.jit
def matmul_host_descriptors(da, db, dc, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Tensor descriptors encoded by the host and passed as parameters."""
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for kk in range(0, k, BK):
        acc = tl.dot(da.load([i, kk]), db.load([j, kk]).T, acc)
    dc.store([i, j], acc.to(tl.float16))


@triton.jit
def attention(
    q, k, v, out, lse, length, scale,
    HEAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Flash attention forward over (heads, length, HEAD)."""
    start, head = tl.program_id(0) * BM, tl.program_id(1)
    base = head * length * HEAD
    i, j, d = start + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, HEAD)
    query = tl.load(q + base + i[:, None] * HEAD + d[None, :], mask=i[:, None] < length, other=0.0)
    top = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, HEAD), tl.float32)
    end = tl.minimum(length, start + BM) if CAUSAL else length
    for s in range(0, end, BN):
        jj = s + j
        key = tl.load(k + base + jj[None, :] * HEAD + d[:, None], mask=jj[None, :] < length, other=0.0)
        score = tl.dot(query, key) * (scale * 1.44269504)
        seen = jj[None, :] < length
        if CAUSAL:
            seen = seen & (i[:, None] >= jj[None, :])
        score = tl.where(seen, score, -1.0e6)
        new = tl.maximum(top, tl.max(score, 1))
        p = tl.math.exp2(score - new[:, None])
        shrink = tl.math.exp2(top - new)
        total = total * shrink + tl.sum(p, 1)
        value = tl.load(v + base + jj[:, None] * HEAD + d[None, :], mask=jj[:, None] < length, other=0.0)
        acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None])
        top = new
    tl.store(lse + head * length + i, top + tl.math.log2(total), mask=i < length)
    acc = acc / total[:, None]
    tl.store(out + base + i[:, None] * HEAD + d[None, :], acc.to(out.dtype.element_ty), mask=i[:, None] < length)


@triton.jit
def scans(x, sums, products, tops, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(sums + i, tl.cumsum(v, 0), mask=i < n)
    tl.store(products + i, tl.cumprod(v * 0.5 + 0.75, 0), mask=i < n)
    tl.store(tops + i, tl.cumsum(v, 0, reverse=True), mask=i < n)


@triton.jit
def _linear(a1, b1, a2, b2):
    return a1 * a2, b1 * a2 + b2


@triton.jit
def recurrence(a, b, out, rows, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """h = a h + b along the rows, as an associative scan over pairs."""
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, COLUMNS)[None, :]
    at = i * COLUMNS + j
    inside = i < rows
    _, h = tl.associative_scan(
        (tl.load(a + at, mask=inside, other=1.0), tl.load(b + at, mask=inside, other=0.0)), 0, _linear
    )
    tl.store(out + at, h, mask=inside)


@triton.jit
def atomics(x, add_, max_, min_, or_, float_, counts, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    v = tl.load(x + i, mask=inside, other=0)
    tl.atomic_add(add_ + i * 0, v, mask=inside)
    tl.atomic_max(max_ + v % 4, v, mask=inside)
    tl.atomic_min(min_ + v % 4, v, mask=inside)
    tl.atomic_or(or_ + i * 0, v, mask=inside, sem="relaxed")
    tl.atomic_add(float_ + v % 4, v.to(tl.float32) * 0.25, mask=inside, sem="release")
    tl.atomic_add(counts + v % 16, 1, mask=inside)


@triton.jit
def ticket(parts, out, arrived, x, n, BLOCK: tl.constexpr):
    """The last program to arrive adds up what all have written."""
    pid, blocks = tl.program_id(0), tl.num_programs(0)
    i = pid * BLOCK + tl.arange(0, BLOCK)
    tl.store(parts + pid, tl.sum(tl.load(x + i, mask=i < n, other=0.0)))
    if tl.atomic_add(arrived, 1, sem="acq_rel") == blocks - 1:
        j = tl.arange(0, BLOCK)
        tl.store(out, tl.sum(tl.load(parts + j, mask=j < blocks, other=0.0)))


@triton.jit
def histogram(x, out, n, BINS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h = tl.histogram(tl.load(x + i, mask=i < n, other=0), BINS, mask=i < n)
    tl.atomic_add(out + tl.arange(0, BINS), h)


@triton.jit
def sorted_rows(x, up, down, where, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at)
    tl.store(up + at, tl.sort(v))
    tl.store(down + at, tl.sort(v, descending=True))
    tl.store(where + tl.program_id(0), tl.argmax(v, 0))


@triton.jit
def gathered(x, index, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    at = i * COLUMNS + j
    tl.store(out + at, tl.gather(tl.load(x + at), tl.load(index + at), 0))


@triton.jit
def converted(x, e4, e5, h, b, i8, back4, back5, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < n
    v = tl.load(x + i, mask=inside, other=0.0)
    tl.store(e4 + i, v.to(tl.float8e4nv), mask=inside)
    tl.store(e5 + i, v.to(tl.float8e5), mask=inside)
    tl.store(h + i, v.to(tl.float16), mask=inside)
    tl.store(b + i, v.to(tl.bfloat16), mask=inside)
    tl.store(i8 + i, v.to(tl.int8), mask=inside)
    tl.store(back4 + i, v.to(tl.float8e4nv).to(tl.float32), mask=inside)
    tl.store(back5 + i, v.to(tl.float8e5).to(tl.float16), mask=inside)


@triton.jit
def integer_math(a, b, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < n
    x = tl.load(a + i, mask=inside, other=1)
    y = tl.load(b + i, mask=inside, other=1)
    r = x // y * 3 + x % y
    r = r ^ (x.to(tl.int64) * y.to(tl.int64) >> 7).to(tl.int32)
    r += tl.umulhi(x.to(tl.uint32, bitcast=True), y.to(tl.uint32, bitcast=True)).to(tl.int32)
    tl.store(out + i, tl.where(x > y, r, ~r), mask=inside)


@triton.jit
def float_math(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < n
    v = tl.load(x + i, mask=inside, other=1.0)
    tl.store(out + i, tl.sin(v) + tl.cos(v), mask=inside)
    tl.store(out + n + i, tl.sqrt(tl.abs(v)) + tl.rsqrt(tl.abs(v) + 1), mask=inside)
    tl.store(out + 2 * n + i, tl.erf(v) + tl.floor(v) + tl.ceil(v * 3), mask=inside)
    tl.store(out + 3 * n + i, tl.log(tl.abs(v) + 1) * tl.exp2(v), mask=inside)
    tl.store(out + 4 * n + i, tl.sigmoid(v) + tl.div_rn(v, v * v + 1) + tl.sqrt_rn(tl.abs(v)), mask=inside)
    tl.store(out + 5 * n + i, tl.clamp(v, -0.5, 0.75) + tl.fma(v, v, v), mask=inside)


@triton.jit
def dropout(x, out, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = tl.rand(seed, i) > p
    tl.store(out + i, tl.where(keep, tl.load(x + i, mask=i < n) / (1 - p), 0.0), mask=i < n)


@triton.jit
def transposed(x, y, m, n, BM: tl.constexpr, BN: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    v = tl.load(x + i[:, None] * n + j[None, :], mask=(i[:, None] < m) & (j[None, :] < n), other=0.0)
    tl.store(y + j[:, None] * m + i[None, :], tl.trans(v), mask=(j[:, None] < n) & (i[None, :] < m))


@triton.jit
def reductions(x, total, top, where, count, M: tl.constexpr, N: tl.constexpr):
    i, j = tl.arange(0, M), tl.arange(0, N)
    v = tl.load(x + i[:, None] * N + j[None, :])
    tl.store(total + j, tl.sum(v, 0))
    tl.store(top + i, tl.max(v, 1))
    tl.store(where + i, tl.argmin(v, 1))
    tl.store(count, tl.sum((v > 0).to(tl.int32)))


@triton.jit
def split_k(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    kk = tl.program_id(2) * BK + tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for s in range(0, tl.cdiv(k, BK * SPLIT)):
        at = kk + s * BK * SPLIT
        left = tl.load(a + i[:, None] * k + at[None, :], mask=(i[:, None] < m) & (at[None, :] < k), other=0.0)
        right = tl.load(b + at[:, None] * n + j[None, :], mask=(at[:, None] < k) & (j[None, :] < n), other=0.0)
        acc = tl.dot(left, right, acc)
    tl.atomic_add(c + i[:, None] * n + j[None, :], acc, mask=(i[:, None] < m) & (j[None, :] < n))
