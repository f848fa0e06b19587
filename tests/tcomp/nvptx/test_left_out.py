"""Each synchronisation of a kernel, left out: some check of the virtual GPU notices, or it is one that PTX does not ask
for. What is in no kernel's `SPARE` must be found; what is in it, not, or the list has grown old."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import library, load
from tcomp.dsl.storage import bound
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import H100, GpuMachine, machine_for_target, machine_named
from tcomp.runtime.vgpu.report import KernelFault
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import given, launch, lowered
from tests.tcomp.nvptx.test_clusters import TENSOR

RING = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: f32[M, N]:
  acc[m, n]: f32 = sum k: X[m, k] * W[n, k]
  Y[m, n] = acc[m, n] * 2.0

schedule f on sm_80:
  m -> grid.y(64) / warp(32) / mma
  n -> grid.x(32) / mma
  k -> pipe(32, 3) / mma
  stage X, W in shared at k by cp.async swizzle
  use mma.sync for acc
"""
CASES = {
    # The cluster's barrier releases what comes before it, and lanes of a warp are together behind wgmma's wait.
    "cluster": (TENSOR.format(bn=32), {"M": 512, "N": 64, "K": 264}, replace(H100, sms=2),
                {"fence.mbarrier_init.release.cluster": 1, "bar.warp.sync": 2}),
    # Behind the loop nothing is in flight but empty groups, and nobody reads what they would bring.
    "ring": (RING, {"M": 64, "N": 32, "K": 200}, machine_named("a100"), {"cp.async.wait_group": 1}),
    # The same, of rows quantised tile by tile; warps leave parts of columns' largest values in shared memory.
    "quantised": ("layernorm_cast_fp8_block", {"M": 128, "C": 256}, replace(H100, sms=1), {"cp.async.wait_group": 1}),
    # Products that warpgroups issue themselves. Another block may allocate sooner; the first product meets nothing in
    # tensor memory; tiles are read by products alone, whose end each lane has waited for, and in so few turns none is
    # filled again; behind the last load there is the barrier of the result; the block's barrier releases mbarriers.
    "attention": ("attention", {"B": 1, "T": 140, "H": 1, "D": 16}, machine_for_target("sm_100a"),
                  {"tcgen05.relinquish_alloc_permit": 1, "tcgen05.fence": 2, "bar.sync": 2, "bar.warp.sync": 1,
                   "mbarrier.try_wait": 1, "mbarrier.arrive": 1, "fence.mbarrier_init.release.cluster": 1}),
}  # fmt: skip
SYNCHRONISES = re.compile(
    r"(wgmma|tcgen05|cp\.async(\.bulk)?)\.(fence|wait|commit|relinquish)|mbarrier\.(arrive(?!\.expect_tx)|try_wait)|\bbar(rier)?\.|fence\."
)


def places(ptx: str) -> list[tuple[int, str]]:
    """(line, instruction) of each."""
    lines = enumerate(ptx.split("\n"))
    every = ((n, m.group()) for n, line in lines for m in re.finditer(r"[^;{}]*;", line))
    return [(n, text) for n, text in every if SYNCHRONISES.search(text)]


def without(ptx: str, line: int, text: str) -> str:
    """The text without one of its instructions; a wait that is over at once says so."""
    lines = ptx.split("\n")
    waited = re.search(r"try_wait\S* (%p\d+)", text)
    lines[line] = lines[line].replace(text, f"setp.eq.u32 {waited[1]}, 0, 0;" if waited else "", 1)
    return "\n".join(lines)


def of_library(name: str, dims: dict[str, int], machine: GpuMachine) -> Kernel:
    module = load(library() / "ops" / f"{'attention' if name == 'attention' else 'fp8_block'}.tc")
    (kernel,) = lower(bound(module.ops[name], DType.BF16), module, dims, machine).kernels
    return kernel


@pytest.mark.slow(seconds=9)
@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_is_noticed(case: str) -> None:
    text, dims, machine, spare = CASES[case]
    kernel = lowered(text, dims, machine) if "schedule" in text else of_library(text, dims, machine)
    code, inputs = compile_kernel(kernel, machine), given(kernel, np.random.default_rng(1))
    launch(kernel, code, inputs, machine.sm)
    unnoticed: Counter[str] = Counter()
    for line, instruction in places(code.ptx):
        try:
            launch(kernel, replace(code, ptx=without(code.ptx, line, instruction)), inputs, machine.sm)
        except KernelFault:
            continue
        name = instruction.split()[0].rstrip(";").partition(".sync.aligned")[0]
        unnoticed[next((s for s in spare if name.startswith(s)), name)] += 1
    assert unnoticed == spare
