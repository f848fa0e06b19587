"""nvcc: constant and dynamic memory, vectors and cache hints, local arrays, generic pointers, copy pipelines."""

from __future__ import annotations

import struct

import numpy as np

ARCHITECTURES = ("sm_90",)  # which waits for mbarriers by an instruction more; all else is the same
RNG = np.random.default_rng(6)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_constant_memory(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = normal(100)
    out = cuda.run("memory", "filter", 2, 64, x, np.zeros_like(x), 100, arch=arch)[1]
    weights = np.append(np.arange(1, 16), 16.5)
    padded = np.append(x, np.zeros(16))
    want = [
        sum(weights[(k + i) & 15] * padded[i + k] for k in range(16)) + 9.25 + (1, -2, 3)[i % 3] for i in range(100)
    ]
    assert np.allclose(out, want, rtol=1e-5, atol=1e-4)


def test_initialised_variables_and_strings(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    text, counters = cuda.run("memory", "strings", 1, 32, np.zeros(32, np.int8), np.zeros(4, np.int32), arch=arch)
    assert bytes(text[:5]) == b"hello" and bytes(text[5:]) == bytes(b"zot"[i % 3] for i in range(5, 32))
    assert counters.tolist() == [6, 7, 8, 5]


def test_vector_loads_with_cache_operators(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    n = 70
    a, b, c = normal(n, 4), RNG.integers(-9, 9, (n, 2)).astype(np.int32), RNG.standard_normal((n, 2))
    d, e = RNG.integers(0, 256, (n, 4)).astype(np.uint8), RNG.integers(-99, 99, (n, 2)).astype(np.int16)
    out = cuda.run("memory", "vectors", 2, 64, a, b, c, d, e, np.zeros_like(a), n, arch=arch)[5]
    want = np.stack([a[:, 3] + b[:, 0], a[:, 2] + c[:, 1], a[:, 1] + d[:, 3], a[:, 0] + e[:, 1]], axis=1)
    assert np.allclose(out, want, rtol=1e-6)
    x = normal(60)
    assert np.allclose(cuda.run("memory", "hints", 1, 64, x, np.zeros((2, 60), np.float32), 60, arch=arch)[1],
                       [5 * x, 3 * x], rtol=1e-6)  # fmt: skip


def test_structures(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    particle = np.dtype([("p", "f4", 3), ("m", "f4"), ("e", "f8"), ("pad", "u8")])
    odd = np.dtype([("a", "i1"), ("gap", "u1"), ("b", "i2"), ("c", "i1", 3), ("end", "u1")])
    p, o = np.zeros(40, particle), np.zeros(40, odd)
    p["p"], p["m"], p["e"] = normal(40, 3), normal(40), RNG.standard_normal(40)
    o["a"], o["b"], o["c"] = (RNG.integers(-50, 50, s) for s in (40, 40, (40, 3)))
    q, _, sums = cuda.run("memory", "structs", 1, 64, p, o, np.zeros(40, np.int32), 40, arch=arch)
    assert np.array_equal(q["p"][:, 0], p["p"][:, 0] + p["m"]) and np.array_equal(q["e"], p["e"] * 2)
    assert np.array_equal(sums, o["a"] + o["b"] * 10 + o["c"][:, 0] + o["c"][:, 2].astype(int) * 3)
    one = struct.pack("<4f2d", 1, 2, 3, 4, 5, 0)
    (out,) = cuda.run("memory", "fixedparams", 1, 64, one, o[:1].tobytes(), np.zeros(64, np.float32), arch=arch)
    assert np.array_equal(out, [t % 4 + 1 + o["c"][0, t % 3] + 5 for t in range(64)])


def test_local_arrays(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    n, k = 50, 37
    x = RNG.integers(-1000, 1000, n).astype(np.int32)
    out = cuda.run("memory", "locals", 1, 64, x, np.zeros_like(x), n, k, arch=arch)[1]
    for i in range(n):
        t = [int(x[(i * 7 + j) % n]) for j in range(33)]
        c = [i + j for j in range(20)]
        for j in range(k):
            a, b = (i + j * j) % 33, j * 5 % 33
            t[a], t[b] = t[b], t[a]
            c[a % 20] ^= c[b % 20]
        s = 0
        for v in t:
            s = s * 31 + v
        s += sum(((v + 128) % 256 - 128) * j for j, v in enumerate(c))
        assert out[i] == (s + 2**31) % 2**32 - 2**31


def test_dynamic_shared_memory(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = normal(130)
    out = cuda.run("memory", "dynamic", 1, 64, x, np.zeros_like(x), 130, shared=130 * 12, arch=arch)[1]
    assert np.allclose(out, x[::-1] + 2 * np.roll(x, -1), rtol=1e-6, atol=1e-6)


def test_generic_pointers(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = normal(64)
    out = cuda.run("memory", "generic", 1, 56, x, np.zeros(56, np.float32), arch=arch)[1]
    for t in range(56):
        local = np.zeros(8)
        for k in range(8):
            local[(k * 3 + t) & 7] = x[(t + k) & 63]
        want = (x[:8].sum() + 4000, x[:8].sum() + 1000, local.sum() + 2000)[t % 3]
        assert abs(out[t] - want) < 1e-2


def test_copy_pipelines(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    n = 200
    x = normal(n, 4)
    out = cuda.run("memory", "pipelined", 1, 64, x, np.zeros_like(x), n, arch=arch)[1]
    w = x[np.arange(n) ^ 1]
    want = np.stack([x[:, 0] + w[:, 3], x[:, 1], x[:, 2] * 2, x[:, 3] - w[:, 0]], axis=1)
    assert np.array_equal(out, want)
    v = RNG.integers(0, 1000, 640).astype(np.int32)
    i = np.arange(640)
    for kernel, at, factor in (("cudapipe", i // 128 * 128 + 127 - i % 128, 2), ("threadpipe", i ^ 3, 1)):
        out = cuda.run("memory", kernel, 1, 128, v, np.zeros_like(v), 640, arch=arch)[1]
        assert np.array_equal(out, v[at] * factor), kernel
    out = cuda.run("memory", "groupcopy", 1, 64, v, np.zeros_like(v), 500, shared=2000, arch=arch)[1]
    assert np.array_equal(out[:500], v[:500][::-1])


def test_bytes_and_unaligned_copies(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a = RNG.integers(0, 256, 700).astype(np.uint8)
    out = cuda.run("memory", "bytes", 1, 256, a, np.zeros_like(a), 700, arch=arch)[1]
    for base in range(0, 700, 256):
        part = a[base : base + 256]
        assert np.array_equal(out[base : base + 256], part[::-1] ^ (part.astype(int) * 257 >> 3).astype(np.uint8))
    m = RNG.integers(0, 256, (20, 37)).astype(np.uint8)
    out = cuda.run("memory", "moved", 1, 20, m, np.zeros_like(m), arch=arch)[1]
    want = m.copy()
    want[:, 0] += m[:, 5] & 3
    want[:, 30:34] = 7
    assert np.array_equal(out, want)
