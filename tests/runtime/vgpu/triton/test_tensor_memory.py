"""Triton for sm_100a: products by tcgen05, whose accumulators (and some left operands) lie in tensor memory.

Triton leaves out the tcgen05 fences that the PTX ISA asks for: its assembler keeps the order nevertheless. The virtual
GPU reports them, and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import formats
from tests.runtime.vgpu.triton.conftest import Descriptor

RNG = np.random.default_rng(25)
LEFT_OUT = {"missing tcgen05.fence"}


def product(triton: Any, a: np.ndarray, b: np.ndarray, tile: tuple[int, int, int], types: Any = None, **options: Any
            ) -> np.ndarray:  # fmt: skip
    """A B (any strides) by a grid of tiles."""
    (m, k), n = a.shape, b.shape[1]
    strides = [s // x.itemsize for x in (a, b) for s in x.strides]
    c = np.zeros((m, n), np.float32)
    flat = [x if x.flags.c_contiguous else x.T for x in (a, b)]
    report, arrays = triton.launch(
        "matmul", -(-m // tile[0]) * -(-n // tile[1]), *flat, c, m, n, k, *strides, n, 1, cap=100, types=types,
        constants={"BM": tile[0], "BN": tile[1], "BK": tile[2], "GROUP": 1, "PRECISION": "tf32"}, **options,
    )  # fmt: skip
    assert report.traffic["tensor"].bytes_read
    assert report.kinds() <= LEFT_OUT, str(report)
    return arrays[2]


def integers(*shape: int) -> np.ndarray:
    return RNG.integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "tile", "order"),
    [
        ("f16", (128, 64, 64), "kk"),
        ("bf16", (128, 64, 64), "kn"),
        ("bf16", (64, 64, 32), "mn"),
        ("f16", (128, 32, 128), "mk"),
        ("e4m3", (128, 64, 128), "kk"),
        ("tf32", (128, 64, 32), "kk"),
    ],
)
def test_products(triton, kind, tile, order) -> None:  # type: ignore[no-untyped-def]
    """`order`: the index along which A's and B's rows run in memory."""
    m, n, k = 160, 96, 2 * tile[2]
    a, b = integers(m, k), integers(k, n)
    types = None
    if kind in ("f16", "tf32"):
        given = [x.astype(np.float16 if kind == "f16" else np.float32) for x in (a, b)]
    elif kind == "bf16":
        given = [formats.to16(x, "bf16") for x in (a, b)]
    else:
        given, types = [formats.to8(x, kind) for x in (a, b)], {0: "*fp8e4nv", 1: "*fp8e4nv"}
    given[0] = np.asarray(given[0], order="C" if order[0] == "k" else "F")
    given[1] = np.asarray(given[1], order="C" if order[1] == "n" else "F")
    assert np.array_equal(product(triton, *given, tile, types), a @ b)


def test_attention(triton) -> None:  # type: ignore[no-untyped-def]
    """The weights of the values are a left operand in tensor memory."""
    heads, length, width = 1, 160, 64
    q, k, v = (RNG.standard_normal((heads, length, width)).astype(np.float16) for _ in range(3))
    report, arrays = triton.launch(
        "attention", (2, heads), q, k, v, np.zeros_like(q), np.zeros((heads, length), np.float32), length,
        width**-0.5, cap=100, constants={"HEAD": width, "BM": 128, "BN": 64, "CAUSAL": True},
    )  # fmt: skip
    assert report.kinds() <= LEFT_OUT, str(report)
    assert any("], [" in f.source and "tcgen05.mma" in f.source for f in report.findings)
    score = np.einsum("hid,hjd->hij", q.astype(np.float64), k.astype(np.float64)) * width**-0.5
    score = np.where(np.tril(np.ones((length, length), bool)), score, -np.inf)
    p = np.exp(score - score.max(axis=2, keepdims=True))
    want = np.einsum("hij,hjd->hid", p / p.sum(axis=2, keepdims=True), v.astype(np.float64))
    assert np.allclose(arrays[3], want, rtol=1e-2, atol=5e-3)


def test_tensor_maps(triton) -> None:  # type: ignore[no-untyped-def]
    """Both operands by TMA in 128-byte swizzle, the result through shared memory by a tensor store."""
    m, n, k = 128, 128, 192
    a, b = (integers(*s).astype(np.float16) for s in ((m, k), (n, k)))
    c = np.zeros((m, n), np.float16)
    given = Descriptor(a, (128, 64)), Descriptor(b, (64, 64)), Descriptor(c, (128, 64))
    report, arrays = triton.launch("matmul_host_descriptors", (1, 2), *given, k, cap=100,
                                   constants={"BM": 128, "BN": 64, "BK": 64})  # fmt: skip
    assert report.kinds() <= LEFT_OUT, str(report)
    assert np.array_equal(arrays[2].astype(np.float32), a.astype(np.float32) @ b.astype(np.float32).T)
