"""`training`, which is 1 where a step trains and 0 in evaluation: one built step has both, on every device. And the
number of the batch, by which it drops elements."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.runtime.batches import Stream
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import evaluating, set_scalars
from tcomp.runtime.train import next_batch
from tcomp.runtime.verify import verify_step

PAGE = Path(__file__).parents[2] / "docs" / "language.md"
(EXAMPLE,) = re.findall(r"^```tc\n([^`]*\nmodel regular.*?)^```$", PAGE.read_text(), re.S | re.M)
SIZES = {"B": 2, "T": 17}
DIMS = {"C": 16, "H": 32, "V": 31, "rate": 0.5}

SCALED = """
op scale(X: f32[M], by: f32[]) -> Y: f32[M]:
  Y[m] = X[m] * by

op total(X: f32[M]) -> y: f32[]:
  y = sum m: X[m]

op move(inout p: f32[N], g: f32[N], by: f32[]):
  p[i] = p[i] + by * g[i]

model scaled(B):
  config one: by = 3.0
  param w: f32[7] = ones in all
  forward:
    x = scale(w, by - 2.0 * training)
    x = scale(x, by)
    loss = total(x)
  loss loss
  optimizer move:
    group all: by = 1.0
"""
"""The loss is 3 w in training and 9 w in evaluation. The update's constant is that of training, and no other."""


LOSSES = [3.0, 9.0 * 4, 3.0 * 4]
"""With w = 1, and behind the update w = 1 + 3."""


def losses(executor: Any) -> list[float]:
    """In training, in evaluation, and in training again behind an update."""
    set_scalars(executor, {})
    executor.write("w", 1.0)
    found = []
    executor.run_step("micro_first")
    found.append(executor.fetch("loss").value())
    with evaluating(executor):
        executor.run("forward")
        found.append(executor.fetch("loss").value())
    executor.run_step("micro_first")
    found.append(executor.fetch("loss").value())
    return [float(x) / 7 for x in found]


def test_a_step_has_both_values(objects: Path) -> None:
    """Also where an update is left to the next run, as CPUs leave it."""
    executor = CpuExecutor(
        build_step(load_text(SCALED), StepRequest("scaled", "one", {"B": 2}), detect(), 2), detect(), 2, objects
    )
    try:
        assert losses(executor) == LOSSES
    finally:
        executor.close()


def test_a_step_that_only_evaluates_has_that_value(objects: Path) -> None:
    module, request = load_text(SCALED), StepRequest("scaled", "one", {"B": 2}, programs=("forward",))
    step = build_step(module, request, detect(), 1)
    assert not step.evaluation and set(step.scalars.values()) == {3.0}, "one constant for both calls"
    executor = CpuExecutor(step, detect(), 1, objects)
    executor.write("w", 1.0)
    executor.run("forward")
    assert executor.read("loss") == 9.0 * 7
    executor.close()


class Zeros(Stream):
    """Batches that are all the same."""

    count = 1

    def _lay_out(self) -> None:
        pass

    def _put(self, number: int, inputs: Mapping[str, np.ndarray[Any, Any]], row: int) -> None:
        for array in inputs.values():
            array[row] = 0


def drops(executor: Any) -> bool:
    """Whether the documents' example has a loss by the batch's number, asked for as training does, without waiting."""
    readings = []
    for number in (8, 9, 8):
        next_batch(executor, Zeros(1), number)
        executor.run("micro_first")
        readings.append(executor.fetch("loss"))
    first, other, again = (float(r.value()) for r in readings)
    assert first == again
    return first != other


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_documents_example_against_the_oracle(objects: Path, accumulation: int) -> None:
    """Training, with what recomputes and what accumulates, and evaluation."""
    module = load_text(EXAMPLE.replace("batch_number)\n", "batch_number) [recompute]\n"))
    request = StepRequest("regular", "tiny", SIZES, dims=DIMS, accumulation=accumulation)
    step = build_step(module, request, detect(), 2)
    executor = CpuExecutor(step, detect(), 2, objects)
    try:
        initialise(executor, 1, 1)
        set_scalars(executor, {"peak_lr": 0.1, "warmup": 1.0, "eps": 1e-3})
        found = {c.what: c.error for c in verify_step(executor, module, DIMS)}
        assert {"loss", "loss in evaluation", "grad.in_w"} <= found.keys()
        assert max(found.values()) < 1e-4, found
        assert drops(executor)
        with evaluating(executor):
            assert not drops(executor)
    finally:
        executor.close()
