"""Laws of whole training steps, of random models and requests (`reference/random_models.py`).

A step computes what the float64 oracle says of its graph, whose gradients are slopes of its loss; its memory is nobody
else's while it is live; and steps that overlap, resume, or have less memory give the same bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.model import draft
from tcomp.model.step import Step
from tcomp.runtime.cpu import whole_steps
from tcomp.runtime.cpu.executor import CpuExecutor
from tests.reference.random_steps import (
    Arrays,
    Case,
    faults_of_step,
    kept_of,
    replace_request,
    resumed,
    slope_faults,
    started,
    trained,
)
from tests.reference.step_laws import Poisoned, faults_of_plan, faults_of_waits
from tests.turns import in_turns

FEW, MORE = [25], [42, 14]
SOME = [pytest.mark.slow, in_turns(2)]


def seeds() -> list[object]:
    return [*FEW, *(pytest.param(s, marks=SOME) for s in MORE)]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(autouse=True)
def short_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_steps, "SHARE", 512)
    monkeypatch.setattr(whole_steps, "ARITHMETIC", 3)  # so small products are as much memory's as arithmetic's


@pytest.mark.parametrize("seed", seeds())
def test_a_step_is_what_the_equations_say(seed: int, objects: Path) -> None:
    case = Case(seed)
    step = case.build()
    assert not list(faults_of_plan(step)) and not list(faults_of_waits(step)), case.request
    executor = CpuExecutor(step, case.machine, case.request.threads, objects)
    try:
        started(case, executor)
        assert not list(faults_of_step(case, executor, 0)), case.request
    finally:
        executor.close()
    same_bits(case, step, objects)
    reads_nothing_dead(case, step, objects)


def same_bits(case: Case, step: Step, objects: Path) -> None:
    apart = trained(case, step, objects, whole=False)
    equal(trained(case, step, objects, whole=True), apart)
    equal(resumed(case, step, objects), apart)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "gradient_pieces", lambda *_: [])
        plain = replace_request(case, budget=1.0, cheap=False)
        equal(trained(plain, plain.build(), objects, whole=False), apart)


def reads_nothing_dead(case: Case, step: Step, objects: Path) -> None:
    poisoned = Poisoned(step, case.machine, case.request.threads, objects)
    try:
        started(case, poisoned.executor)
        poisoned.executor.write("step", 0)
        for name, value in case.batches[0].items():
            poisoned.executor.write(name, value)
        assert not list(poisoned.faults()), case.request
        if case.request.accumulation == 1:
            equal(kept_of(poisoned.executor), trained(case, step, objects, whole=False, steps=1))
    finally:
        poisoned.executor.close()


def equal(found: Arrays, wanted: Arrays) -> None:
    for name in found.keys() & wanted.keys():
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("seed", [3, *(pytest.param(s, marks=SOME) for s in range(40, 43))])
def test_gradients_of_a_model_are_slopes_of_its_loss(seed: int) -> None:
    assert not list(slope_faults(Case(seed)))
