"""nvcc: warps specialised by named barriers, look-back scans, shuffles, stacks, a register-tiled product."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(8)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_one_warp_copies_for_three_through_a_ring(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = normal(10 * 96)
    found = cuda.run("cooperation", "spec", 1, 128, x, np.zeros_like(x), 10, arch=arch)[1]
    assert np.array_equal(found, (x.reshape(10, 96)[:, ::-1] * 2).ravel())


def test_a_scan_in_one_pass(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    """Blocks take tickets and wait for their predecessors' flags in global memory."""
    n, blocks = 128 * 19 - 5, 19
    x = RNG.integers(-9, 9, n).astype(np.int32)
    state = [np.zeros(blocks, np.int32) for _ in range(3)]
    found = cuda.run("cooperation", "lookback", blocks, 128, x, np.zeros_like(x), *state, np.zeros(1, np.int32), n,
                     arch=arch)[1]  # fmt: skip
    assert np.array_equal(found, np.cumsum(x))


def test_arrays_on_the_stack_are_passed_to_a_function(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    def poly(c: np.ndarray, x: float) -> float:
        stack, n = np.zeros(12), len(c)
        for k in range(n):
            stack[k * 5 % n] = c[k] * x
        return float(np.polyval(stack[:n], x))

    x, c = normal(100) * 0.5, np.resize([1, -2, 3, -4, 5, -6, 7, -8], 120)
    found = cuda.run("cooperation", "stacky", 1, 128, x, np.zeros_like(x), 100, arch=arch)[1]
    want = [poly(c[i % 8 : i % 8 + 11], v) + poly(c[i % 8 + 3 : i % 8 + 10], v) for i, v in enumerate(x)]
    assert np.allclose(found, want, rtol=1e-4, atol=1e-4)


def test_a_product_with_register_tiles(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a, b = normal(128, 40), normal(40, 64)
    out = cuda.run("cooperation", "sgemm", (1, 2), 256, a, b, np.zeros((128, 64), np.float32), 128, 64, 40, arch=arch)
    assert np.allclose(out[2], a @ b, atol=1e-4)


def test_shuffles_of_doubles_and_halves(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x, h, t = RNG.standard_normal(64), RNG.integers(0, 9, 64).astype(np.int16), np.arange(64)
    _, y, _, o = cuda.run("cooperation", "shuf", 1, 64, x, np.zeros(64), h, np.zeros(64, np.int32), arch=arch)
    up, down = np.where(t % 8 >= 3, x[t - 3], x), np.where(t % 32 < 27, x[(t + 5) % 64], x)
    want = x.reshape(-1, 16).sum(1).repeat(16) + up * 2 + down + x[(t & ~3) | (t + 7 & 3)]
    assert np.allclose(y, want)
    same = (h[:, None] & 3 == h[None, :] & 3) & (t[:, None] // 32 == t[None, :] // 32)
    agree = ~same[:, 3] | (same.sum(1) == 1)  # on being thread 3
    any_large = (same & (h > 5)[None, :]).any(1)
    want = h[t ^ 1] * 3 - h + 1000 + same.sum(1) + np.where(same, h[None, :], -1).max(1) + any_large * 7 + agree * 9
    assert np.array_equal(o, want)
