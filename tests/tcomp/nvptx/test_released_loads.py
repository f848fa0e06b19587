"""A tile's place goes back to the copy engine when what threads load of it is there.

On an H100 the last scales of a tile came after the place had been filled again, in two of 16 runs: an arrival at an
mbarrier does not wait for loads that were asked for before it. No simulator of PTX sees that; the machine code's
control bits show it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.cli.build_gpu import TargetDevice
from tcomp.cli.common import build_step
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import library, load
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.machine.gpu import H100
from tcomp.model.request import StepRequest
from tcomp.runtime.cuda.kernels import compile_all
from tcomp.schedule.lower import lower
from tests.reference.scoreboards import out_when_handed_back
from tests.turns import in_turns

pytestmark = pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
FENCE = "fence.acq_rel.cta;"


def early(code: GpuKernel, folder: Path) -> list[tuple[str, str]]:
    return out_when_handed_back(disassemble(assemble(code.ptx, "sm_90a", folder).cubin, encoded=True))


@pytest.mark.parametrize("name, kernel", [("matmul_fp8_block", "Y"), ("matmul_fp8_block.backward", "dW")])
def test_scales_of_a_turn_are_there_before_its_tiles_go(name: str, kernel: str, tmp_path: Path) -> None:
    """(In tiles of 256 rows the assembler puts Y's additions before the arrival, with a fence or without.)"""
    module = load(library() / "ops" / "fp8_block.tc")
    op = backward_of("matmul_fp8_block", module) if "." in name else module.ops[name]
    lowered = lower(bound(op, DType.BF16), module, {"M": 4096, "N": 1024 if kernel == "dW" else 512, "K": 1024}, H100)
    (found,) = (k for k in lowered.kernels if k.name.endswith("." + kernel))
    code = compile_kernel(found, H100)
    assert FENCE in code.ptx and early(code, tmp_path) == []
    assert early(replace(code, ptx=code.ptx.replace(FENCE, "")), tmp_path), "else this test could not fail"


@in_turns(2)
@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize(
    "model, config, precision",
    [("gpt2", "124M", "fp8_block"), ("llama", "smollm_135M", "bf16")],
)
def test_steps(model: str, config: str, precision: str, objects: Path) -> None:
    step = build_step(StepRequest(model, config, {"B": 16, "T": 1024}, precision=precision), TargetDevice(H100)).step
    codes = compile_all(step.kernels, H100, objects)
    rings = {name: code for name, code in codes.items() if "mbarrier" in code.ptx}
    assert rings and {name: found for name, code in rings.items() if (found := early(code, objects))} == {}
