"""Optimizers' ops of vectors that are not elementwise see a tensor, whatever lies beside it in its group: blocks of
neighbours, its first element, its last, its length.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.cpu.executor import CpuExecutor

Array = NDArray[np.float64]
MODEL = """
import ops.linear
import ops.crossentropy

op constant(peak_lr: f32[]) -> lr: f32[]:
  lr = peak_lr

op descend(inout p: f32[N], g: f32[N], lr: f32[]) -> w: real[N]:
{equations}
  w[i] = p[i]

model line(B):
  config default: C = 7
  param a: f32[C, C] = normal(0.5) in all
  param c: f32[C] = zeros in all
  input x: f32[B, C]
  input label: i32[B] below C
  forward:
    y = linear(x, a, c)
    losses, _ = crossentropy(y, label, V = C)
    loss = mean(losses)
  loss loss
  optimizer descend:
    hyper peak_lr = 0.5
    group all
    lr by constant
"""


def blocks(g: Array) -> Array:
    return np.array([np.sqrt(sum(g[i // 4 * 4 : i // 4 * 4 + 4] ** 2)) for i in range(g.size)])


OPS: dict[str, Callable[[Array], Array]] = {
    "  n[j] = 0.0 * g[j]\n  n[i // 4] += g[i] * g[i]\n  p[i] = p[i] - lr * sqrt(n[i // 4])": blocks,
    "  p[i] = p[i] - lr * g[0]": lambda g: np.full(g.size, g[0]),
    "  p[i] = p[i] - lr * g[N - 1 - i]": lambda g: g[::-1],
    "  p[i] = p[i] - lr * select(i > 0, g[max(i - 1, 0)], 0.0)": lambda g: np.concatenate([[0.0], g[:-1]]),
    "  p[i] = p[i] - lr * g[i] / N": lambda g: g / g.size,
    "  p[i] = p[i] - lr * select(i % 2 == 0, g[i], 0.0)": lambda g: np.where(np.arange(g.size) % 2 == 0, g, 0.0),
}


@pytest.mark.parametrize("equations", OPS)
def test_an_op_of_vectors_sees_one_tensor(equations: str, objects: Path) -> None:
    module = load_text(MODEL.format(equations=equations))
    step = build_step(module, StepRequest("line", "default", {"B": 5}), detect(), 1)
    executor, random = CpuExecutor(step, detect(), 1, objects), np.random.default_rng(0)
    try:
        executor.write("x", random.standard_normal(step.slots["x"].shape).astype(np.float32))
        executor.write("label", random.integers(0, 7, 5).astype(np.int32))
        for n in "ac":
            executor.write(n, random.standard_normal(step.slots[n].shape).astype(np.float32))
        before = {n: executor.read(n).astype(np.float64) for n in "ac"}
        executor.run("micro_first")
        executor.run("update")
        for n in "ac":
            g = executor.read(f"grad.{n}").astype(np.float64)
            want = before[n] - 0.5 * OPS[equations](g.ravel()).reshape(g.shape)
            np.testing.assert_allclose(executor.read(n), want, rtol=1e-5, atol=1e-6)
    finally:
        executor.close()
