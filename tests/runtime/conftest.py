"""A device that needs no compiler: a bigram model in NumPy behind the executor's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.model.step import ParameterInit, Slot, Step
from tcomp.runtime.executor import HostExecutor, Reading

VOCABULARY = 256


class BigramExecutor(HostExecutor):
    """logits[token] = table[token]; cross-entropy; momentum descent. Float32 and deterministic."""

    def __init__(self, batch: int = 2, length: int = 8, accumulation: int = 1) -> None:
        shapes = {
            "table": ("parameter", DType.F32, (VOCABULARY, VOCABULARY)),
            "grad.table": ("gradient", DType.F32, (VOCABULARY, VOCABULARY)),
            "state.m.table": ("state", DType.F32, (VOCABULARY, VOCABULARY)),
            "tokens": ("input", DType.I32, (batch, length)),
            "targets": ("input", DType.I32, (batch, length)),
            "hyper.peak_lr": ("scalar", DType.F32, ()),
            "hyper.total": ("scalar", DType.F32, ()),
            "loss_gradient": ("scalar", DType.F32, ()),
            "step": ("scalar", DType.I32, ()),
            "loss": ("output", DType.F32, ()),
            "lr": ("output", DType.F32, ()),
            "norm": ("output", DType.F32, ()),
            "logits": ("output", DType.F32, (batch * length, VOCABULARY)),
        }
        slots = {n: Slot(n, kind, dtype, shape, 0, 0, 0, 0) for n, (kind, dtype, shape) in shapes.items()}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {
            n: np.zeros(s.shape, np.int32 if s.dtype is DType.I32 else np.float32) for n, s in slots.items()
        }
        programs: dict[str, tuple[Any, ...]] = {"micro_first": (), "update": (), "forward": ()}
        if accumulation > 1:
            programs["micro_next"] = ()
        self._step = Step(
            "bigram", "tiny", {"B": batch, "T": length, "V": VOCABULARY}, slots, 0, 0, 0, 0, {}, programs,
            (ParameterInit("table", "normal", 0.02, "matrices"),),
            {"tokens": VOCABULARY, "targets": VOCABULARY},
            {"hyper.peak_lr": 1.0, "hyper.total": 100.0},
            scalars={"loss_gradient": 1.0 / accumulation},
        )  # fmt: skip
        self.on_run: Callable[[str], None] = lambda program: None

    @property
    def step(self) -> Step:
        return self._step

    def array(self, name: str) -> np.ndarray[Any, Any]:
        return self.arrays[name]

    def close(self) -> None:
        pass

    def run(self, program: str) -> None:
        self.on_run(program)
        a = self.arrays
        if program == "update":
            lr = a["hyper.peak_lr"] * (1 - a["step"] / a["hyper.total"])
            a["lr"][...] = lr
            a["norm"][...] = np.linalg.norm(a["grad.table"])
            a["state.m.table"] *= np.float32(0.9)
            a["state.m.table"] += a["grad.table"]
            a["table"] -= np.float32(lr) * a["state.m.table"]
            return
        tokens, targets = a["tokens"].reshape(-1), a["targets"].reshape(-1)
        logits = a["table"][tokens]
        a["logits"][...] = logits
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        rows = np.arange(len(tokens))
        a["loss"][...] = -np.log(weights[rows, targets]).mean()
        if program == "forward":
            return
        if program == "micro_first":
            a["grad.table"][...] = 0
        weights[rows, targets] -= 1
        np.add.at(a["grad.table"], tokens, weights * (a["loss_gradient"] / len(tokens)))


class LaggingExecutor(BigramExecutor):
    """The same model on a device that does what it is told only when someone waits for a result of it."""

    def __init__(self, *arguments: Any, **sizes: int) -> None:
        super().__init__(*arguments, **sizes)
        self.queue: list[Callable[[], None]] = []
        self.longest = 0

    def later(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        self.longest = max(self.longest, len(self.queue))

    def wait(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def run(self, program: str) -> None:
        self.later(lambda: super(LaggingExecutor, self).run(program))

    def write(self, name: str, value: Any) -> None:
        copy = np.array(value)
        self.later(lambda: super(LaggingExecutor, self).write(name, copy))

    def read(self, name: str) -> np.ndarray[Any, Any]:
        self.wait()
        return super().read(name)

    @contextmanager
    def fill(self, name: str) -> Iterator[np.ndarray[Any, Any]]:
        staged = np.empty_like(self.array(name))
        yield staged
        self.write(name, staged)

    @contextmanager
    def batch(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        staged = {name: np.empty_like(self.array(name)) for name in self.step.inputs}
        yield staged
        for name, array in staged.items():
            self.write(name, array)

    def fetch(self, name: str) -> Reading:
        return _Late(self, name)


class _Late:
    def __init__(self, executor: LaggingExecutor, name: str) -> None:
        self.executor, self.found = executor, np.empty(0)
        self.ready = False
        executor.later(lambda: self.take(name))

    def take(self, name: str) -> None:
        self.found, self.ready = self.executor.array(name).copy(), True

    def value(self) -> np.ndarray[Any, Any]:
        while not self.ready:
            self.executor.queue.pop(0)()
        return self.found


class Silent:
    """A progress display that only remembers what it was told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.warnings: list[str] = []

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, steps: int, done: int, amount: int, unit: str) -> None:
        pass

    def step(self, done: int, loss: float, lr: float, norm: float, seconds: float) -> None:
        self.losses.append(loss)

    def validation(self, done: int, loss: float) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def bigram() -> type[BigramExecutor]:
    return BigramExecutor


@pytest.fixture
def lagging() -> type[LaggingExecutor]:
    return LaggingExecutor


@pytest.fixture
def silent() -> type[Silent]:
    return Silent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, in place of that of the whole test run."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TCOMP_CACHE", str(folder))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """About 6,000 bytes of text with a pattern that a bigram model can learn."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i % 7} abcabd\n" for i in range(700)))
    return path
