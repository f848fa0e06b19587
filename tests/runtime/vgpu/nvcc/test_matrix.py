"""nvcc: wmma in every element type, ldmatrix with mma.sync."""

from __future__ import annotations

import numpy as np
import pytest

ARCHITECTURES = ("sm_90",)  # both become the same instructions
RNG = np.random.default_rng(8)


def bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    "kernel,tile,narrow,out",
    [("wf16", (16, 16, 16), np.float16, np.float32), ("wf16h", (32, 8, 16), np.float16, np.float16),
     ("wbf16", (8, 32, 16), bf16, np.float32), ("ws8", (16, 16, 16), np.int8, np.int32),
     ("wf64", (8, 8, 4), np.float64, np.float64)],
)  # fmt: skip
def test_wmma(cuda, arch, kernel, tile, narrow, out) -> None:  # type: ignore[no-untyped-def]
    tm, tn, tk = tile
    m, n, k = 2 * tm, 3 * tn, 4 * tk
    a, b = RNG.integers(-8, 8, (m, k)), RNG.integers(-8, 8, (n, k))
    c = cuda.run("matrix", kernel, (3, 2), 32, narrow(a), narrow(b), np.zeros((m, n), out), m, n, k, arch=arch)[2]
    assert np.array_equal(c, a @ b.T * 2)


def test_wmma_of_tf32_onto_an_accumulator(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a, b, c = (RNG.integers(-9, 9, s).astype(np.float32) for s in ((32, 40), (40, 48), (32, 48)))
    out = cuda.run("matrix", "wtf32", (3, 2), 32, a, b, c, 32, 48, 40, arch=arch)[2]
    assert np.array_equal(out, a @ b + c)


def test_ldmatrix_and_mma(cuda, arch) -> None:  # type: ignore[no-untyped-def]
    a, b = RNG.integers(-8, 8, (64, 96)), RNG.integers(-8, 8, (96, 64))
    out = cuda.run("matrix", "ldmma", (2, 2), 128, bf16(a), bf16(b), np.zeros((64, 64), np.float32), 64, 96, arch=arch)[
        2
    ]
    assert np.array_equal(out, a @ b)
