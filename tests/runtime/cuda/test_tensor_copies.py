"""A model whose kernels copy tiles by tensor maps, through cuda-python and the virtual driver: maps encoded by
cuTensorMapEncodeTiled when the step is placed, kernels from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.load import load_text
from tcomp.machine.gpu import H100
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.cuda.executor import CudaExecutor

TEXT = """
op project(X: f32[M, K], W: f32[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

op squares(Y: f32[M, N]) -> s: f32[]:
  s = sum m, n: Y[m, n] * Y[m, n]

op constant(peak_lr: f32[]) -> lr: f32[]:
  lr = peak_lr

op descent(inout p: f32[N], g: f32[N], lr: f32[], rate: f32[]):
  p[i] = p[i] - lr * rate * g[i]

schedule project on sm_90a:
  m -> grid.y(32) / cluster(16) / warp.y(16) / lane.y(4)
  n -> grid.x(16) / lane.x / vec(2)
  k -> pipe(32, 2) / vec(4)
  stage X, W in shared at k by tma
  producer warp

model layers(B):
  config default: C = 36, L = 2
  param w: f32[L, C, C] = normal(0.2) in a
  input x: f32[B, C]

  forward:
    t = project(x, w[0])
    h = project(t, w[1])
    loss = squares(h)

  loss loss

  optimizer descent:
    hyper peak_lr = 0.001
    group a: rate = 1.0
    lr by constant
"""


@pytest.mark.parametrize("graph", [True, False])
def test_a_models_tensor_maps(virtual: Any, graph: bool, tmp_path: Path) -> None:
    module = load_text(TEXT, "layers.tc")
    step = build_step(module, StepRequest("layers", "default", {"B": 21}), H100)
    random = np.random.default_rng(3)
    x = random.standard_normal((21, 36)).astype(np.float32)
    w = random.standard_normal((2, 36, 36)).astype(np.float32) * 0.2
    for _ in range(2):  # the second time from the cache
        executor = CudaExecutor(step, H100, graph=graph, cache_dir=tmp_path)
        try:
            assert any(launch._maps for launch in executor.programs["micro_first"])
            executor.write("w", w)
            with executor.batch() as inputs:
                inputs["x"][...] = x
            executor.run("micro_first")
            loss = float(executor.fetch("loss").value())
        finally:
            executor.close()
        want = float(((x.astype(np.float64) @ w[0].T.astype(np.float64) @ w[1].T) ** 2).sum())
        assert abs(loss - want) <= 1e-5 * want
    assert not virtual.findings, str(virtual.findings[0])
