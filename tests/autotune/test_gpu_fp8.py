"""8-bit products in the static model: what turns in pairs change, and a floor under a published rate."""

from __future__ import annotations

import pytest

from tcomp.autotune.gpu_predict import KernelPrediction, predict_kernel
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.reference.op_cases import GPT2

SHAPE = {"M": 4096, "N": 7168, "K": 16384}
FLOPS = 2.0 * 4096 * 7168 * 16384
DEEPGEMM = 1358e12
LATER = 1550e12
"""FLOP/s at that shape, from DeepGEMM's README at its first release, on an H800; and its fastest of a later one"""


def predicted(
    name: str, output: str, without: str = "", longest: int = 2048, **chosen: int | float
) -> KernelPrediction:
    file = "fp8_block.tc" if "block" in name else "fp8.tc"
    text = (GPT2.parent / "ops" / file).read_text()
    text = text.replace("tune longest = 2048", f"tune longest = {longest}")
    if without:
        text = "".join(line for line in text.splitlines(keepends=True) if not line.strip().startswith(without))
    module = load_text(text, str(GPT2.parent / file))
    dims = SHAPE if "block" in name else {**SHAPE, "H": 16}
    kernels = lower(bound(module.ops[name], DType.BF16), module, dims, H100, chosen=chosen).kernels
    return predict_kernel(next(k for k in kernels if k.name.endswith(f".{output}")), H100)


@pytest.mark.slow
@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
def test_block_scaled_products() -> None:
    """At least 85% of the published figure; nothing spilled, nothing serialised. Nothing was timed: a floor under what
    was reached."""
    forward = predicted("matmul_fp8_block", "Y")
    backward = (predicted("matmul_fp8_block.backward", d) for d in ("dX", "dW"))
    for p in (forward, *backward):
        assert not p.assembled.findings and FLOPS / p.seconds > 0.85 * LATER
    narrow = predicted("matmul_fp8_block", "Y", BM=128, S=5).seconds
    assert 1.02 < predicted("matmul_fp8_block", "Y", "overlap", BM=128, S=5).seconds / narrow < 1.25
    assert 1.03 < narrow / forward.seconds < 1.1, "what tiles of 256 rows gain"


@pytest.mark.slow
@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
def test_products_promoted_to_f32() -> None:
    """What promotion costs: above the floor, and less than a fifth of the rate."""
    promoted, plain = predicted("linear_gelu_fp8", "P+Y"), predicted("linear_gelu_fp8", "P+Y", longest=1 << 30)
    assert not promoted.assembled.findings and FLOPS / promoted.seconds > 0.85 * DEEPGEMM
    assert 1.0 < promoted.seconds / plain.seconds < 1.2
