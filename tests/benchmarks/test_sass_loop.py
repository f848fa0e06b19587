"""The steady state of the 4096^3 bf16 product: matrix instructions, their descriptors, barriers and loop control."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from steady_loop import steady_loop

from tcomp.autotune.sass import functions_of
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.autotune.support import gpt2

pytestmark = pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="nvdisasm is not installed")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sass_loop.py"


def test_the_loop_of_the_shipped_schedule_is_short(tmp_path: Path) -> None:
    module = gpt2()
    (kernel,) = lower(bound(module.ops["matmul"], DType.BF16), module, dict.fromkeys("MNK", 4096), H100).kernels
    loop = steady_loop(
        functions_of(disassemble(assemble(compile_kernel(kernel, H100).ptx, "sm_90a", tmp_path).cubin))["tc_matmul_0"]
    )
    kinds = loop.kinds()
    assert loop.others_per_matrix < 4, "addresses stay in uniform registers, though threads are elected around it"
    assert kinds["descriptors"] <= 2 * kinds["matrix"] and not kinds["copies"], "only what differs from one to the next"
    waits, releases = (
        sum(i.name == "SYNCS" and what in i.opcode for i in loop.instructions) for what in ("PHASECHK", "ARRIVE")
    )
    assert waits == releases == kinds["matrix"] // 4, "one of each for a tile of 64 along k"
    assert kinds["other"] + kinds["control"] <= 1.5 * kinds["matrix"], "releases go to both blocks of a cluster"


@pytest.mark.slow
def test_no_kernel_of_triton_s_has_a_shorter_one() -> None:
    """Its best kind of kernel by the whole list (docs/gpu-kernels.md), at each tile."""
    pytest.importorskip("triton")
    if cuda_tool("ptxas") is None:
        pytest.skip("ptxas is not installed")
    command = [sys.executable, SCRIPT, "--triton", " descriptors"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"tcomp ([\d.]+), Triton's best ([\d.]+)", said)
    assert found, said
    assert said.count("Triton 3") >= 4 and float(found[1]) <= float(found[2])
