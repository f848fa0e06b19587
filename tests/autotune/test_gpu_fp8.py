"""Block-scaled 8-bit products in the static model: what turns in pairs change, and a floor under a published one."""

from __future__ import annotations

import pytest

from tcomp.autotune.gpu_predict import KernelPrediction, predict_kernel
from tcomp.codegen.nvptx.tools import cuda_tool
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.reference.op_cases import GPT2

SHAPE = {"M": 4096, "N": 7168, "K": 16384}
FLOPS = 2.0 * 4096 * 7168 * 16384
DEEPGEMM = 1358e12
"""FLOP/s at that shape, from DeepGEMM's README at its first release, on an H800"""


def predicted(name: str, output: str, without: str = "") -> KernelPrediction:
    text = (GPT2.parent / "ops" / "fp8_block.tc").read_text()
    if without:
        text = "".join(line for line in text.splitlines(keepends=True) if not line.strip().startswith(without))
    module = load_text(text, str(GPT2.parent / "fp8_block.tc"))
    kernels = lower(bound(module.ops[name], DType.BF16), module, SHAPE, H100).kernels
    return predict_kernel(next(k for k in kernels if k.name.endswith(f".{output}")), H100)


@pytest.mark.slow
@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
def test_block_scaled_products() -> None:
    """At least 85% of the published figure, with turns in pairs; nothing spilled, nothing serialised. Nothing was
    timed: a floor under what was reached."""
    forward = predicted("matmul_fp8_block", "Y")
    for p in (forward, predicted("matmul_fp8_block.backward", "dX")):
        assert not p.assembled.findings and FLOPS / p.seconds > 0.85 * DEEPGEMM
    assert 1.05 < predicted("matmul_fp8_block", "Y", "overlap").seconds / forward.seconds < 1.25
