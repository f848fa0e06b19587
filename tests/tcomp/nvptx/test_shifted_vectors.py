"""Vectors by the copy engine from rows at any multiple of their elements: copies begin at multiples of 16 bytes, and
readers as much later as the vector does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.ir.print import print_buffer
from tcomp.ir.tensor_map import tile_map
from tcomp.ir.tile import Kernel, Pack, RowMajor, Shifted
from tcomp.ir.walk import statements_in
from tcomp.machine.gpu import H100
from tcomp.oracle import evaluate
from tcomp.schedule.lower import LoweredOp, lower
from tests.reference.op_cases import stored_inputs
from tests.test_ops_gpu import execute

TEXT = """
op weighted(L: real[B, H, T], X: f32[B, T, H, K]) -> Y: f32[B, T, H, K]:
  Y[b, t, h, k] = X[b, t, h, k] * L[b, h, t]

schedule weighted on sm_90a:
  b, h -> grid(1)
  t -> {level} / lane.y(4) / vec(4)
  k -> lane.x
  stage L in shared at t by tma
"""


def dims(t: int) -> dict[str, int]:
    return {"B": 2, "H": 3, "T": t, "K": 8}


def weighted(t: int, level: str = "pipe(32, 2)", real: DType = DType.F32) -> LoweredOp:
    module = load_text(TEXT.format(level=level), "weighted.tc")
    return lower(bound(module.ops["weighted"], real), module, dims(t), H100)


def pack_of(kernel: Kernel) -> Pack:
    return next(s for p in kernel.phases for s in statements_in(p) if isinstance(s, Pack))


@pytest.mark.parametrize("real", [DType.F32, DType.BF16])
@pytest.mark.parametrize("level", ["grid(32)", "seq(32)", "pipe(32, 2)"])
@pytest.mark.parametrize("t", [67, 66])
def test_results_are_the_oracles(t: int, level: str, real: DType) -> None:
    """Six rows, so every beginning that there is; the virtual GPU reports unaligned boxes and loads."""
    module = load_text(TEXT.format(level=level), "weighted.tc")
    op = bound(module.ops["weighted"], real)
    inputs = stored_inputs(module.ops["weighted"], module, dims(t), real)
    got = execute(lower(op, module, dims(t), H100), op, inputs)["Y"]
    assert np.abs(got - evaluate(op, module, inputs, dims(t))["Y"]).max() < 1e-6


@pytest.mark.parametrize(("real", "room"), [(DType.F32, 4), (DType.BF16, 8)])
def test_a_copy_has_room_for_the_vectors_beginning(real: DType, room: int) -> None:
    (kernel,) = weighted(67, real=real).kernels
    pack = pack_of(kernel)
    tile, operand = kernel.buffer(pack.buffer), kernel.buffer("L")
    assert tile.shape == (32,) and tile.layout == Shifted(room) and tile.bytes == (32 + room) * real.bytes
    assert f"shifted by less than {room}" in print_buffer(tile)
    found = tile_map(pack, tile, operand)
    assert (found.shape, found.strides, found.box) == ((2 * 3 * 67,), (), (32 + room,))
    with pytest.raises(ValueError, match="no whole vector"):
        tile_map(pack, tile, operand, parts=2)
    with pytest.raises(ValueError, match="multiple of 16"):
        tile_map(pack, replace(tile, layout=RowMajor()), operand)
    code = compile_kernel(kernel, H100).ptx
    assert f"expect_tx.shared::cta.b64 _, [$0], {tile.bytes}" in code or f", {tile.bytes};" in code


def test_aligned_rows_are_read_as_they_are_and_in_groups() -> None:
    (even,), (odd,) = weighted(64).kernels, weighted(67).kernels
    assert kernel_layout(even) == RowMajor() and kernel_layout(odd) == Shifted(4)
    assert "ld.shared.v4" in compile_kernel(even, H100).ptx
    assert "ld.shared.v" not in compile_kernel(odd, H100).ptx


def kernel_layout(kernel: Kernel) -> object:
    return kernel.buffer(pack_of(kernel).buffer).layout
