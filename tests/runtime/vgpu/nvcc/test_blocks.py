"""nvcc: block-wide algorithms, named barriers, cooperative groups, a grid-wide barrier."""

from __future__ import annotations

import numpy as np
import pytest

ARCHITECTURES = ("sm_90",)  # the language is tried here, which becomes the same instructions on all
RNG = np.random.default_rng(7)


@pytest.mark.parametrize("n", [1, 100, 256])
def test_prefix_sum(cuda, arch, n) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(-9, 9, n).astype(np.int32)
    _, y, sums = cuda.run(
        "blocks", "scan", 1, 128, x, np.zeros_like(x), np.zeros(1, np.int32), n, shared=1024, arch=arch
    )
    assert np.array_equal(y, np.cumsum(x) - x) and sums[0] == x.sum()


def test_bitonic_sort(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.standard_normal(401).astype(np.float32)
    assert np.array_equal(cuda.run("blocks", "bitonic", 1, 128, x, 401, arch=arch)[0], np.sort(x))


def test_radix_sort(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 2**32, 231, dtype=np.uint64).astype(np.uint32)
    assert np.array_equal(cuda.run("blocks", "radix", 1, 256, x, 231, arch=arch)[0], np.sort(x))


def test_transpose_and_stencil(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.standard_normal((45, 70)).astype(np.float32)
    out = cuda.run("blocks", "transpose", (3, 2), (32, 8), x, np.zeros((70, 45), np.float32), 45, 70, arch=arch)[1]
    assert np.array_equal(out, x.T)
    v = RNG.integers(-9, 9, 300).astype(np.float32)
    out = cuda.run("blocks", "stencil", 3, 128, v, np.zeros_like(v), 300, arch=arch)[1]
    assert np.array_equal(out, np.convolve(v, [1, 2, 3, 4, 3, 2, 1], "same"))


def test_cooperative_groups(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    n = 256
    x = RNG.integers(0, 20, n).astype(np.int32)
    _, total, exclusive, coalesced, part = cuda.run(
        "blocks", "groups", 2, 128, x, *[np.zeros(n, np.int32) for _ in range(4)], n, arch=arch)  # fmt: skip
    tiles = x.reshape(-1, 8)
    assert np.array_equal(total, np.repeat(tiles.sum(axis=1), 8))
    assert np.array_equal(exclusive, (tiles.cumsum(axis=1) - tiles).ravel())
    warps = x.reshape(-1, 32)
    odd = warps & 1
    rank = odd.cumsum(axis=1) - 1
    assert np.array_equal(coalesced, np.where(odd, odd.sum(axis=1, keepdims=True) * 100 + rank, -1).ravel())
    same = tiles[:, :, None] % 3 == tiles[:, None, :] % 3
    most = np.where(same, tiles[:, None, :], -1).max(axis=2) * 10 + same.sum(axis=2)
    big = warps > 5
    sizes = np.where(big, big.sum(axis=1, keepdims=True), 32 - big.sum(axis=1, keepdims=True))
    assert np.array_equal(part, most.ravel() + sizes.ravel() * 1000)


def test_reduction_by_cooperative_groups(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(-9, 9, 3001).astype(np.float32)
    assert cuda.run("blocks", "tiledreduce", 3, 96, x, np.zeros(1, np.float32), 3001, arch=arch)[1][0] == x.sum()


def test_grid_wide_barrier(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    _, y = cuda.run("blocks", "gridsync", 5, 64, np.zeros(320, np.int32), np.zeros(320, np.int32), arch=arch)
    assert np.array_equal(y, (np.arange(320) + 64) % 320)


def test_named_barriers(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    t = np.arange(128)
    (out,) = cuda.run("blocks", "named", 1, 128, np.zeros(128, np.int32), arch=arch)
    assert np.array_equal(out, np.where(t < 64, 63 - t, -t))
    x = RNG.integers(0, 100, 320).astype(np.int32)
    out = cuda.run("blocks", "producer", 1, 64, x, np.zeros_like(x), 10, arch=arch)[1]
    assert np.array_equal(out, (x.reshape(10, 32)[:, ::-1] + 1).ravel())


def test_barriers_that_reduce(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 8, 96).astype(np.int32)
    assert (cuda.run("blocks", "counted", 1, 96, x, np.zeros_like(x), arch=arch)[1] == (x > 3).sum() * 100 + 10).all()


def test_warps_that_pass_a_flag_in_shared_memory(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    (out,) = cuda.run("blocks", "flagged", 1, 64, np.zeros(32, np.int32), arch=arch)
    assert np.array_equal(out, np.arange(32)[::-1] * 7)
    report, _ = cuda.launch("blocks", "unflagged", 1, 64, np.zeros(32, np.int32), arch=arch)
    assert report.kinds() == {"shared memory race"}
