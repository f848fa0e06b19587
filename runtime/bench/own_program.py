"""A program of the user's own under measurement: `tcomp bench gpt2 --against FILE.py`.

FILE.py has a class

    class Program:
        def __init__(self, workload: Workload, weights: Weights) -> None: ...
        def step(self, tokens, targets, learning_rate: float) -> float: ...

which trains the workload's model from its starting weights. `step` does one whole step (forward, backward, clip by
`workload.hyper["clip"]`, AdamW) on i32 [B, T] tokens and targets, and returns the mean loss when all of it is done.
What it keeps for a later start belongs into the folder that the environment variable XDG_CACHE_HOME names, which is
empty for a cold start. It may import what lies beside it. benchmarks/peers has such programs.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from tcomp.errors import UserError
from tcomp.runtime.bench.workload import Ints, Weights, Workload, learning_rate

SUFFIX = ".py"


class OwnProgram:
    """`phases` and `clock` are as in TcompProgram; times are the host's. UserError where the file has no such class, or
    the model no such learning rate."""

    clock = "host"

    def __init__(self, path: Path, workload: Workload, folder: Path) -> None:
        began = time.perf_counter()
        self.hyper = workload.hyper
        if lacking := [n for n in ("peak_lr", "final_lr", "warmup", "total") if n not in self.hyper]:
            raise UserError(
                f"the model has no hyperparameter '{lacking[0]}', so the learning rate of a step is not known",
                "models whose optimizer has `lr by cosine` can be compared (models/ops/optim.tc)",
            )
        made = _class_of(path)
        imported = time.perf_counter()
        self.program = made(workload, Weights(workload, folder))
        self.phases = {"imports": imported - began, "weights": time.perf_counter() - imported}

    def run(self, tokens: Ints, targets: Ints, number: int) -> tuple[float, float | None]:
        """One whole step: its loss and seconds."""
        began = time.perf_counter()
        loss = float(self.program.step(tokens, targets, learning_rate(self.hyper, number)))
        return loss, time.perf_counter() - began

    def device_bytes(self) -> int:
        """Memory of a device is the program's own affair."""
        return 0

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def label(name: str) -> str:
    """What a program of `--against` is called in reports."""
    return Path(name).stem if name.endswith(SUFFIX) else name


def check_file(path: Path) -> None:
    """UserError for a path that is no readable file."""
    try:
        with path.open("rb"):
            pass
    except OSError as e:
        raise UserError(
            f"--against {path}: cannot read it: {e.strerror or e}",
            "name a Python file with a class Program (docs/comparison.md)",
        ) from e


def _class_of(path: Path) -> Any:
    # A name of its own: a program in jax.py may import jax.
    spec = importlib.util.spec_from_file_location(f"tcomp_against_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # (dataclasses and pickles look up their module there)
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except ImportError as e:
        raise UserError(str(e), "install what the program needs beside tcomp") from e
    if not hasattr(module, "Program"):
        raise UserError("has no class Program", "docs/comparison.md says what it must have")
    return module.Program
