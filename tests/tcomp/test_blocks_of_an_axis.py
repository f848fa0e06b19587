"""Axes that are written and read block by block, `128 * t + r`: covered whole, staged, and without needless tests."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.extents import Facts
from tcomp.dsl.infer import infer
from tcomp.dsl.load import load_text
from tcomp.dsl.parse import parse_expression
from tcomp.dsl.storage import bound
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import H100
from tcomp.oracle import evaluate
from tcomp.runtime.verify import random_inputs
from tcomp.schedule.lower import lower
from tests.test_ops_gpu import run

TEXT = """
op scaled(X: real[M, K]) -> Y: f32[M, K]:
  index t: (M + 15) // 16
  index r: 16
  index g: (K + 31) // 32
  index k: 32
  B[t, r, g, k]: real = select(16 * t + r < M and 32 * g + k < K, X[16 * t + r, 32 * g + k], 0.0)
  a[g, 16 * t + r] = max k: abs(B[t, r, g, k])
  Y[m, c] = X[m, c] * a[c // 32, m]

schedule scaled on gpu:
  kernel a:
    t -> grid(2) / pipe(1, 2)
    g -> grid.x(1)
    r -> warp(4) / lane.y(1)
    k -> lane / vec
    inline B
    stage X in shared at t by cp.async
  kernel Y:
    m -> grid(1)
    c -> lane / vec
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return load_text(TEXT, "blocks.tc")


def first(module: Module, m: int, k: int) -> Kernel:
    return lower(bound(module.ops["scaled"], DType.BF16), module, {"M": m, "K": k}, H100).kernels[0]


def test_a_temporary_of_blocks_has_room_for_whole_ones(module: Module) -> None:
    info = infer(module.ops["scaled"], module)
    assert info.temporaries["a"].indices == ("g", "r.t")
    assert first(module, 50, 70).buffer("a").shape == (3, 64)


def test_whole_blocks_are_neither_cleared_nor_guarded(module: Module) -> None:
    kernel = first(module, 64, 96)
    assert len(kernel.phases) == 1 and "select" not in print_kernel(kernel)


def test_a_tile_of_a_block_begins_where_the_block_does_and_ends_with_the_tensor(module: Module) -> None:
    whole, ragged = (print_kernel(first(module, *mk)) for mk in ((64, 96), (50, 70)))
    assert "r in 16 * t.1 .. 16 * t.1 + 16 block 16" in whole and "min(" not in whole
    assert "r in 16 * t.1 .. min(16 * t.1 + 16, 50) block 16" in ragged and "select" in ragged


@pytest.mark.parametrize("m, k", [(64, 96), (50, 70)])
def test_results_are_the_oracles(m: int, k: int, module: Module) -> None:
    op, dims = bound(module.ops["scaled"], DType.BF16), {"M": m, "K": k}
    inputs = random_inputs(op, dims, np.random.default_rng(0), False)
    found, wanted = run(op, module, dims, inputs), evaluate(op, module, inputs, dims)
    np.testing.assert_allclose(found["Y"], wanted["Y"], rtol=1e-6)


@pytest.mark.parametrize("subscript", ["15 * t + r", "17 * t + r"])
def test_an_axis_of_a_temporary_is_whole_blocks(subscript: str) -> None:
    with pytest.raises(TcError, match="its subscripts must be indices"):
        load_text(TEXT.replace("a[g, 16 * t + r]", f"a[g, {subscript}]"), "blocks.tc")


@pytest.mark.parametrize("left", ["W[16 * t + r, t]", "W[16 * t + r, r]"])
def test_an_axis_of_blocks_has_indices_of_its_own(left: str) -> None:
    """Else only the blocks of a diagonal were written, and the rest read as memory had it."""
    line = f"  {left}: f32 = X[16 * t + r, 0]\n  Y[m, c]"
    with pytest.raises(TcError, match="stands twice on the left"):
        load_text(TEXT.replace("  Y[m, c]", line), "blocks.tc")


def test_whole_blocks_are_at_least_the_axis() -> None:
    m, up, down = (parse_expression(e) for e in ("M", "(M + 15) // 16 * 16", "(M + 14) // 16 * 16"))
    assert Facts().at_most(m, up) and not Facts().at_most(m, down) and not Facts().at_most(up, m)
