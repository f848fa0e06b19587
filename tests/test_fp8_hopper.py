"""8-bit linear layers on Hopper: products by wgmma of 8-bit floats, the oracle's results."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.schedule.lower import lower
from tests.reference.op_cases import GPT2
from tests.test_ops_gpu import execute

H100 = machine_for_target("sm_90a")
DIMS = {"M": 72, "N": 80, "K": 272, "H": 16}


def eight_bit_layers() -> Module:
    return load_text("import ops.fp8\nimport ops.fp8_block\n", str(GPT2.with_name("eight_bits.tc")))


def inputs_of(op: Op, dims: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    found = {}
    for p in op.params:
        x = rng.standard_normal(operand_shape(p, dims)).astype(np.float32)
        x = np.full_like(x, 3.5) if p.name.startswith("h") else x
        found[p.name] = values(stored(x, p.dtype), p.dtype)
    return found


@pytest.mark.parametrize("name", ["linear_fp8", "linear_gelu_fp8", "linear_fp8_block", "linear_residual_fp8_block"])
def test_products_of_8_bits(name: str) -> None:
    module = eight_bit_layers()
    op = bound(module.ops[name], DType.BF16)
    dims = {d: n for d, n in DIMS.items() if d != "H" or "block" not in name}
    lowered = lower(op, module, dims, H100)
    assert "e4m3.e4m3" in compile_kernel(lowered.kernels[-1], H100).ptx
    inputs = inputs_of(op, dims)
    found = execute(lowered, op, inputs)
    for output, x in evaluate(op, module, inputs, dims).items():
        # wgmma keeps 14 bits of a sum, results are rounded to 8. Scales are in f32, so that a value which the oracle
        # rounds to one 8-bit float may become its neighbour: one term of 272 moves by an eighth.
        np.testing.assert_allclose(found[output], x, rtol=2.0**-7, atol=2.0**-6 * np.abs(x).max())
