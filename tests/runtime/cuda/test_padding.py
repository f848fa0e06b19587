"""Memory that the norm and the update read, but no launch writes: the executor clears it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tcomp.dsl.load import load_text
from tcomp.machine.gpu import machine_named
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.model.step import FLAT
from tcomp.runtime.cuda.executor import CudaExecutor

TEXT = """
op scaled(x: f32[B, C], w: real[C]) -> y: f32[B, C]:
  y[b, c] = x[b, c] * w[c]

op mean(y: f32[B, C]) -> loss: f32[]:
  total = sum b, c: y[b, c]
  loss = total / (B * C)

op constant(peak_lr: f32[]) -> lr: f32[]:
  lr = peak_lr

op momentum(inout p: f32[N], g: f32[N], inout m: f32[N], lr: f32[], beta: f32[]):
  m[i] = beta * m[i] + g[i]
  p[i] = p[i] - lr * m[i]

model small(B):
  config default: C = 5
  param w: real[C] = normal(0.5) in a
  param v: real[3, C] = ones in a  # of which only one part is read
  input x: f32[B, C]

  forward:
    y = scaled(x, w)
    z = scaled(y, v[0])
    loss = mean(z)

  loss loss

  optimizer momentum:
    hyper peak_lr = 0.5
    group a: beta = 0.9
    lr by constant
"""


def test_what_lies_behind_tensors_and_gradients_of_what_is_not_read_are_cleared(virtual: Any, tmp_path: Path) -> None:
    machine = machine_named("h100")
    step = build_step(load_text(TEXT), StepRequest("small", "default", {"B": 3}), machine)
    kept = [s for s in step.slots.values() if s.kind in FLAT]
    zeros, unread = list(step.zeros()), step.slots["grad.v"].offset + 20
    assert {at for at, _ in zeros} == {s.offset + s.bytes for s in kept} | {unread}
    assert [z for z in zeros for s in kept if s.offset < sum(z) and z[0] < s.offset + s.bytes] == [(unread, 40)]
    executor = CudaExecutor(step, machine, 0, cache_dir=tmp_path)
    try:
        for s in kept:
            if s.kind != "gradient":
                executor.write(s.name, np.full(s.shape, 2.0))
        with executor.batch() as inputs:
            inputs["x"][...] = 1.0
        executor.run("micro_first")
        executor.run("update")
        w, v = executor.read("w"), executor.read("v")
    finally:
        executor.close()
    np.testing.assert_allclose(w, 2.0 - 0.5 * (0.9 * 2.0 + 2.0 / 5), rtol=1e-6)
    np.testing.assert_allclose(v[1:], 2.0 - 0.5 * 0.9 * 2.0, rtol=1e-6)
    assert not virtual.findings
