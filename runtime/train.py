"""The training loop: batches to the device, programs run, results read back, checkpoints written.

What a step does depends only on the arena's parameters and optimizer state, the step number and the batch
stream's position. A checkpoint holds exactly these, so a resumed run goes on bitwise as an unbroken one.

A device may run behind: the next step is asked for before the last one's results are looked at, so it never waits
for Python. Nothing is evaluated or saved before every step's results have been looked at.

Where several processes train together, rank r's micro-batch number i is the i * ranks + r-th of the step: all have
read what one process with so many micro-batches would. Each says its losses, and whether it is to stop, once a step.
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
from tcomp.dsl.check_numbers import BATCH_NUMBER
from tcomp.errors import UserError
from tcomp.model.step import Slot, Step
from tcomp.runtime import checkpoint
from tcomp.runtime.batches import Stream
from tcomp.runtime.data import Data
from tcomp.runtime.executor import Executor, Reading, element_count
from tcomp.runtime.initialise import initialise
from tcomp.runtime.peers import ALONE, LeadFailed, PeerFailed, Peers
from tcomp.runtime.progress import Progress
from tcomp.runtime.run_folder import FollowedMetrics, Metrics, RunFolder
from tcomp.runtime.safetensors_file import KIND_OF, PIECE, Stored
from tcomp.runtime.scalars import evaluating, set_scalars


@dataclass(frozen=True)
class Settings:
    """`hyper` overrides the model's own values. Zero for `eval_every` or `save_every`: only at the end. `weights` names
    what is taken of the run that this one starts from, in its parameters' place."""

    steps: int
    accumulation: int = 1
    seed: int = 1
    hyper: dict[str, float] = field(default_factory=dict)
    eval_every: int = 100
    eval_batches: int = 20
    save_every: int = 100
    keep: int = 2
    threads: int = 1
    weights: str = ""


@dataclass(frozen=True)
class Outcome:
    """`interrupted`: the run was stopped by a signal, and its state was saved."""

    step: int
    loss: float
    validation_loss: float
    interrupted: bool


def train(
    executor: Executor, data: Data, run: RunFolder, settings: Settings, progress: Progress, resume: bool,
    weights: checkpoint.Checkpoint | None = None, peers: Peers = ALONE,
) -> Outcome:  # fmt: skip
    """Train up to `settings.steps` steps in all, from fresh parameters, those of `weights`, or the run's newest
    checkpoint; with `peers`, who all do the same."""
    batches = data.training_batches(settings.seed)
    hyper = set_scalars(executor, settings.hyper)
    check_trainable(executor.step)
    saved = _newest(run, progress) if resume else None
    if saved is not None:
        done = restore(executor, data, saved, settings.seed, batches)
    else:
        initialise(executor, settings.seed, settings.threads)
        if weights is not None:
            load_weights(executor, weights, added(executor.step, weights), settings.weights)
        done = 0
    peers.check_alike()
    saved_at = done if saved else -1
    return _Training(executor, data, batches, run, settings, progress, hyper, done, saved_at, peers).train()


def _newest(run: RunFolder, progress: Progress) -> checkpoint.Checkpoint | None:
    """The checkpoint with which a run goes on; None, with a warning, where it has none."""
    if checkpoint.any_saved(run.path):
        return checkpoint.newest(run.path, progress.warn)
    progress.warn(f"{run.path}: the run was stopped before its first checkpoint; it starts again from step 0")
    return None


@dataclass
class _Training:
    """A run from its first step, or the one that it goes on with, to its end. `done` counts the steps that were asked
    for, `saved_at` is the step of the newest checkpoint (-1: none)."""

    executor: Executor
    data: Data
    batches: Stream
    run: RunFolder
    settings: Settings
    progress: Progress
    hyper: dict[str, float]
    done: int
    saved_at: int
    peers: Peers
    loss: float = math.nan
    validation: float = math.nan
    looked: float = -math.inf
    """when the last results were taken in"""
    behind: deque[_Asked] = field(default_factory=deque)
    """steps whose results are still out, oldest first"""
    metrics: Metrics = field(init=False)
    stopped: list[int] = field(default_factory=list)
    """signals that this process was sent"""
    stop: bool = False
    """some process was told to stop"""

    def train(self) -> Outcome:
        """All steps; ends early at a signal. Either way the last one is saved."""
        self.metrics = FollowedMetrics() if self.peers.rank else Metrics(self.run.path, self.done)
        rows = rows_of(self.executor.step) * self.settings.accumulation * self.peers.size
        with _signals() as self.stopped, self.progress:
            self.progress.start(self.settings.steps, self.done, rows * self.data.each, self.data.unit)
            try:
                while self.done < self.settings.steps and not self.told_to_stop():
                    self.step()
                self.take_in(0)
                interrupted = self.told_to_stop() and self.done < self.settings.steps
                if not interrupted:
                    self.validate()
                if self.saved_at != self.done:
                    self.peers.check_alike()
                    self.save()
            finally:
                self.metrics.close()
        return Outcome(self.done, self.loss, self.validation, interrupted)

    def told_to_stop(self) -> bool:
        """Whether the run is to end before its time: as all have agreed, or this process alone was told."""
        return self.stop if self.peers.size > 1 else bool(self.stopped)

    def step(self) -> None:
        """Ask for a step, take in the results of those before it, and do what is due behind it."""
        self.behind.append(_ask(self.executor, self.batches, self.done, self.settings.accumulation, self.peers))
        self.done += 1
        evaluate, keep = self.due(self.settings.eval_every), self.due(self.settings.save_every)
        self.take_in(0 if evaluate or keep else self.peers.ahead)
        if evaluate:
            self.validate()
            self.progress.validation(self.done, self.validation)
        if keep:
            self.peers.check_alike()
            try:
                self.save()
            except UserError as e:  # training goes on: there may be room at the next save
                if isinstance(e, PeerFailed) and not isinstance(e, LeadFailed):
                    raise
                self.progress.warn(e.message)

    def due(self, every: int) -> bool:
        """Is it time for what is done every so many steps (0: never), and once more at the end?"""
        return every > 0 and self.done % every == 0 and self.done < self.settings.steps

    def take_in(self, most: int) -> None:
        """Take in the results that are there, and wait for more until those of at most so many steps are out. (With
        others those that are there wait, too: all look at the same step together.)"""
        while self.behind and (len(self.behind) > most or (self.peers.size == 1 and self.behind[0].ready)):
            self.look_at(self.behind.popleft())

    def look_at(self, asked: _Asked) -> None:
        """Take in the results of a step that was asked for."""
        loss = sum(float(r.value()) for r in asked.losses) / len(asked.losses)
        self.loss, self.stop = self.peers.agree(loss, bool(self.stopped))
        found = {name: float(r.value()) for name, r in asked.others.items()}
        lr, norm = found.get("lr", math.nan), found.get("norm", math.nan)
        self.refuse_divergence(self.loss, "loss", asked.step)
        if "norm" in found:
            self.refuse_divergence(norm, "gradient's norm", asked.step)
        now = time.perf_counter()
        seconds, self.looked = now - max(asked.began, self.looked), now
        self.run.begin()
        self.metrics.write(step=asked.step, loss=self.loss, lr=lr, norm=norm, seconds=round(seconds, 6))
        self.progress.step(asked.step, self.loss, lr, norm, seconds)

    def validate(self) -> None:
        """The loss on data that is held back. UserError where it is not finite."""
        self.validation = validation_loss(self.executor, self.data, self.settings.eval_batches, self.peers)
        self.refuse_divergence(self.validation, "validation loss", self.done)
        self.metrics.write(step=self.done, validation_loss=self.validation)

    def refuse_divergence(self, value: float, what: str, done: int) -> None:
        """UserError for a value that is not finite, before it is saved."""
        if not math.isfinite(value):
            data = "" if self.data.unit == "tokens" else ", or data of finite numbers, if some are not"
            raise UserError(
                f"the {what} is {value} at step {done}: training has diverged",
                f"use a smaller --lr, or more warm-up steps (--hyper warmup=...){data}",
            )

    def save(self) -> None:
        """Write a checkpoint of all steps so far, whose results have been taken in."""
        self.peers.lead(self.write)
        self.run.begin()
        self.saved_at = self.done

    def write(self) -> None:
        """Write the checkpoint's files."""
        step, found = self.executor.step, {"loss": self.loss, "validation_loss": self.validation}
        known = {k: v for k, v in found.items() if not math.isnan(v)}
        manifest = checkpoint.Manifest(
            self.done, step.model, step.config, dict(step.dims), self.hyper, self.settings.seed, self.batches.state,
            self.data.fingerprint, known, tcomp.__version__, step.precision,
        )  # fmt: skip
        checkpoint.save(self.run.path, manifest, persistent(self.executor), self.settings.keep)


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


def _ask(executor: Executor, batches: Stream, done: int, accumulation: int, peers: Peers) -> _Asked:
    """Ask for the step after `done` steps: this process's micro-batches of it, its update, its results."""
    began = time.perf_counter()
    executor.write("step", done)
    losses = []
    rows = rows_of(executor.step)
    for micro in range(accumulation):
        batches.skip(rows * peers.rank)
        next_batch(executor, batches, (done * accumulation + micro) * peers.size + peers.rank)
        batches.skip(rows * (peers.size - 1 - peers.rank))
        run = executor.run_step if micro == accumulation - 1 else executor.run
        run("micro_next" if micro else "micro_first")
        losses.append(executor.fetch("loss"))
    others: dict[str, Reading] = {name: executor.fetch(name) for name in ("lr", "norm") if name in executor.step.slots}
    return _Asked(done + 1, began, losses, others)


def rows_of(step: Step) -> int:
    """How many examples a batch has."""
    return step.slots[next(iter(step.inputs))].shape[0]


def next_batch(executor: Executor, batches: Stream, number: int) -> None:
    """Make the stream's next batch the executor's inputs, and its number what the model reads as that."""
    with executor.batch() as inputs:
        batches.fill(inputs)
    if BATCH_NUMBER in executor.step.slots:
        executor.write(BATCH_NUMBER, number % (1 << 31))


def check_trainable(step: Step) -> None:
    """UserError when the model has no optimizer, no input, or one of integers without a bound."""
    if "update" not in step.programs:
        raise UserError(
            f"the model {step.model} has no optimizer, so a step changes nothing",
            "add `optimizer adamw: ...` to its text",
        )
    if not step.inputs:
        raise UserError(f"the model {step.model} has no input", "declare what it is trained on: input x: f32[B, C]")
    integers = (name for name in sorted(step.inputs) if not step.slots[name].dtype.is_float)
    unbounded = next((name for name in integers if not step.inputs[name]), None)
    if unbounded is not None:
        raise UserError(
            f"input '{unbounded}' of the model {step.model} has no bound, so data cannot be held against it",
            f"write `below` and how many words there are behind it: input {unbounded}: i32[B, T] below V",
        )


def persistent(executor: Executor, kinds: Collection[str] = ("parameter", "master", "state")) -> dict[str, Stored]:
    """What outlives a step, parameters, their master copies and optimizer state, by slot name."""
    return {name: _stored(executor, slot) for name, slot in executor.step.slots.items() if slot.kind in kinds}


def _stored(executor: Executor, slot: Slot) -> Stored:
    elements, at_a_time = element_count(slot), PIECE // slot.dtype.bytes

    def pieces() -> Iterator[NDArray[Any]]:
        for start in range(0, elements, at_a_time):
            yield executor.read_part(slot.name, start, min(start + at_a_time, elements))

    return Stored(KIND_OF[slot.dtype], slot.shape, pieces)


def restore(executor: Executor, data: Data, saved: checkpoint.Checkpoint, seed: int, batches: Stream) -> int:
    """Load a checkpoint into the arena and the batch stream; the number of steps done."""
    step, manifest = executor.step, saved.manifest
    checkpoint.check_same_model(saved, step.model, step.config, step.dims, step.precision)
    if manifest.data_fingerprint != data.fingerprint:
        raise UserError(
            f"{saved.folder}: the run was trained on other data than {data.description}",
            "put the data back as it was, or start a new run",
        )
    if manifest.seed != seed:
        raise UserError(
            f"{saved.folder}: the run's seed is {manifest.seed}, not {seed}",
            "resume without --seed, or start a new run",
        )
    saved.load(persistent(executor), executor.write)
    batches.state = manifest.data
    return manifest.step


def added(step: Step, saved: checkpoint.Checkpoint) -> list[str]:
    """The parameters that a step of a model with frozen ones trains and a checkpoint has not: what was put beside base
    weights (low-rank factors). Nothing of a model that trains all that it has."""
    held = saved.tensors()
    some_frozen = any(p.frozen for p in step.parameters)
    return [p.slot for p in step.parameters if some_frozen and not p.frozen and p.slot not in held]


def check_weights(
    executor: Executor, saved: checkpoint.Checkpoint, without: Collection[str] = (), state: str = ""
) -> dict[str, str]:
    """The tensor of a checkpoint that each parameter comes from, but for those `without` which it is: its master copy
    where there is one; with `state` what the optimizer keeps under this name for it. UserError where the checkpoint is
    of another model than the step (sizes, types and numbers that no shape depends on may differ), and as `kept`."""
    wanted = {n: t for n, t in persistent(executor, ("parameter",)).items() if n not in without}
    saved.check(wanted, convert=True)
    held = saved.tensors()
    sources = {n: f"master.{n}" if f"master.{n}" in held else n for n in wanted}
    trained = {p.slot for p in executor.step.parameters if not p.frozen} | saved.trained()
    return sources | (saved.kept([n for n in wanted if n in trained], state) if state else {})


def load_weights(
    executor: Executor, saved: checkpoint.Checkpoint, without: Collection[str] = (), state: str = ""
) -> None:
    """The parameters of a checkpoint (its master copies where it has them), as parameters of this step and as their
    master copies, and the model's own states; those `without` which it is stay as they are. `state` and UserError as
    `check_weights`."""
    sources, held = check_weights(executor, saved, without, state), saved.tensors()
    for init in (p for p in executor.step.parameters if p.slot in sources):
        values = saved.values(sources[init.slot])
        for slot in filter(None, (init.slot, init.master)):
            executor.write(slot, values)
    for name in executor.step.states:
        executor.write(name, saved.values(name) if name in held else 0.0)


def validation_loss(executor: Executor, data: Data, batch_count: int, peers: Peers = ALONE) -> float:
    """Mean loss over the same `batch_count` validation batches (fewer where there is less data), which processes take
    in turns; the same bits whatever their number."""
    batches = data.validation_batches()
    rows = rows_of(executor.step)
    count = max(1, min(batch_count, batches.count // rows))
    own = range(peers.rank, count, peers.size)
    batches.skip(rows * peers.rank)
    losses = list(batch_losses(executor, batches, own))
    turns = -(-count // peers.size)
    return sum(peers.joined([*losses, *[0.0] * (turns - len(losses))])[:count]) / count


def batch_losses(executor: Executor, batches: Stream, numbers: range) -> Iterator[float]:
    """The losses of batches with these numbers, without training on them; the first is the stream's next."""
    program = "forward" if "forward" in executor.step.programs else "micro_first"
    with evaluating(executor):
        for number in numbers:
            batches.skip(rows_of(executor.step) * (numbers.step - 1) if number != numbers.start else 0)
            next_batch(executor, batches, number)
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
