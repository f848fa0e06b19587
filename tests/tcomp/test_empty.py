"""Extents of 0: a sum over no value is what it begins with, and what has no element is not written."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.autotune import virtual_run
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import H100
from tcomp.model.single import single_op_step
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower
from tests.reference.op_cases import random_inputs

TEXT = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

op f(X: f32[M, K], W: f32[N, K], inout S: f32[M]) -> Y: f32[M, N], top: f32[M], P: f32[M], D: f32[M - 1]:
  index i: M - 1
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = acc[m, n] + 1.0
  S[m] += sum k: X[m, k]
  t[m] = max k: X[m, k]
  top[m] = min(max(t[m], -9.0), 9.0)
  l[m], a[m] = expsum k by X[m, k]: X[m, k]
  P[m] = a[m]
  D[i] = sum n: Y[i + 1, n] - Y[i, n]

schedule f on cpu:
  k -> seq(4)
  n -> vec
  stage W in packed at k

schedule f on gpu:
  m -> grid(4) / warp.y(1)
  n -> lane
  k -> pipe(8, 2)
  stage X, W in shared at k by cp.async
"""
SIZES = [{"M": 3, "N": 2, "K": 0}, {"M": 1, "N": 4, "K": 5}, {"M": 3, "N": 0, "K": 5}, {"M": 2, "N": 0, "K": 0}]


@pytest.mark.parametrize("dims", SIZES, ids=str)
@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_what_has_no_point(where: str, dims: dict[str, int]) -> None:
    module = load_text(TEXT)
    op = module.ops["f"]
    inputs = random_inputs(op, dims, seed=1)
    wanted = evaluate(op, module, inputs, dims)
    if where == "gpu":
        found = virtual_run.execute(op, lower(op, module, dims, H100), inputs, H100)
    else:
        executor = CpuExecutor(single_op_step(lower(op, module, dims, detect()), dims), detect(), 1)
        for name in inputs.keys() & executor.step.slots.keys():
            executor.write(name, inputs[name])
        executor.run("run")
        found = {n: np.array(executor.array(n)) for n in wanted}
        executor.close()
    for name, right in wanted.items():
        np.testing.assert_allclose(found[name], right, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dims", [{"M": 3, "N": 0}, {"M": 0, "N": 3}], ids=str)
def test_rows_without_a_value_are_not_fetched(dims: dict[str, int]) -> None:
    """A prefetch counts how many rows are far enough ahead."""
    text = "op f(X: f32[M, N]) -> Y: f32[M, N]:\n  Y[m, n] = X[m, n] + 1.0\n\n"
    module = load_text(text + "schedule f on cpu:\n  m -> core(1)\n  n -> vec\n  stage X in cache at m\n")
    (kernel,) = lower(module.ops["f"], module, dims, detect()).kernels
    assert kernel.buffer("Y").elements == 0
