"""A model's whole training run by tcomp on the CPU, and how far it is from a PyTorch one in float64.

Losses within 1e-5 relative, every gradient tensor and every trained parameter within 1e-4 relative in the L2 norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tcomp.dsl.dims import Number
from tcomp.dsl.load import load
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tests.reference.torch_gpt2 import Batch, Hyper, Params, Trained

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
LOSS_TOLERANCE = 1e-5
TENSOR_TOLERANCE = 1e-4


@dataclass
class Run:
    """What tcomp computed, in the shape of Trained."""

    losses: list[float]
    gradients: list[dict[str, np.ndarray]]
    norms: list[float]
    lrs: list[float]
    params: dict[str, np.ndarray]


@contextmanager
def built(
    model: str, dims: Mapping[str, Number], B: int, T: int, accumulation: int, threads: int, cache: Path,
    precision: str = "f32", keep_logits: bool = False,
) -> Iterator[tuple[Step, CpuExecutor]]:  # fmt: skip
    """models/MODEL.tc built for these sizes, its kernels loaded and its team of threads waiting."""
    machine = detect()
    module = load(MODELS / f"{model}.tc")
    step = build_step(
        module,
        StepRequest(
            next(iter(module.models)),
            "tiny",
            {"B": B, "T": T},
            dims=dims,
            precision=precision,
            accumulation=accumulation,
            keep_logits=keep_logits,
        ),
        machine,
        threads=threads,
    )
    executor = CpuExecutor(step, machine, threads, cache)
    try:
        yield step, executor
    finally:
        executor.close()


def train(
    step: Step, executor: CpuExecutor, params: Params, batches: list[Batch], hyper: Hyper, accumulation: int
) -> Run:
    """The same steps as reference.train_steps, by the native programs."""
    for parameter in step.parameters:
        for slot in filter(None, (parameter.slot, parameter.master)):
            executor.write(slot, params[parameter.slot].numpy())
    for name, value in step.scalars.items():
        executor.write(name, value)
    for name in step.hyper:
        group, _, last = name.removeprefix("hyper.").rpartition(".")
        if not group or last == "weight_decay":
            executor.array(name)[...] = hyper.weight_decay[group] if group else getattr(hyper, last)
    run = Run([], [], [], [], {})
    for number in range(len(batches) // accumulation):
        loss = 0.0
        for micro in range(accumulation):
            x, y = batches[number * accumulation + micro]
            executor.array("tokens")[...] = x.numpy()
            executor.array("targets")[...] = y.numpy()
            executor.run("micro_next" if micro else "micro_first")
            loss += float(executor.array("loss")) / accumulation
        run.losses.append(loss)
        run.gradients.append({n: np.array(executor.array(f"grad.{n}")) for n in params})
        executor.array("step")[...] = number
        executor.run("update")
        run.norms.append(float(executor.array("norm")))
        run.lrs.append(float(executor.array("lr")))
    run.params = {p.slot: np.array(executor.array(p.master or p.slot)) for p in step.parameters}
    return run


def doubled(params: Params) -> Params:
    """The same values in float64."""
    return {name: p.double() for name, p in params.items()}


def distance(got: np.ndarray, want: torch.Tensor) -> float:
    """Relative L2 distance; infinite when anything is not a number."""
    value = np.linalg.norm(got.astype(np.float64) - want.numpy()) / np.linalg.norm(want.numpy())
    return float(value) if np.isfinite(value) else float("inf")


def assert_same(run: Run, want: Trained) -> None:
    """All of a run: losses, norms, learning rates, gradients, trained parameters."""
    np.testing.assert_allclose(run.losses, want.losses, rtol=LOSS_TOLERANCE)
    np.testing.assert_allclose(run.norms, want.norms, rtol=TENSOR_TOLERANCE)
    np.testing.assert_allclose(run.lrs, want.lrs, rtol=1e-6)
    assert set(run.params) == set(want.params)
    worst = {}
    for number, (got, wanted) in enumerate(zip(run.gradients, want.gradients, strict=True)):
        worst |= {f"gradient of {name}, step {number}": distance(got[name], w) for name, w in wanted.items()}
    worst |= {f"trained {name}": distance(run.params[name], w) for name, w in want.params.items()}
    wrong = {name: value for name, value in worst.items() if not value < TENSOR_TOLERANCE}
    assert not wrong, f"relative L2 distance above {TENSOR_TOLERANCE}: {wrong}"
