"""The training loop on a small device: it learns, resumes bitwise, survives signals and full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.errors import UserError
from tcomp.model.step import ParameterInit
from tcomp.runtime import checkpoint
from tcomp.runtime.data import open_data
from tcomp.runtime.initialise import initialise
from tcomp.runtime.run_folder import RunFolder
from tcomp.runtime.train import Outcome, Settings, check_weights, train
from tcomp.runtime.values import stored


def run(executor: Any, text: Path, folder: Path, progress: Any, *, resume: bool = False, **settings: Any) -> Outcome:
    data = open_data([text], 8, 256)
    opened = RunFolder(folder, create=not resume)
    if not resume:
        opened.write_config({})
    try:
        return train(executor, data, opened, Settings(**settings), progress, resume)
    finally:
        opened.close()


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_records(tmp_path: Path, text: Path, bigram: Any, silent: Any) -> None:
    outcome = run(bigram(), text, tmp_path / "run", silent(), steps=60, save_every=25, eval_every=20)
    assert not outcome.interrupted and outcome.step == 60
    assert outcome.validation_loss < 4 < 5.4 < lines(tmp_path / "run")[0]["loss"]
    assert [m["step"] for m in lines(tmp_path / "run") if "validation_loss" in m] == [20, 40, 60]
    assert [m["step"] for m in lines(tmp_path / "run") if "loss" in m] == list(range(1, 61))
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-000050", "step-000060"]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumed_run_is_bitwise_the_same(
    tmp_path: Path, text: Path, bigram: Any, silent: Any, accumulation: int
) -> None:
    whole, first, second = (bigram(accumulation=accumulation) for _ in range(3))
    common = {"accumulation": accumulation, "save_every": 10, "hyper": {"total": 40.0}}
    run(whole, text, tmp_path / "a", silent(), steps=40, **common)
    run(first, text, tmp_path / "b", silent(), steps=17, **common)
    run(second, text, tmp_path / "b", silent(), steps=40, resume=True, **common)
    for name in ("table", "state.m.table"):
        assert (whole.array(name) == second.array(name)).all()

    def losses(folder: str) -> list[float]:
        return [m["loss"] for m in lines(tmp_path / folder) if "loss" in m]

    assert losses("a") == losses("b")


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_device_that_runs_behind_gives_the_same_run(
    tmp_path: Path, text: Path, bigram: Any, lagging: Any, silent: Any, accumulation: int
) -> None:
    common = {"accumulation": accumulation, "save_every": 10, "eval_every": 7, "hyper": {"total": 40.0}}
    run(bigram(accumulation=accumulation), text, tmp_path / "a", silent(), steps=30, **common)
    first, second = lagging(accumulation=accumulation), lagging(accumulation=accumulation)
    run(first, text, tmp_path / "b", silent(), steps=17, **common)
    run(second, text, tmp_path / "b", silent(), steps=30, resume=True, **common)
    assert second.longest > 2 * (3 * accumulation + 2), "a step was asked for only after the last one's results"

    def figures(folder: str) -> list[tuple[float, ...]]:
        return [(m["step"], m["loss"], m["lr"], m["norm"]) for m in lines(tmp_path / folder) if "loss" in m]

    assert figures("a") == figures("b")
    a, b = (newest(tmp_path / folder) for folder in ("a", "b"))
    assert (a / "tensors.safetensors").read_bytes() == (b / "tensors.safetensors").read_bytes()


def newest(folder: Path) -> Path:
    return checkpoint.newest(folder, pytest.fail).folder


def test_divergence_on_a_device_that_runs_behind_is_not_saved(
    tmp_path: Path, text: Path, lagging: Any, silent: Any
) -> None:
    executor = lagging()
    steps = 0

    def spoil(program: str) -> None:
        nonlocal steps
        steps += program == "update"
        if program == "update" and steps == 5:
            executor.array("grad.table")[...] = np.inf

    executor.on_run = spoil
    with pytest.raises(UserError, match="gradient's norm is inf at step 5"), np.errstate(all="ignore"):
        run(executor, text, tmp_path / "run", silent(), steps=20, save_every=2, keep=10)
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-000002", "step-000004"]


def test_accumulated_micro_batches_are_one_larger_batch(tmp_path: Path, text: Path, bigram: Any, silent: Any) -> None:
    large, small = bigram(batch=6), bigram(batch=2, accumulation=3)
    run(large, text, tmp_path / "a", silent(), steps=5)
    run(small, text, tmp_path / "b", silent(), steps=5, accumulation=3)
    np.testing.assert_allclose(large.array("table"), small.array("table"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(tmp_path: Path, text: Path, bigram: Any, silent: Any, number: signal.Signals) -> None:
    executor, updates = bigram(), 0

    def interrupt(program: str) -> None:
        nonlocal updates
        updates += program == "update"
        if updates == 7 and program == "update":
            os.kill(os.getpid(), number)

    executor.on_run = interrupt
    before = signal.getsignal(number)
    outcome = run(executor, text, tmp_path / "run", silent(), steps=50)
    assert outcome.interrupted and outcome.step == 7
    assert signal.getsignal(number) is before
    assert checkpoint.newest(tmp_path / "run", pytest.fail).manifest.step == 7


def test_a_second_interrupt_aborts_at_once(tmp_path: Path, text: Path, bigram: Any, silent: Any) -> None:
    executor = bigram()

    def interrupt(program: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    executor.on_run = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(executor, text, tmp_path / "run", silent(), steps=50)


def test_training_goes_on_when_a_save_fails_and_the_end_says_so(
    tmp_path: Path, text: Path, bigram: Any, silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_file", full)
    progress = silent()
    with pytest.raises(UserError, match="No space left on device"):
        run(bigram(), text, tmp_path / "run", progress, steps=30, save_every=10)
    assert len(progress.losses) == 30 and len(progress.warnings) == 2


def test_divergence_is_an_error(tmp_path: Path, text: Path, bigram: Any, silent: Any) -> None:
    with pytest.raises(UserError, match="training has diverged"), np.errstate(all="ignore"):
        run(bigram(), text, tmp_path / "run", silent(), steps=50, hyper={"peak_lr": math.inf})


@pytest.mark.parametrize("what", ["norm", "loss"])
def test_a_step_that_is_not_finite_is_not_saved(
    what: str, tmp_path: Path, text: Path, bigram: Any, silent: Any
) -> None:
    """The last update (its gradient's norm is infinite), or the validation after it."""
    executor = bigram()
    runs: list[str] = []

    def spoil(program: str) -> None:
        runs.append(program)
        if runs.count("update") == 3 and program == "update":
            executor.array("grad.table" if what == "norm" else "table")[...] = np.inf

    executor.on_run = spoil
    with pytest.raises(UserError, match="training has diverged") as e, np.errstate(all="ignore"):
        run(executor, text, tmp_path / "run", silent(), steps=3, save_every=2)
    assert {"norm": "gradient's norm is inf at step 3", "loss": "validation loss is nan at step 3"}[what] in str(
        e.value
    )
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_unknown_hyperparameter(tmp_path: Path, text: Path, bigram: Any, silent: Any) -> None:
    with pytest.raises(UserError, match="unknown hyperparameter 'speed'") as e:
        run(bigram(), text, tmp_path / "run", silent(), steps=5, hyper={"speed": 1.0})
    assert "peak_lr" in e.value.hint


def test_resuming_with_other_data_is_refused(tmp_path: Path, text: Path, bigram: Any, silent: Any) -> None:
    run(bigram(), text, tmp_path / "run", silent(), steps=3)
    text.write_text("other " * 1000)
    with pytest.raises(UserError, match="trained on other data"):
        run(bigram(), text, tmp_path / "run", silent(), steps=6, resume=True)


def test_a_run_folder_has_one_writer_and_is_not_overwritten(
    tmp_path: Path, text: Path, bigram: Any, silent: Any
) -> None:
    held = RunFolder(tmp_path / "run", create=True)
    with pytest.raises(UserError, match="another process"):
        RunFolder(tmp_path / "run", create=True)
    held.close()
    run(bigram(), text, tmp_path / "run", silent(), steps=3)
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder(tmp_path / "run", create=True)
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path / "elsewhere", create=False)


def test_fresh_parameters_do_not_depend_on_threads(bigram: Any) -> None:
    one, four, other = bigram(), bigram(), bigram()
    initialise(one, 1, 1)
    initialise(four, 1, 4)
    initialise(other, 2, 1)
    assert (one.array("table") == four.array("table")).all()
    assert (one.array("table") != other.array("table")).any()
    assert abs(float(one.array("table").std()) - 0.02) < 1e-3


@pytest.mark.parametrize("kind", ["normal", "uniform", "ones"])
def test_master_copies_begin_with_the_values_that_parameters_round(kind: str) -> None:
    held = {"w": np.empty((700, 500), np.uint16), "master.w": np.empty((700, 500), np.float32)}
    slots = {
        "w": SimpleNamespace(kind="parameter", dtype=DType.BF16),
        "master.w": SimpleNamespace(kind="master", dtype=DType.F32),
    }
    init = ParameterInit("w", kind, 0.02, "matrices", "master.w")
    step = SimpleNamespace(slots=slots, parameters=(init,))
    initialise(SimpleNamespace(step=step, fill=lambda name: nullcontext(held[name])), 3, 2)  # type: ignore[arg-type]
    assert (held["master.w"] == 1).all() or held["master.w"].std() > 0.01
    np.testing.assert_array_equal(held["w"], stored(held["master.w"], DType.BF16))


def test_what_is_kept_for_a_parameter_is_taken_where_that_is_frozen_now(
    tmp_path: Path, text: Path, bigram: Any, silent: Any
) -> None:
    executor = bigram()
    run(executor, text, tmp_path / "run", silent(), steps=2)
    saved = checkpoint.newest(tmp_path / "run", lambda _: None)
    assert check_weights(executor, saved) == {"table": "table"}
    for frozen in (False, True):
        (table,) = executor.step.parameters
        executor._step = replace(executor.step, parameters=(replace(table, frozen=frozen),))
        assert check_weights(executor, saved, (), "m") == {"table": "state.m.table"}
        with pytest.raises(UserError, match="no state 'n'"):
            check_weights(executor, saved, (), "n")
