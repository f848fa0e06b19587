"""Contractions on the virtual GPU: register tiles, staged operands, pipes of every depth; their inner loops."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Kernel
from tests.tcomp.nvptx.gemm import product
from tests.tcomp.nvptx.support import run

SMALL: dict[str, Any] = {"tile": (16, 16, 8), "shape": ThreadShape(1, 2, 8, 4), "per_thread": (2, 2)}
RNG = np.random.default_rng(1)


def check(k: Kernel) -> str:
    inputs = {o.name: RNG.standard_normal(o.shape).astype(np.float32) for o in k.operands[:2]}
    return run(k, inputs, tolerance=1e-4)[0]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(37, 29, 53), (32, 32, 8), (17, 1, 9), (1, 1, 1)], ids=str)
def test_pipes(stages: int, sizes: tuple[int, int, int]) -> None:
    check(product(*sizes, stages=stages, **SMALL))


@pytest.mark.parametrize("sizes", [(37, 29, 53), (32, 48, 24)], ids=str)
def test_synchronous_copies(sizes: tuple[int, int, int]) -> None:
    ptx = check(product(*sizes, by="copy", stages=2, **SMALL))
    assert "cp.async" not in ptx


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F64])
@pytest.mark.parametrize("transposed", [False, True])
def test_types_and_layouts(dtype: DType, transposed: bool) -> None:
    check(product(37, 29, 53, dtype=dtype, transposed=transposed, **SMALL))
    ptx = check(product(48, 32, 64, dtype=dtype, transposed=transposed, **SMALL))
    if not transposed:
        assert "cp.async.cg.shared.global" in ptx


def test_a_whole_tile_has_a_bare_inner_loop() -> None:
    """128 x 128 x 16, 8 x 8 a thread: the loop over k is multiply-adds and 128-bit shared loads."""
    ptx = check(product(128, 128, 48, transposed=False))
    loops = re.findall(r"(\$L__BB0_\d+):\n((?:(?!\$L__BB).)*?)bra \t?\1;", ptx, re.S)
    inner = max((body for _, body in loops), key=lambda b: b.count("fma.rn.f32"))
    lines = [x.strip() for x in inner.splitlines() if x.strip()]
    assert inner.count("fma.rn.f32") == 512 and inner.count("ld.shared.v4.b32") == 32
    assert len(lines) < 512 + 32 + 12, [x for x in lines if not x.startswith(("fma", "ld.shared"))]
    assert "st.global.v4.b32" in ptx and ptx.count("cp.async.cg") == 12 and "selp" not in inner
