"""nvcc: integer arithmetic of every width, bits, packed bytes, carries."""

from __future__ import annotations

import numpy as np

ARCHITECTURES = ("sm_90",)  # the language is tried here, which becomes the same instructions on all
RNG = np.random.default_rng(4)


def integers(bits: int, n: int, signed: bool = True) -> np.ndarray:
    raw = RNG.integers(0, 2**63, n, np.int64).astype(np.uint64) << np.uint64(1) | RNG.integers(0, 2, n).astype(
        np.uint64
    )
    return (raw >> np.uint64(64 - bits)).astype(f"u{bits // 8}").view(f"{'i' if signed else 'u'}{bits // 8}")


def wrap(v: int, bits: int, signed: bool = True) -> int:
    v %= 1 << bits
    return v - (1 << bits) if signed and v >> bits - 1 else v


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def test_division_and_remainder(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    n = 200
    a, b = integers(64, n), integers(64, n)
    b[:100] >>= RNG.integers(1, 62, 100)
    b[b == 0] = 3
    a[:3], b[:3] = -(2**63), [1, 7, -3]
    outs = cuda.run(
        "integers",
        "division",
        2,
        128,
        a,
        b,
        *[np.zeros(n, t) for t in ("i8", "i8", "u8", "u8", "i4", "u4")],
        n,
        arch=arch,
    )[2:]
    for i in range(n):
        x, y = int(a[i]), int(b[i])
        ux, uy = x % 2**64, y % 2**64
        iy = wrap(y, 32) | 1
        want = [quotient(x, y), x - y * quotient(x, y), ux // uy, ux % uy, wrap(quotient(wrap(x, 32), iy), 32),
                x % 2**32 % (iy % 2**32)]  # fmt: skip
        for got, w in zip(outs, want, strict=True):
            assert got[i] == w


def test_division_by_constants(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a = integers(64, 200)
    out = cuda.run("integers", "constants", 2, 128, a, np.zeros_like(a), 200, arch=arch)[1]
    for x, got in zip(a.tolist(), out.tolist(), strict=True):
        want = quotient(x, 1000003) + x - 97 * quotient(x, 97) + quotient(wrap(x, 32), 13) + x % 2**32 % 1000
        assert got == want + quotient(wrap(x, 16), 3) + x % 256 % 10


def test_bit_intrinsics(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    v, u = integers(32, 40, False), integers(64, 40, False)
    v[:2], u[:2] = [0, 2**32 - 1], [0, 2**64 - 1]
    out = cuda.run("integers", "bits", 1, 40, v, u, np.zeros((40, 16), np.int32), arch=arch)[2]
    for t in range(40):
        x, y = int(v[t]), int(u[t])
        low = y % 2**32
        pair = low << 32 | x
        picks = 0x6142 + t
        data = (low << 32 | x).to_bytes(8, "little")
        permuted = sum((data[picks >> 4 * k & 7]) << 8 * k for k in range(4))
        sx, sl = wrap(x, 32), wrap(low, 32)
        signed64 = wrap(y, 64) * wrap(y ^ x, 64)
        want = [
            x.bit_count(), 32 - x.bit_length(), int(f"{x:032b}"[::-1], 2), (x & -x).bit_length(), y.bit_count(),
            64 - y.bit_length(), int(f"{y:064b}"[::-1], 2) >> 7, (y & -y).bit_length(), (pair << (t & 31)) >> 32,
            pair >> min(t + 5, 32), permuted, (sx * sl) >> 32, (x * low) >> 32, (signed64 >> 64) >> 3, abs(sx - sl) + 5,
            abs(x - low) + 5 + ((sx + sl + 1) >> 1) + ((sx + sl) >> 1),
        ]  # fmt: skip
        assert [wrap(w, 32) for w in want] == out[t].tolist(), t


def test_128_bit_integers(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a, b = integers(64, 60, False), integers(64, 60, False)
    out = cuda.run("integers", "wide", 1, 64, a, b, np.zeros((60, 4), np.uint64), 60, arch=arch)[2]
    for i in range(60):
        x, y = int(a[i]), int(b[i])
        p = x * y + x
        p = (p << 13) % 2**128 ^ p >> 17
        s = wrap(p - (y << 64), 128)
        d = x | 1
        rest = s - d * quotient(s, d)
        assert out[i].tolist() == [p % 2**64, p >> 64, p // (y | 1) % 2**64, rest % 2**64]


def test_packed_bytes_and_halves(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a, b = integers(32, 50, False), integers(32, 50, False)
    out = cuda.run("integers", "simd", 1, 50, a, b, np.zeros((50, 16), np.uint32), arch=arch)[2]

    def parts(x: int, bits: int, signed: bool) -> list[int]:
        return [wrap(x >> k, bits, signed) for k in range(0, 32, bits)]

    def joined(values: list[int], bits: int) -> int:
        return sum(v % 2**bits << bits * k for k, v in enumerate(values))

    for t in range(50):
        x, y = int(a[t]), int(b[t])
        u4, s4 = (list(zip(parts(x, 8, s), parts(y, 8, s), strict=True)) for s in (False, True))
        u2, s2 = (list(zip(parts(x, 16, s), parts(y, 16, s), strict=True)) for s in (False, True))
        sx, sy = wrap(x, 32), wrap(y, 32)
        want = [
            joined([p + q for p, q in u4], 8), joined([p - q for p, q in u2], 16),
            joined([max(-128, min(127, p + q)) for p, q in s4], 8), joined([abs(p - q) for p, q in u4], 8),
            joined([max(p, q) for p, q in u4], 8), joined([min(p, q) for p, q in s2], 16),
            joined([-(p > q) for p, q in u4], 8), joined([(p + q + 1) >> 1 for p, q in u4], 8),
            sum(abs(p - q) for p, q in s4), joined([int(p == q) for p, q in u2], 16),
            sum(p * q for p, q in s4) + 7, sum(p * q for p, q in u4) + 7,
            sum(s2[k][0] * s4[k][1] for k in range(2)) + 1, sum(u2[k][0] * u4[k + 2][1] for k in range(2)) + 1,
            joined([min(65535, p + q) for p, q in u2], 16), max(max(wrap(sx + sy, 32), 3), 0),
        ]  # fmt: skip
        assert [w % 2**32 for w in want] == out[t].tolist(), t


def test_shifts(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x, s = integers(32, 64), RNG.integers(0, 64, 64).astype(np.int32)
    out, wide = cuda.run("integers", "shifts", 1, 64, x, s, np.zeros((64, 4), np.int32), np.zeros((64, 2), np.int64),
                         arch=arch)[2:]  # fmt: skip
    for t in range(64):
        v, k = int(x[t]), int(s[t])
        want = [v << (k & 31), v >> (k & 31), v % 2**32 >> (k & 31), wrap(v << 3, 16) >> 2]
        assert [wrap(w, 32) for w in want] == out[t].tolist()
        assert [wrap(v << k, 64), wrap(v << 20, 64) >> k] == wide[t].tolist()


def test_8_and_16_bit_integers(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a, b = integers(8, 50), integers(16, 50, False)
    o, p, q = cuda.run("integers", "small", 1, 64, a, b, np.zeros_like(a), np.zeros_like(b), np.zeros(50, bool), 50,
                       arch=arch)[2:]  # fmt: skip
    x, y = a.astype(np.int64), b.astype(np.int64)
    assert np.array_equal(o, (x * 3 - (y >> 4)).astype(np.int8)) and np.array_equal(p, (y * y + x).astype(np.uint16))
    assert np.array_equal(q, (x > 0) ^ (y & 1 != 0))


def test_random_number_generators(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    (out,) = cuda.run("integers", "generators", 2, 128, np.zeros(200, np.uint32), 200, arch=arch)
    m64, m32 = 2**64, 2**32
    for i in range(200):
        s, acc = (i * 6364136223846793005 + 1442695040888963407) % m64, 0
        for _ in range(10):
            s = (s * 6364136223846793005 + 1442695040888963407) % m64
            x, r = ((s >> 18) ^ s) >> 27 & (m32 - 1), s >> 59
            acc ^= x >> r | x << (-r & 31) & (m32 - 1)
            acc ^= acc << 13 & (m32 - 1)
            acc ^= acc >> 17
            acc ^= acc << 5 & (m32 - 1)
        assert out[i] == acc


def test_carry_chains(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a, b = integers(32, 160, False).reshape(40, 4), integers(32, 160, False).reshape(40, 4)
    out = cuda.run("integers", "extended", 1, 40, a, b, np.zeros((40, 8), np.uint32), arch=arch)[2]

    def number(words: np.ndarray) -> int:
        return int.from_bytes(words.tobytes(), "little")

    for t in range(40):
        assert number(out[t, :4]) == (number(a[t]) + number(b[t])) % 2**128
        assert number(out[t, 4:]) == (number(a[t]) - number(b[t])) % 2**128
