"""Activations in the memory of gradients that are not there yet: less memory, the same bits, nobody waits longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp import models
from tcomp.dsl.ast import Module
from tcomp.dsl.load import load
from tcomp.machine.cpu import detect
from tcomp.model import draft
from tcomp.model.build import build_step
from tcomp.model.report import TEMPORARY, live_bytes, plan_text
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.runtime.cpu import whole_steps
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.cpu.whole_steps import WholeSteps
from tcomp.runtime.initialise import initialise

SIZES = {
    "gpt2": {"L": 4, "H": 2, "C": 66, "V": 97, "S": 32},  # parts of tensors and places between them off the alignment
    "llama": {"L": 6, "H": 4, "G": 2, "D": 16, "C": 64, "F": 96, "V": 97, "S": 32},
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def module(model: str) -> Module:
    return load(Path(models.__file__).parent / f"{model}.tc")


def built(module: Module, model: str, **more: Any) -> Step:
    return build_step(
        module, StepRequest(model, "tiny", {"B": 2, "T": 24}, dims=SIZES[model], **more), detect(), threads=2
    )


@pytest.fixture(scope="module", params=["f32", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)  # in bf16 the parts of the flat vectors are padded beyond the alignment of gradients


@pytest.fixture(scope="module")
def step(module: Module, model: str, precision: str) -> Step:
    return built(module, model, precision=precision)


@pytest.fixture(scope="module")
def apart(module: Module, model: str, precision: str) -> Step:
    """The step with activations beside all gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "gradient_pieces", lambda *_: [])
        return built(module, model, precision=precision)


def test_a_step_takes_less_memory(step: Step, apart: Step) -> None:
    persistent = sum(s.bytes for s in step.slots.values() if s.kind not in TEMPORARY)
    assert step.arena_bytes - persistent < 0.7 * (apart.arena_bytes - persistent)
    assert step.lower_bound_bytes == live_bytes(step).max() <= step.arena_bytes <= 1.02 * step.lower_bound_bytes
    assert "activations in the place of gradients to come" in plan_text(step)


def test_launches_are_the_same(step: Step, apart: Step) -> None:
    for name, launches in step.programs.items():
        assert [x.kernel for x in launches] == [x.kernel for x in apart.programs[name]]


def test_micro_batches_that_add_to_gradients_leave_their_memory_alone(module: Module, model: str) -> None:
    step = built(module, model, accumulation=2)
    assert not step.gradients
    end = max(s.offset + s.bytes for s in step.slots.values() if s.kind not in TEMPORARY)
    assert min(s.offset for s in step.slots.values() if s.kind in TEMPORARY) >= end


def test_gradients_are_there_from_their_first_launch_to_the_end(step: Step) -> None:
    launches = step.programs["micro_first"]
    covered: dict[str, int] = {}
    for part in {(s.name, s.offset): s for s in step.gradients}.values():  # of two times that it is there, the later
        covered[part.name] = covered.get(part.name, 0) + part.bytes
        for i, launch in enumerate(launches[part.first :], part.first):
            kernel = step.kernels[launch.kernel]
            for operand, at in zip(kernel.operands, launch.offsets, strict=True):
                if at < part.offset + part.bytes and part.offset < at + operand.bytes:
                    slot = step.slots[part.name]
                    assert slot.offset <= at < slot.offset + slot.bytes, (i, launch.label, operand.name)
                    assert i > part.first or operand.name in kernel.writes
    assert covered == {n: s.bytes for n, s in step.slots.items() if s.kind == "gradient"}


def test_what_an_update_leaves_is_wanted_as_early_as_without(
    step: Step, apart: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of the update read gradients beside the next forward pass: nothing is written there before a launch that
    waits for the same share anyway."""
    monkeypatch.setattr(whole_steps, "SHARE", 512)
    monkeypatch.setattr(whole_steps, "ARITHMETIC", 3)
    ours, theirs = (WholeSteps(s, -(1 << 20)).program("micro_first", pending=True, update=True) for s in (step, apart))
    assert len(ours.side) > 20 and ours.wanted == theirs.wanted and ours.fork == theirs.fork


def test_nobody_waits_for_a_table_of_which_only_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding's of its own: what an update leaves of it has time until the end of the step."""
    monkeypatch.setitem(SIZES, "llama", SIZES["llama"] | {"TIED": 0})
    monkeypatch.setattr(whole_steps, "SHARE", 512)
    monkeypatch.setattr(whole_steps, "ARITHMETIC", 3)
    module = load(Path(models.__file__).parent / "llama.tc")
    ours = built(module, "llama")
    monkeypatch.setattr(draft, "gradient_pieces", lambda *_: [])
    theirs = built(module, "llama")
    here, there = (WholeSteps(s, -(1 << 20)).program("micro_first", pending=True, update=True) for s in (ours, theirs))
    assert here.wanted == there.wanted and here.fork == there.fork
    assert [(p.first, p.last) for p in ours.gradients if p.name == "grad.wte"] == [(0, ours.gradients[0].last)]
    assert max(p.first for p in ours.gradients if p.name == "grad.head_w") > here.turns[here.fork]


def results(step: Step, cache: Path, whole: bool) -> dict[str, Any]:
    """Of three steps that begin with gradients that are no numbers."""
    executor = CpuExecutor(step, detect(), 2, cache)
    try:
        initialise(executor, 1, 1)
        for name, slot in step.slots.items():
            if slot.kind == "gradient":
                executor.write(name, np.nan)
        random = np.random.default_rng(5)
        found: dict[str, Any] = {}
        for number in range(3):
            executor.write("step", number)
            with executor.batch() as inputs:
                for array in inputs.values():
                    array[...] = random.integers(0, 97, array.shape)
            if whole:
                executor.run_step("micro_first")
            else:
                executor.run("micro_first")
                executor.run("update")
            found[f"loss {number}"] = float(executor.read("loss"))
            if number == 1:
                executor.run("forward")  # an evaluation, which writes over gradients
        kept = [n for n, s in step.slots.items() if s.kind in ("parameter", "gradient", "state")]
        return found | {n: executor.read(n).copy() for n in kept}
    finally:
        executor.close()


def test_the_bits_are_the_same(step: Step, apart: Step, objects: Path) -> None:
    expected = results(apart, objects, whole=False)
    assert all(np.isfinite(value).all() for value in expected.values())
    for whole in (False, True):
        for name, value in results(step, objects, whole).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
