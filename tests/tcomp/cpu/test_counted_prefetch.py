"""Beside a sum that a condition cuts, all of what is read next is asked for, whatever the vectors' width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir

from tcomp.codegen.cpu import prefetch
from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import I8, IrValue
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import CpuMachine
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower

DIMS = {"H": 3, "T": 64, "E": 64}
CUT_SUM = """
op f(W: f32[H, T, T], X: f32[T, H, E]) -> Y: f32[H, T, E]:
  Y[h, q, e] = sum k where k <= q: W[h, q, k] * X[k, h, e]

schedule f on cpu:
  h -> core(1)
  q -> unroll(4)
  e -> unroll(2) / vec
  k -> seq
  stage X in packed at h by prefetch
"""
CUT_LOOPS = """
op f(Q: f32[T, H, E], X: f32[T, H, E]) -> Y: f32[H, T, T]:
  s[h, q, k] = sum e: Q[q, h, e] * X[k, h, e]
  Y[h, q, k] = select(k <= q, s[h, q, k], 0.0)

schedule f on cpu:
  h -> core(1)
  q -> unroll(2)
  k -> unroll(lanes // 2)
  e -> vec
  stage X in packed at h by prefetch
"""


@pytest.mark.parametrize("text", [CUT_SUM, CUT_LOOPS], ids=["a sum", "loops around one along vectors"])
def test_every_line_of_what_is_packed_next_is_asked_for(
    text: str, machine: CpuMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request leaves a mark where it points."""

    def mark(em: Emitter, pointer: IrValue, written: bool) -> None:
        em.here().store(ir.Constant(I8, 1), pointer)

    monkeypatch.setattr(prefetch, "touch", mark)
    module = load_text(text, "f.tc")
    lowered = lower(module.ops["f"], module, DIMS, machine)
    executor = CpuExecutor(single_op_step(lowered, DIMS), machine, 1, tmp_path)
    try:
        for name in executor.step.slots:
            executor.array(name)[...] = 0.0
        executor.run("run")
        asked = executor.array("X").view(np.uint8).reshape(DIMS["T"], DIMS["H"], -1, 64).max(-1)
    finally:
        executor.close()
    assert asked[:, 1:].all()
