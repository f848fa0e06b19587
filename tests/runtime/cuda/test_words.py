"""Words that say whose turn it is: zero when a step is placed, and again behind every launch, in memory of their
own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.machine.gpu import H100
from tcomp.model.single import single_op_step
from tcomp.runtime.cuda.executor import CudaExecutor
from tcomp.runtime.values import values
from tcomp.schedule.lower import lower

TEXT = """
op f(dY: bf16[M, N], X: bf16[M, K]) -> dW: f32[N, K]:
  dW[n, k] = sum m: dY[m, n] * X[m, k]

schedule f on sm_90a:
  n -> grid.y(128) / warpgroup(64) / mma
  k -> grid.x(64) / mma
  m -> grid.z(128) / pipe(64, 2) / mma
  stage dY, X in shared at m by tma
  stage dW in shared at k by tma
  use wgmma for dW
  combine dW over m by turns
  producer warp
"""


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "launches"])
def test_every_run_of_a_program_finds_the_words_zero(virtual: Any, graph: bool, tmp_path: Path) -> None:
    module, dims, random = load_text(TEXT, "f.tc"), {"M": 364, "N": 136, "K": 72}, np.random.default_rng(6)
    step = single_op_step(lower(module.ops["f"], module, dims, H100), dims)
    assert step.team_bytes == 256, "what the plan counts"
    executor = CudaExecutor(step, H100, graph=graph, cache_dir=tmp_path)
    try:
        for _ in range(3):
            for name in ("X", "dY"):
                executor.write(name, random.standard_normal(step.slots[name].shape))
            executor.run("run")
            x, dy = (np.float64(values(executor.read(n), DType.BF16)) for n in ("X", "dY"))
            wanted = dy.T @ x
            np.testing.assert_allclose(executor.read("dW"), wanted, rtol=1e-5, atol=1e-4)
    finally:
        executor.close()
