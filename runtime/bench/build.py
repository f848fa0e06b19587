"""The workload of a built step, and the folder that the programs under measurement read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tcomp.model.step import ParameterInit, Step
from tcomp.runtime.bench.workload import Parameter, Workload, save, write_batches

_PIECE = 1 << 22


def workload_of(step: Step, request: StepRequest, device: str = "cpu", gpu: str = "", threads: int = 1) -> Workload:
    """The workload of the step that was asked for; `request.model` is the model's file."""
    return Workload(
        model=step.model,
        request=replace(request, config=step.config, precision=step.precision),
        dims=dict(step.dims),
        device=device,
        gpu=gpu,
        threads=threads,
        vocabulary=step.inputs["tokens"] or 2,
        parameters=tuple(Parameter(p.slot, step.slots[p.slot].shape, p.group) for p in step.parameters),
        hyper={name.removeprefix("hyper."): float(value) for name, value in step.hyper.items()},
    )


def write_folder(workload: Workload, step: Step, folder: Path, seed: int = 0) -> None:
    """Everything that the programs read: the workload, starting weights as the model declares them, batches."""
    save(workload, folder)
    write_batches(workload, folder)
    rng = np.random.default_rng(seed)
    try:
        with (folder / "weights.f32").open("wb") as out:
            for parameter in step.parameters:
                _write(out, parameter, math.prod(step.slots[parameter.slot].shape), rng)
    except OSError as e:
        raise UserError(f"{folder}: cannot write the starting weights: {e.strerror or e}", "set TMPDIR") from e


def _write(out: IO[bytes], init: ParameterInit, elements: int, rng: np.random.Generator) -> None:
    for start in range(0, elements, _PIECE):
        count = min(_PIECE, elements - start)
        if init.kind == "normal":
            values = rng.standard_normal(count, np.float32) * np.float32(init.value)
        elif init.kind == "uniform":
            values = (rng.random(count, np.float32) * 2 - 1) * np.float32(init.value)
        else:
            values = np.full(count, init.kind == "ones", np.float32)
        out.write(values.data.cast("B"))
