"""A device that needs no compiler: a bigram model in NumPy behind the executor's interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.model.step import ParameterInit, Slot, Step

VOCABULARY = 256


class BigramExecutor:
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
        self.step = Step(
            "bigram", "tiny", {"B": batch, "T": length, "V": VOCABULARY}, slots, 0, 0, 0, 0, {}, programs,
            (ParameterInit("table", "normal", 0.02, "matrices"),),
            {"tokens": VOCABULARY, "targets": VOCABULARY},
            {"hyper.peak_lr": 1.0, "hyper.total": 100.0},
            scalars={"loss_gradient": 1.0 / accumulation},
        )  # fmt: skip
        self.on_run: Callable[[str], None] = lambda program: None

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


class Silent:
    """A progress display that only remembers what it was told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.warnings: list[str] = []

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, steps: int, done: int, tokens_per_step: int) -> None:
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
def silent() -> type[Silent]:
    return Silent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TCOMP_CACHE", str(folder))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """About 6,000 bytes of text with a pattern that a bigram model can learn."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i % 7} abcabd\n" for i in range(700)))
    return path
