"""The training loop: batches to the device, programs run, results read back, checkpoints written.

What a step does depends only on the arena's parameters and optimizer state, the step number and the batch
stream's position. A checkpoint holds exactly these, so a resumed run goes on bitwise as an unbroken one.

A device may run behind: the next step is asked for before the last one's results are looked at, so it never waits
for Python. Nothing is evaluated or saved before every step's results have been looked at.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from numpy.typing import NDArray

import tcomp
from tcomp.errors import UserError
from tcomp.model.step import Slot, Step
from tcomp.runtime import checkpoint
from tcomp.runtime.batches import Batches
from tcomp.runtime.data import Data
from tcomp.runtime.executor import Executor, Reading, element_count
from tcomp.runtime.initialise import initialise
from tcomp.runtime.progress import Progress
from tcomp.runtime.run_folder import Metrics, RunFolder
from tcomp.runtime.safetensors_file import PIECE, Stored
from tcomp.runtime.scalars import set_scalars
from tcomp.runtime.values import numpy_type

_AHEAD = 1
"""Steps whose results may still be out while the next one is asked for."""


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
    executor: Executor, data: Data, run: RunFolder, settings: Settings, progress: Progress, resume: bool,
    weights: checkpoint.Checkpoint | None = None,
) -> Outcome:  # fmt: skip
    """Train up to `settings.steps` steps in all, from fresh parameters, those of `weights`, or the run's newest
    checkpoint."""
    step, batches = executor.step, data.training_batches(settings.seed)
    hyper = set_scalars(executor, settings.hyper)
    check_inputs(step)
    saved = None
    if resume and checkpoint.any_saved(run.path):
        saved = checkpoint.newest(run.path, progress.warn)
    elif resume:
        progress.warn(f"{run.path}: the run was stopped before its first checkpoint; it starts again from step 0")
    if saved is None:
        initialise(executor, settings.seed, settings.threads)
        if weights is not None:
            load_weights(executor, weights)
        done = 0
    else:
        done = restore(executor, data, saved, settings.seed, batches)
    metrics = Metrics(run.path, done)
    validation, loss, saved_at, looked = math.nan, math.nan, done if saved else -1, -math.inf

    def save() -> None:
        nonlocal saved_at
        found = {"loss": loss, "validation_loss": validation}
        known = {k: v for k, v in found.items() if not math.isnan(v)}
        manifest = checkpoint.Manifest(
            done, step.model, step.config, dict(step.dims), hyper, settings.seed, batches.state,
            data.fingerprint, known, tcomp.__version__, step.precision,
        )  # fmt: skip
        checkpoint.save(run.path, manifest, persistent(executor), settings.keep)
        run.begin()
        saved_at = done

    def look_at(asked: _Asked) -> None:
        """Take in the results of a step that was asked for."""
        nonlocal loss, looked
        loss = sum(float(r.value()) for r in asked.losses) / len(asked.losses)
        found = {name: float(r.value()) for name, r in asked.others.items()}
        lr, norm = found.get("lr", math.nan), found.get("norm", math.nan)
        _refuse_divergence(loss, "loss", asked.step)
        if "norm" in found:
            _refuse_divergence(norm, "gradient's norm", asked.step)
        now = time.perf_counter()
        seconds, looked = now - max(asked.began, looked), now
        run.begin()
        metrics.write(step=asked.step, loss=loss, lr=lr, norm=norm, seconds=round(seconds, 6))
        progress.step(asked.step, loss, lr, norm, seconds)

    behind: deque[_Asked] = deque()
    with _signals() as stopped, progress:
        progress.start(settings.steps, done, math.prod(step.slots["tokens"].shape) * settings.accumulation)
        try:
            while done < settings.steps and not stopped:
                behind.append(_ask(executor, batches, done, settings.accumulation))
                done += 1
                evaluate = settings.eval_every and done % settings.eval_every == 0 and done < settings.steps
                keep = settings.save_every and done % settings.save_every == 0 and done < settings.steps
                while behind and (len(behind) > _AHEAD or evaluate or keep or behind[0].ready):
                    look_at(behind.popleft())
                if evaluate:
                    validation = validation_loss(executor, data, settings.eval_batches)
                    _refuse_divergence(validation, "validation loss", done)
                    metrics.write(step=done, validation_loss=validation)
                    progress.validation(done, validation)
                if keep:
                    try:
                        save()
                    except UserError as e:  # training goes on: there may be room at the next save
                        progress.warn(e.message)
            while behind:
                look_at(behind.popleft())
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


@dataclass(frozen=True)
class _Asked:
    """A step that the device has been told to do: its number from 1, and its results as they come."""

    step: int
    began: float
    losses: list[Reading]
    others: dict[str, Reading]

    @property
    def ready(self) -> bool:
        return all(r.ready for r in (*self.losses, *self.others.values()))


def _ask(executor: Executor, batches: Batches, done: int, accumulation: int) -> _Asked:
    """Ask for the step after `done` steps: its micro-batches, its update, its results."""
    began = time.perf_counter()
    executor.write("step", done)
    losses = []
    for micro in range(accumulation):
        next_batch(executor, batches)
        run = executor.run_step if micro == accumulation - 1 else executor.run
        run("micro_next" if micro else "micro_first")
        losses.append(executor.fetch("loss"))
    others: dict[str, Reading] = {name: executor.fetch(name) for name in ("lr", "norm") if name in executor.step.slots}
    return _Asked(done + 1, began, losses, others)


def next_batch(executor: Executor, batches: Batches) -> None:
    """Make the stream's next batch the executor's inputs."""
    with executor.batch() as inputs:
        batches.fill(inputs["tokens"], inputs["targets"])


def _refuse_divergence(value: float, what: str, done: int) -> None:
    """UserError for a value that is not finite, before it is saved."""
    if not math.isfinite(value):
        raise UserError(
            f"the {what} is {value} at step {done}: training has diverged",
            "use a smaller --lr, or more warm-up steps (--hyper warmup=...)",
        )


def check_inputs(step: Step) -> None:
    """UserError when the model takes other inputs than tokens and targets."""
    if set(step.inputs) != {"tokens", "targets"}:
        raise UserError(
            f"the model {step.model} has the inputs {', '.join(sorted(step.inputs))}",
            "a model that `tcomp train` can train has two: tokens and targets",
        )


def persistent(executor: Executor, kinds: Collection[str] = ("parameter", "master", "state")) -> dict[str, Stored]:
    """What outlives a step, parameters, their master copies and optimizer state, by slot name."""
    return {name: _stored(executor, slot) for name, slot in executor.step.slots.items() if slot.kind in kinds}


def _stored(executor: Executor, slot: Slot) -> Stored:
    dtype, elements = numpy_type(slot.dtype), element_count(slot)
    at_a_time = PIECE // dtype.itemsize

    def pieces() -> Iterator[NDArray[Any]]:
        for start in range(0, elements, at_a_time):
            yield executor.read_part(slot.name, start, min(start + at_a_time, elements))

    return Stored(dtype, slot.shape, pieces)


def restore(executor: Executor, data: Data, saved: checkpoint.Checkpoint, seed: int, batches: Batches) -> int:
    """Load a checkpoint into the arena and the batch stream; the number of steps done."""
    step, manifest = executor.step, saved.manifest
    checkpoint.check_same_model(saved, step.model, step.config, step.dims, step.precision)
    if manifest.data_fingerprint != data.fingerprint:
        raise UserError(
            f"{saved.folder}: the run was trained on other data than {data.description}",
            "put the data back as it was, or start a new run",
        )
    if manifest.seed != seed:
        raise UserError(f"{saved.folder}: the run's seed is {manifest.seed}, not {seed}")
    saved.load(persistent(executor), executor.write)
    batches.state = manifest.data
    return manifest.step


def load_weights(executor: Executor, saved: checkpoint.Checkpoint) -> None:
    """The parameters of a checkpoint (its master copies where it has them), as parameters of this step and as their
    master copies, and the model's own states; UserError when it is of another model. Sizes, types and numbers that no
    shape depends on may differ.
    """
    wanted = persistent(executor, ("parameter",))
    saved.check(wanted, convert=True)
    held = saved.tensors()
    for init in executor.step.parameters:
        source = f"master.{init.slot}"
        source = source if source in held else init.slot
        values = saved.values(source)
        for slot in filter(None, (init.slot, init.master)):
            executor.write(slot, values)
    for name in executor.step.states:
        executor.write(name, saved.values(name) if name in held else 0.0)


def validation_loss(executor: Executor, data: Data, batch_count: int) -> float:
    """Mean loss over the same `batch_count` validation batches (fewer where there is less data)."""
    batches = data.validation_batches()
    count = max(1, min(batch_count, batches.count // executor.step.slots["tokens"].shape[0]))
    return sum(batch_losses(executor, batches, count)) / count


def batch_losses(executor: Executor, batches: Batches, count: int) -> Iterator[float]:
    """The losses of the next `count` batches, without training on them."""
    program = "forward" if "forward" in executor.step.programs else "micro_first"
    for _ in range(count):
        next_batch(executor, batches)
        executor.run(program)
        yield float(executor.fetch("loss").value())


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
