"""A model that is not GPT-2 and an optimizer that is not AdamW, all in the test's own text, against PyTorch.

It uses a parameter by layers and once more by a fixed slice, adds a tensor to itself, shares one bias, mixes
scheduled library ops with ops that have no schedule, takes two float inputs, gives a group a rate of its own, and has a
parameter of another type that is not trained.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.values import values

TEXT = """
import ops.linear
import ops.crossentropy

op add(A, B: f32[M, N]) -> Y: f32[M, N]:
  Y[m, n] = A[m, n] + B[m, n]

op relu(A: f32[M, N]) -> Y: f32[M, N]:
  Y[m, n] = max(A[m, n], 0.0)

op scale_rows(A: f32[M, N], w: f32[M]) -> Y: f32[M, N]:
  Y[m, n] = A[m, n] * w[m]

op scale_columns(A: f32[M, N], w: bf16[N]) -> Y: f32[M, N]:
  Y[m, n] = A[m, n] * w[n]

op constant(peak_lr: f32[]) -> lr: f32[]:
  lr = peak_lr

op momentum(inout p: f32[N], g: f32[N], inout m: f32[N], lr: f32[], beta: f32[]):
  m[i] = beta * m[i] + g[i]
  p[i] = p[i] - lr * m[i]

model line(B):
  config default: C = 9, L = 3, V = 7
  param e: f32[V, C] = normal(0.5) in a
  param w: f32[L, C, C] = normal(0.4) in a
  param b: f32[C] = zeros in c
  param f: bf16[C] = uniform(1.0) frozen
  input x: f32[B, C]
  input z: f32[B]
  input label: i32[B] below V

  forward:
    h = scale_rows(x, z)
    for l in L:
      t = linear(h, w[l], b)
      t = relu(t)
      u = add(t, h)
      h = add(u, t)
    q = linear(h, w[0], b)
    q = scale_columns(q, f)
    r = add(q, q)
    logits = matmul(r, e)
    losses, _ = crossentropy(logits, label, V = V)
    loss = mean(losses)

  loss loss

  optimizer momentum:
    hyper peak_lr = 0.05
    group a: beta = 0.9
    group c: beta = 0.5, lr = 0.02
    lr by constant
"""
BETA = {"e": 0.9, "w": 0.9, "b": 0.5}
RATE = {"e": 0.05, "w": 0.05, "b": 0.02}


def reference_loss(
    p: dict[str, torch.Tensor], f: np.ndarray, x: np.ndarray, z: np.ndarray, label: np.ndarray
) -> torch.Tensor:
    h = torch.tensor(x).double() * torch.tensor(z).double()[:, None]
    for layer in range(3):
        t = torch.relu(h @ p["w"][layer].T + p["b"])
        h = t + h + t
    q = (h @ p["w"][0].T + p["b"]) * torch.tensor(f)
    return torch.nn.functional.cross_entropy((q + q) @ p["e"].T, torch.tensor(label).long())


@pytest.mark.parametrize(("batch", "accumulation", "threads"), [(1, 1, 2), (6, 3, 2), (33, 2, 1)])
def test_training_matches_torch(batch: int, accumulation: int, threads: int) -> None:
    machine = detect()
    step = build_step(
        load_text(TEXT),
        StepRequest("line", "default", {"B": batch}, accumulation=accumulation),
        machine,
        threads=threads,
    )
    executor = CpuExecutor(step, machine, threads)
    random = np.random.default_rng(0)
    try:
        initialise(executor, 1, 1)
        frozen = values(executor.array("f"), DType.BF16).astype(np.float64)
        assert np.abs(frozen).min() > 0
        parameters: dict[str, torch.Tensor] = {}
        for name in BETA:
            array = executor.array(name)
            array[...] = random.standard_normal(array.shape) * 0.3
            parameters[name] = torch.tensor(array.astype(np.float64), requires_grad=True)
        momenta = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for _ in range(4):
            for micro in range(accumulation):
                x = random.standard_normal((batch, 9)).astype(np.float32)
                z = random.standard_normal(batch).astype(np.float32)
                label = random.integers(0, 7, batch, dtype=np.int32)
                for name, value in (("x", x), ("z", z), ("label", label)):
                    executor.array(name)[...] = value
                executor.run("micro_next" if micro else "micro_first")
                loss = reference_loss(parameters, frozen, x, z, label)
                (loss / accumulation).backward()
                assert float(executor.array("loss")) == pytest.approx(loss.item(), rel=1e-5)
            executor.run("update")
            with torch.no_grad():
                for name, p in parameters.items():
                    assert p.grad is not None
                    momenta[name] = BETA[name] * momenta[name] + p.grad
                    p -= RATE[name] * momenta[name]
                    p.grad = None
            for name, p in parameters.items():
                want = p.detach().numpy()
                assert np.linalg.norm(executor.array(name) - want) <= 1e-5 * np.linalg.norm(want), name
        np.testing.assert_array_equal(values(executor.array("f"), DType.BF16), frozen)
        assert {n for n in step.slots if n.endswith("f")} == {"f"}, "no gradient, no state"
    finally:
        executor.close()
