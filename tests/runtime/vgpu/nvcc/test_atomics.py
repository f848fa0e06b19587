"""nvcc: atomics of every kind, locks, histograms, blocks that wait for blocks."""

from __future__ import annotations

import numpy as np
import pytest

ARCHITECTURES = ("sm_90",)  # atomics are the same on both
RNG = np.random.default_rng(3)


def test_float_maximum_by_compare_and_swap(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.standard_normal(1001).astype(np.float32)
    out = cuda.run("atomics", "casmax", 3, 64, x, np.full(5, -np.inf, np.float32), 1001, arch=arch)[1]
    i = np.arange(1001)
    assert np.array_equal(out, [x[i % 5 == g].max() for g in range(5)])


def test_every_operation(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 1000, 128).astype(np.int32)
    a = np.array([0, 0, 5000, -1, -1, 0, 0, 0], np.int32)
    u = np.array([0, 7, 9999, 0], np.uint32)
    a, u, w, f, d, _ = cuda.run(
        "atomics", "every", 2, 64, a, u, np.zeros(3, np.uint64), np.zeros(1, np.float32), np.zeros(1), x, arch=arch
    )
    assert a.tolist() == [x.sum(), -x.sum(), x.min(), x.max(), np.bitwise_and.reduce(x), np.bitwise_or.reduce(x),
                          np.bitwise_xor.reduce(x), 42]  # fmt: skip
    assert u.tolist() == [128 % 11, (7 - 128) % 8, x.min(), x.max()]
    assert w.tolist() == [x.sum(), int(x.max()) << 33, 5]
    assert f[0] == 64 and d[0] == 32


def test_half_precision(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    outs = cuda.run(
        "atomics", "halves", 2, 32, np.zeros(1, np.float16), np.zeros(2, np.float16), np.zeros(1, np.uint16),
        np.zeros(2, np.uint16), arch=arch)  # fmt: skip
    assert outs[0].tolist() == [32] and outs[1].tolist() == [64, 128]
    assert [(o.astype(np.uint32) << 16).view(np.float32).tolist() for o in outs[2:]] == [[64], [64, 128]]


def test_spin_lock(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    lock, value = cuda.run("atomics", "locked", 3, 64, np.zeros(1, np.int32), np.zeros(1, np.int32), arch=arch)
    assert lock[0] == 0 and value[0] == 3 * 64


@pytest.mark.parametrize("blocks", [1, 7])
def test_the_last_block_reduces(cuda, arch, blocks) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(-9, 9, 5000).astype(np.float32)
    out = cuda.run("atomics", "last_block", blocks, 128, x, np.zeros(blocks, np.float32), np.zeros(1, np.float32), 5000,
                   arch=arch)[2]  # fmt: skip
    assert out[0] == x.sum()


@pytest.mark.parametrize("bins", [7, 300])
def test_histogram_in_dynamic_shared_memory(cuda, arch, bins) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 256, 6004).astype(np.uint8)
    out = cuda.run("atomics", "histogram", 3, 96, x, np.zeros(bins, np.uint32), 6004, bins, shared=4 * bins, arch=arch)[
        1
    ]
    assert np.array_equal(out, np.bincount(x.astype(int) % bins, minlength=bins))


def test_libcu_atomics(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    out, words = cuda.run("atomics", "libcu", 1, 64, np.zeros(64, np.int32), np.array([0, 0, 3], np.uint32), arch=arch)
    assert (out == 1).all() and words[1] == 63


@pytest.mark.parametrize("kernel", ["message", "released"])
def test_blocks_pass_messages(cuda, arch, kernel) -> None:  # type: ignore[no-untyped-def]
    out = cuda.run("atomics", kernel, 2, 64, *[np.zeros(n, np.int32) for n in (64, 1, 64)], arch=arch)[2]
    assert np.array_equal(out, np.arange(64) * 3)


def test_a_message_without_its_fence_is_a_race(cuda) -> None:  # type: ignore[no-untyped-def]
    report, _ = cuda.launch("atomics", "unfenced", 2, 64, *[np.zeros(n, np.int32) for n in (64, 1, 64)])
    assert report.kinds() == {"global memory race"}
