"""The lockfiles beside the models hold for the ops and schedules as they are (`make locks` tunes them again)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune.apply import check
from tcomp.autotune.instances import instances_of, parse_step
from tcomp.autotune.lockfile import read_lock
from tcomp.dsl.load import load
from tcomp.machine.gpu import machine_named

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["h100", "a100", "rtx4090"])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_shipped_lockfile_holds(model: str, machine: str) -> None:
    lock = read_lock(MODELS / f"{model}.{machine}.lock")
    assert (lock.model, lock.machine) == (model, machine) and lock.steps and lock.entries
    assert all(e.basis == "predicted" for e in lock.entries.values()), "nothing was measured on these"
    module = load(MODELS / f"{model}.tc")
    for step in lock.steps:
        instances = instances_of(module, parse_step(step, model), machine_named(machine))
        assert check(lock, module, instances, machine_named(machine), 1)[0] == [], "run `make locks`"
