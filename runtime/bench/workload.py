"""The work that the programs under measurement share: sizes, hyperparameters, starting weights, batches.

Written once as a folder (workload.json, weights.f32, batches.i32) and read by every program, so that all of them do
the same arithmetic on the same numbers. Loads neither the compiler nor PyTorch: a program's start-up time holds
only what it needs itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.model.request import Sharing, StepRequest

Ints = NDArray[np.int32]
BATCHES = 4
"""They come round in turn."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model's text. `shape` is that of all layers together; `group` the optimizer's."""

    name: str
    shape: tuple[int, ...]
    group: str

    @property
    def bytes(self) -> int:
        """As f32, which the weights' file is in."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Workload:
    """A model's step at fixed sizes. `dims` are all of the model's dimensions.

    `hyper` are the optimizer's values: "peak_lr", or "matrices.weight_decay" of a group. `vocabulary` is the exclusive
    bound of the tokens. `gpu` is the one that a virtual device stands for.
    """

    model: str
    request: StepRequest
    dims: dict[str, int | float]
    device: str
    gpu: str
    threads: int
    vocabulary: int
    parameters: tuple[Parameter, ...]
    hyper: dict[str, float]

    @property
    def batch(self) -> int:
        return int(self.dims["B"])

    @property
    def length(self) -> int:
        return int(self.dims["T"])

    @property
    def dtype(self) -> str:
        return self.request.precision

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length

    @property
    def state_bytes(self) -> int:
        """What training in f32 cannot do without: parameters, gradients and AdamW's two moments."""
        return 4 * sum(p.bytes for p in self.parameters)


def write_batches(workload: Workload, folder: Path, seed: int = 1000) -> None:
    """Random tokens; each sequence's targets are its tokens one place on."""
    rng = np.random.default_rng(seed)
    runs = rng.integers(0, workload.vocabulary, (BATCHES, workload.batch, workload.length + 1), dtype=np.int32)
    (folder / "batches.i32").write_bytes(runs.tobytes())


def read_batches(workload: Workload, folder: Path) -> list[tuple[Ints, Ints]]:
    """Tokens and targets of each batch, i32 [B, T]."""
    runs = np.fromfile(folder / "batches.i32", np.int32).reshape(BATCHES, workload.batch, workload.length + 1)
    return [(np.ascontiguousarray(r[:, :-1]), np.ascontiguousarray(r[:, 1:])) for r in runs]


def save(workload: Workload, folder: Path) -> None:
    """Write workload.json."""
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))


def load(folder: Path) -> Workload:
    """Read workload.json."""
    values: dict[str, Any] = json.loads((folder / "workload.json").read_text())
    values["parameters"] = tuple(Parameter(p["name"], tuple(p["shape"]), p["group"]) for p in values["parameters"])
    asked = values["request"]
    sharing = Sharing(**asked["sharing"])
    values["request"] = StepRequest(**{**asked, "programs": tuple(asked["programs"]), "sharing": sharing})
    return Workload(**values)


class Weights:
    """The weights' file: parameters as f32, one after another, read in pieces and never held whole."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self.path = folder / "weights.f32"
        self.starts: dict[str, int] = {}
        at = 0
        for p in workload.parameters:
            self.starts[p.name] = at
            at += p.bytes

    def read(self, name: str, arrays: Sequence[NDArray[np.float32]], start: int = 0) -> None:
        """Fill contiguous arrays from the parameter's elements, from `start` on, one array after another."""
        with self.path.open("rb") as f:
            f.seek(self.starts[name] + 4 * start)
            for array in arrays:
                f.readinto(array.reshape(-1).data.cast("B"))


def learning_rate(hyper: Mapping[str, float], step: int) -> float:
    """Linear warm-up, then half a cosine down to final_lr * peak_lr (models/ops/optim.tc); `step` counts from 0."""
    peak, warmup, total = hyper["peak_lr"], hyper["warmup"], hyper["total"]
    if step < warmup:
        return peak * (step + 1) / max(warmup, 1)
    turn = min(1.0, (step - warmup) / max(total - warmup, 1))
    low = hyper["final_lr"] * peak
    return low + 0.5 * (1 + math.cos(math.pi * turn)) * (peak - low)
