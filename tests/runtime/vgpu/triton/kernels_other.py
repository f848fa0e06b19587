"""Triton kernels: rows in groups, gathers and sorts within a program, other libraries' functions, a lock."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def misc(x, y, idx, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    w = tl.load(y + i)
    h = tl.histogram(tl.load(idx + i), 32)
    tl.store(idx + BLOCK + tl.arange(0, 32), h)
    j = tl.join(v, w)
    a, b = tl.split(j)
    z = tl.interleave(a, b)
    tl.store(out + tl.arange(0, 2 * BLOCK), tl.flip(z, 0))
    q = tl.gather(v, (tl.load(idx + i) * 7) % BLOCK, 0)
    tl.store(
        out + 2 * BLOCK + i, q + libdevice.tanh(v) + libdevice.pow(tl.abs(v) + 1, w) + tl.erf(v) + libdevice.asinh(w)
    )
    t = tl.topk(tl.reshape(v, (BLOCK // 64, 64)), 8)
    tl.store(out + 3 * BLOCK + tl.arange(0, BLOCK // 64)[:, None] * 8 + tl.arange(0, 8)[None, :], t)
    s = tl.inline_asm_elementwise(
        "{.reg .b32 t; shl.b32 t, $1, 3; xor.b32 $0, t, $2;}",
        "=r,r,r",
        [tl.load(idx + i), tl.load(idx + i) + 5],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )
    tl.store(idx + BLOCK + 32 + i, s)
    tl.device_assert(v == v, "nan")
    tl.device_print("v", v)


@triton.jit
def groupnorm(x, w, b, y, C, HW, G: tl.constexpr, BLOCK: tl.constexpr, eps):
    n, g = tl.program_id(0), tl.program_id(1)
    per = C // G
    base = x + (n * C + g * per) * HW
    total = per * HW
    s = tl.zeros((BLOCK,), tl.float32)
    q = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, total, BLOCK):
        i = k + tl.arange(0, BLOCK)
        v = tl.load(base + i, mask=i < total, other=0.0)
        s += v
        q += v * v
    mean = tl.sum(s, 0) / total
    var = tl.sum(q, 0) / total - mean * mean
    r = tl.rsqrt(var + eps)
    for k in range(0, total, BLOCK):
        i = k + tl.arange(0, BLOCK)
        m = i < total
        c = g * per + i // HW
        v = tl.load(base + i, mask=m)
        tl.store(
            y + (n * C + g * per) * HW + i, (v - mean) * r * tl.load(w + c, mask=m) + tl.load(b + c, mask=m), mask=m
        )


@triton.jit
def spinlock(lock, value, n):
    for _ in range(n):
        while tl.atomic_cas(lock, 0, 1) == 1:
            pass
        v = tl.load(value, volatile=True)
        tl.store(value, v + 1)
        tl.debug_barrier()
        tl.atomic_xchg(lock, 0)


@triton.jit
def rope(q, cos, sin, out, H, D: tl.constexpr):
    t, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, D // 2)
    a = tl.load(q + (t * H + h) * D + i)
    b = tl.load(q + (t * H + h) * D + D // 2 + i)
    c, s = tl.load(cos + t * (D // 2) + i), tl.load(sin + t * (D // 2) + i)
    tl.store(out + (t * H + h) * D + i, a * c - b * s)
    tl.store(out + (t * H + h) * D + D // 2 + i, b * c + a * s)
