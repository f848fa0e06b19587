"""Law: a step of a random model on the virtual GPU is what the float64 oracle says of its graph; no check finds fault.

Cases are those of `tests/test_random_models.py`, which holds the CPU to it: their precision, micro-batches and memory.
"""

from __future__ import annotations

from typing import Any

import pytest

from tcomp.cli import common
from tcomp.machine.gpu import machine_named
from tests.reference.random_steps import Case, faults_of_step, started
from tests.reference.step_laws import faults_of_plan


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_step_on_a_gpu_is_what_the_equations_say(seed: int, virtual: Any) -> None:
    case = Case(seed)
    step = case.build(machine_named("h100"))
    assert not list(faults_of_plan(step)), case.request
    executor = common.device_for("virtual").open(step)
    try:
        started(case, executor)
        assert not list(faults_of_step(case, executor, 0)), case.request
    finally:
        executor.close()
    assert not virtual.findings, str(virtual.findings[0])
