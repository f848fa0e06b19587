"""nvcc: libcu++'s barriers, latches and semaphores, cooperative groups' copies and clusters, CUB's block primitives."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # their headers take the compiler long
RNG = np.random.default_rng(9)


def test_a_barrier_with_asynchronous_copies(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 99, 1024).astype(np.int32)
    found = cuda.run("libraries", "cbar", 1, 128, x, np.zeros_like(x), 1024, arch=arch)[1]
    assert np.array_equal(found, x.reshape(4, 256)[:, ::-1].ravel())


def test_threads_that_drop_out_of_a_barrier(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    found = cuda.run("libraries", "dropping", 1, 128, np.zeros(512, np.int32), arch=arch)[0].reshape(128, 4)
    t = np.arange(128)[:, None]
    rounds = np.arange(4)[None, :]
    stays = t < 128 - 32 * np.minimum(rounds + 1, 3)
    stays &= t < 128 - 32 * rounds
    assert np.array_equal(found, np.where(stays, (t ^ 1) + rounds, 0))


def test_copies_of_a_group(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.standard_normal(500).astype(np.float32)
    found = cuda.run("libraries", "cgcopy", 1, 128, x, np.zeros_like(x), 500, shared=1024, arch=arch)[1]
    assert np.array_equal(found, np.concatenate([x[i : i + 128][::-1] for i in range(0, 500, 128)]))


def test_a_latch_and_a_semaphore(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    found = cuda.run("libraries", "latches", 1, 128, np.zeros(64, np.int32), arch=arch)[0]
    assert np.array_equal(found, np.arange(64)[::-1] * 3)
    assert cuda.run("libraries", "sema", 1, 64, np.zeros(1, np.int32), np.zeros(64, np.int32), arch=arch)[1].all()


def test_shared_memory_of_the_next_block_in_a_cluster(cuda) -> None:  # type: ignore[no-untyped-def]
    found = cuda.run("libraries", "ring", 8, 32, np.zeros(256, np.int32), arch="sm_90", cluster=4)[0].reshape(8, 32)
    assert np.array_equal(found, ((np.arange(8) + 1) % 4 * 100)[:, None] + np.arange(32)[::-1] + 40000)


def test_primitives_of_a_block(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    x = RNG.integers(0, 1000, (2, 512)).astype(np.int32)
    blank = [np.zeros(k, np.int32) for k in (2, 1024, 1024, 32)]
    _, sums, scan, ordered, bins = cuda.run("libraries", "cubs", 2, 128, x, *blank, 1024, arch=arch)
    assert np.array_equal(sums, x.sum(1)) and np.array_equal(scan, (x.cumsum(1) - x).ravel())
    assert np.array_equal(ordered, np.sort(x, 1).ravel())
    assert np.array_equal(bins.reshape(2, 16), [np.bincount(row & 15, minlength=16) for row in x])
