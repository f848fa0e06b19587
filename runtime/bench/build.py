"""A workload's device and step, and the workload of a step: the parent writes what the children build again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from tcomp.dsl.load import load
from tcomp.errors import UserError
from tcomp.model.build import build_step
from tcomp.model.step import ParameterInit, Step
from tcomp.runtime.bench.workload import Parameter, Workload, save, write_batches
from tcomp.runtime.device import Device, device_named

if TYPE_CHECKING:
    from tcomp.dsl.ast import Module

_PIECE = 1 << 22


def open_device(workload: Workload) -> Device:
    """The device that the workload names (`cpu`, `cuda:1`, `virtual`)."""
    kind, _, which = workload.device.partition(":")
    return device_named(kind, which, gpu=workload.gpu, threads=workload.threads)


def build(workload: Workload, device: Device) -> Step:
    """The training step of the workload's text at its sizes."""
    module = load(Path(workload.file))
    check_precision(module, workload.model, workload.dtype)
    return build_step(
        module,
        workload.model,
        workload.config,
        {"B": workload.batch, "T": workload.length},
        overrides=workload.overrides,
        machine=device.machine,
        threads=device.threads,
    )


def check_precision(module: Module, model: str, dtype: str) -> None:
    """UserError when the model does not compute in `dtype`."""
    precision = module.models[model].precision
    if precision != dtype:
        raise UserError(
            f"model '{model}' computes in {precision}, not {dtype}",
            f"give --dtype {precision}, or write `precision {dtype}` in a copy of the model's text",
        )


def workload_of(
    step: Step, file: Path, overrides: dict[str, int], dtype: str, device: str, gpu: str, threads: int
) -> Workload:
    """The workload of a built step: `overrides` are the values given in place of the config's."""
    return Workload(
        model=step.model,
        file=str(file.resolve()),
        config=step.config,
        dims=dict(step.dims),
        overrides=overrides,
        batch=step.dims["B"],
        length=step.dims["T"],
        dtype=dtype,
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
