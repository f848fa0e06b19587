"""nvcc: shuffles, votes, matches, reductions within a warp, elect."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(1)


def test_shuffles(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    n, grid, block = 333, 4, 96
    x = RNG.integers(-50, 50, n).astype(np.float32)
    lanes = np.zeros(grid * block, np.float32)
    lanes[:n] = x
    sums = lanes.reshape(-1, 32).sum(axis=1)[: (n + 31) // 32]
    _, down, butterfly, scan, turned = cuda.run(
        "warps", "shuffles", grid, block, x, np.zeros_like(sums), np.zeros_like(sums), np.zeros_like(x),
        np.zeros(n, np.int32), n, arch=arch)  # fmt: skip
    assert np.array_equal(down, sums) and np.array_equal(butterfly, sums)
    assert np.array_equal(scan, lanes.reshape(-1, 32).cumsum(axis=1).ravel()[:n])
    i = np.arange(n)
    assert np.array_equal(turned, i // 32 * 32 + (i % 32 * 5 + 3) % 32)


def test_segments_of_a_warp_and_64_bit_values(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(-9, 9, 64).astype(np.float64)
    _, sums, tops = cuda.run("warps", "segments", 1, 64, x, np.zeros_like(x), np.zeros(64, np.uint64), arch=arch)
    assert np.array_equal(sums, np.repeat(x.reshape(-1, 8).sum(axis=1), 8))
    t = np.arange(64)
    top = np.where(t % 32 < 16, t // 32 * 32 + 15, t)
    assert np.array_equal(tops, top.astype(np.uint64) << np.uint64(40) | top.astype(np.uint64))


def test_votes_and_matches(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 8, 128).astype(np.int32)
    x[64:96] = 205
    outs = cuda.run("warps", "votes", 2, 64, x, *[np.zeros(128, np.uint32) for _ in range(6)], arch=arch)[1:]
    w = x.reshape(-1, 32)
    bits = 1 << np.arange(32, dtype=np.int64)

    def spread(v: np.ndarray) -> np.ndarray:
        return np.repeat(v, 32)

    ballot, any_, all_, same, every, uniform = outs
    assert np.array_equal(ballot, spread(((w > 3) * bits).sum(axis=1)))
    assert np.array_equal(any_, spread((w == 5).any(axis=1)))
    assert np.array_equal(all_, spread((w >= 0).all(axis=1)))
    assert np.array_equal(uniform, spread((w > 100).all(axis=1) | (w <= 100).all(axis=1)))
    assert np.array_equal(same, ((w[:, :, None] == w[:, None, :]) * bits).sum(axis=2).ravel())
    assert (every == 0xFFFFFFFF).all()


def test_reductions_over_masks(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(-(2**31), 2**31, 64).astype(np.int32)
    outs = cuda.run("warps", "reduxes", 1, 64, x, *[np.zeros(64, np.int32) for _ in range(6)], arch=arch)[1:]
    t = np.arange(64)
    for lane in range(64):
        group = x[(t // 32 == lane // 32) & (t % 3 == lane % 3)] if lane % 3 else np.zeros(1, np.int32)
        wants = [group.sum(dtype=np.int32), group.view(np.uint32).max().astype(np.int32), group.min(),
                 np.bitwise_or.reduce(group), np.bitwise_and.reduce(group), np.bitwise_xor.reduce(group)]  # fmt: skip
        assert [o[lane] for o in outs] == wants


def test_warp_aggregated_compaction(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 1000, 777).astype(np.int32)
    x[64:96] &= ~1
    _, out, count = cuda.run(
        "warps", "compact", 7, 128, x, 777, np.full(777, -1, np.int32), np.zeros(1, np.int32), arch=arch
    )
    assert np.array_equal(np.sort(out[: count[0]]), np.sort(x[x % 2 == 1]))


def test_elect(cuda) -> None:  # type: ignore[no-untyped-def]
    (out,) = cuda.run("warps", "elected", 1, 64, np.zeros(64, np.int32), arch="sm_90")
    leaders = out // 100
    assert leaders.reshape(2, 32).sum(axis=1).tolist() == [1, 1]
    assert np.array_equal(out % 100, np.repeat(np.flatnonzero(leaders) % 32, 32))
