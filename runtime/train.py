"""The training loop: batches into the arena, programs run, results read back, checkpoints written.

What a step does depends only on the arena's parameters and optimizer state, the step number and the batch
stream's position. A checkpoint holds exactly these, so a resumed run goes on bitwise as an unbroken one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tcomp
from tcomp.errors import UserError
from tcomp.model.step import Step
from tcomp.runtime import checkpoint
from tcomp.runtime.batches import Batches
from tcomp.runtime.data import Data
from tcomp.runtime.executor import Executor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.progress import Progress
from tcomp.runtime.run_folder import Metrics, RunFolder

_HYPER = "hyper."


@dataclass(frozen=True)
class Settings:
    """`hyper` overrides the model's own values. Zero for `eval_every` or `save_every`: only at the end."""

    steps: int
    accumulation: int = 1
    seed: int = 1
    hyper: dict[str, float] = field(default_factory=dict)
    eval_every: int = 100
    eval_batches: int = 20
    save_every: int = 100
    keep: int = 2
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """`interrupted`: the run was stopped by a signal, and its state was saved."""

    step: int
    loss: float
    validation_loss: float
    interrupted: bool


def train(
    executor: Executor, data: Data, run: RunFolder, settings: Settings, progress: Progress, resume: bool
) -> Outcome:
    """Train up to `settings.steps` steps in all, from fresh parameters or the run's newest checkpoint."""
    step, batches = executor.step, data.training_batches(settings.seed)
    hyper = set_scalars(executor, settings.hyper)
    tokens, targets = input_arrays(executor)
    saved = None
    if resume and checkpoint.any_saved(run.path):
        saved = checkpoint.newest(run.path, progress.warn)
    elif resume:
        progress.warn(f"{run.path}: the run was stopped before its first checkpoint; it starts again from step 0")
    if saved is None:
        initialise(executor, settings.seed, settings.threads)
        done = 0
    else:
        done = restore(executor, data, saved, settings.seed, batches)
    metrics = Metrics(run.path, done)
    validation, loss, saved_at = math.nan, math.nan, done if saved else -1

    def save() -> None:
        nonlocal saved_at
        found = {"loss": loss, "validation_loss": validation}
        known = {k: v for k, v in found.items() if not math.isnan(v)}
        manifest = checkpoint.Manifest(
            done, step.model, step.config, dict(step.dims), hyper, settings.seed, batches.state,
            data.fingerprint, known, tcomp.__version__,
        )  # fmt: skip
        checkpoint.save(run.path, manifest, persistent_arrays(executor), settings.keep)
        saved_at = done

    with _signals() as stopped, progress:
        progress.start(settings.steps, done, tokens.size * settings.accumulation)
        try:
            while done < settings.steps and not stopped:
                began = time.perf_counter()
                executor.array("step")[...] = done
                losses = []
                for micro in range(settings.accumulation):
                    batches.fill(tokens, targets)
                    executor.run("micro_next" if micro else "micro_first")
                    losses.append(float(executor.array("loss")))
                executor.run("update")
                done += 1
                loss = sum(losses) / len(losses)
                lr, norm = scalar(executor, "lr"), scalar(executor, "norm")
                _refuse_divergence(loss, "loss", done)
                if "norm" in step.slots:
                    _refuse_divergence(norm, "gradient's norm", done)
                seconds = time.perf_counter() - began
                metrics.write(step=done, loss=loss, lr=lr, norm=norm, seconds=round(seconds, 6))
                progress.step(done, loss, lr, norm, seconds)
                if settings.eval_every and done % settings.eval_every == 0 and done < settings.steps:
                    validation = validation_loss(executor, data, settings.eval_batches)
                    _refuse_divergence(validation, "validation loss", done)
                    metrics.write(step=done, validation_loss=validation)
                    progress.validation(done, validation)
                if settings.save_every and done % settings.save_every == 0 and done < settings.steps:
                    try:
                        save()
                    except UserError as e:  # training goes on: there may be room at the next save
                        progress.warn(e.message)
            interrupted = bool(stopped) and done < settings.steps
            if not interrupted:
                validation = validation_loss(executor, data, settings.eval_batches)
                _refuse_divergence(validation, "validation loss", done)
                metrics.write(step=done, validation_loss=validation)
            if saved_at != done:
                save()
        finally:
            metrics.close()
    return Outcome(done, loss, validation, interrupted)


def _refuse_divergence(value: float, what: str, done: int) -> None:
    """UserError for a value that is not finite, before it is saved."""
    if not math.isfinite(value):
        raise UserError(
            f"the {what} is {value} at step {done}: training has diverged",
            "use a smaller --lr, or more warm-up steps (--hyper warmup=...)",
        )


def set_scalars(executor: Executor, overrides: dict[str, float]) -> dict[str, float]:
    """Write the step's scalars, some hyperparameters overridden by name; the hyperparameters' values."""
    step = executor.step
    hyper = {slot.removeprefix(_HYPER): value for slot, value in step.hyper.items()}
    for name, value in overrides.items():
        if name not in hyper:
            raise UserError(f"unknown hyperparameter {name!r}", f"this model has: {', '.join(sorted(hyper))}")
        hyper[name] = value
    for slot, value in {**step.scalars, **{_HYPER + name: value for name, value in hyper.items()}}.items():
        executor.array(slot)[...] = value
    return hyper


def input_arrays(executor: Executor) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The token and target arrays, [B, T]; UserError when the model takes other inputs."""
    check_inputs(executor.step)
    return executor.array("tokens"), executor.array("targets")


def check_inputs(step: Step) -> None:
    if set(step.inputs) != {"tokens", "targets"}:
        raise UserError(
            f"the model {step.model} has the inputs {', '.join(sorted(step.inputs))}",
            "a model that `tcomp train` can train has two: tokens and targets",
        )


def persistent_arrays(executor: Executor) -> dict[str, NDArray[Any]]:
    """What outlives a step: parameters and optimizer state, by slot name."""
    slots = executor.step.slots
    return {n: executor.array(n) for n, s in slots.items() if s.kind in ("parameter", "state")}


def restore(executor: Executor, data: Data, saved: checkpoint.Checkpoint, seed: int, batches: Batches) -> int:
    """Load a checkpoint into the arena and the batch stream; the number of steps done."""
    step, manifest = executor.step, saved.manifest
    checkpoint.check_same_model(saved, step.model, step.config, step.dims)
    if manifest.data_fingerprint != data.fingerprint:
        raise UserError(
            f"{saved.folder}: the run was trained on other data than {data.description}",
            "put the data back as it was, or start a new run",
        )
    if manifest.seed != seed:
        raise UserError(f"{saved.folder}: the run's seed is {manifest.seed}, not {seed}")
    saved.load_into(persistent_arrays(executor))
    batches.state = manifest.data
    return manifest.step


def validation_loss(executor: Executor, data: Data, batch_count: int) -> float:
    """Mean loss over the same `batch_count` validation batches (fewer where there is less data)."""
    tokens, targets = input_arrays(executor)
    batches = data.validation_batches()
    program = "forward" if "forward" in executor.step.programs else "micro_first"
    rows: int = tokens.shape[0]
    count = max(1, min(batch_count, batches.count // rows))
    total = 0.0
    for _ in range(count):
        batches.fill(tokens, targets)
        executor.run(program)
        total += float(executor.array("loss"))
    return total / count


def scalar(executor: Executor, name: str) -> float:
    return float(executor.array(name)) if name in executor.step.slots else math.nan


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) is noted in the list, for the loop to see; a second one aborts."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    old = [(s, signal.signal(s, note)) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield noted
    finally:
        for number, handler in old:
            signal.signal(number, handler)
