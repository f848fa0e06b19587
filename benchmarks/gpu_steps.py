"""Sections of gpu_acceptance.py: is a whole training step right on the GPU, in every precision?"""

from __future__ import annotations

import hashlib
import inspect
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gpu_job import Item, Job, guarded

from tcomp.cli import common
from tcomp.model.request import StepRequest
from tcomp.runtime.device import Device
from tcomp.runtime.executor import Executor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars
from tcomp.runtime.values import Array

MICRO = {"L": 2, "H": 2, "C": 32, "V": 61, "S": 16}
ONE_LAYER = {**MICRO, "L": 1}
TOLERANCE = 1e-4
"""Relative L2 distance from the oracle, in f32."""
LOSS_TOLERANCE = 1e-5
"""Relative difference of a loss from the CPU backend's."""
CLOSE = {"f32": 5e-4, "bf16": 0.01, "bf16_stochastic": 0.01, "fp8": 0.02, "fp8_block": 0.02}
"""Nats, of every loss of 20 steps from the CPU's in f32. On the CPU, the same steps in these precisions are at most
0.003 (16 bits) and 0.008 (8 bits) away."""
NORM_CLOSE = {"f32": 1e-4, "bf16": 3e-3, "bf16_stochastic": 3e-3, "fp8": 0.03, "fp8_block": 0.01}
"""Relative, of the gradient's norm in the first step; a third of it and less was seen on the CPU."""
STEPS = 20


@dataclass(frozen=True)
class Case:
    """A small model: `dims` in place of its config's, B sequences of T bytes, `accumulation` of them a step."""

    model: str
    dims: dict[str, int]
    batch: int
    length: int
    accumulation: int = 1
    steps: int = STEPS


@dataclass(frozen=True)
class Run:
    """Mean `losses` of its steps and `norms` of the gradient; `digests` of all parameters, their master copies and the
    optimizer's state at the end, by slot."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    digests: dict[str, str]


def cases(real: bool) -> tuple[Case, ...]:
    """Large enough for tensor cores; on the virtual GPU as small as that allows."""
    if real:
        return (
            Case("gpt2", {"L": 2, "H": 4, "C": 256}, 4, 128),
            Case("llama", {"L": 2, "H": 4, "G": 2, "D": 64, "C": 256, "F": 512}, 4, 128, accumulation=2),
        )
    return (
        Case("gpt2", {"L": 1, "H": 2, "C": 32}, 1, 16, steps=1),
        Case("llama", {"L": 1, "H": 2, "G": 1, "D": 16, "C": 32, "F": 64}, 1, 16, accumulation=2, steps=1),
    )


def precisions(job: Job) -> Iterator[Item]:
    """Small models in one precision: losses beside the CPU's f32, and the same bits again, as graphs or not."""
    for case in cases(job.real):
        if job.over():
            return
        yield from guarded({"model": case.model}, _compare(job, case))


def _compare(job: Job, case: Case) -> Iterator[Item]:
    row: Item = {"kind": "row", "model": case.model}
    found = len(job.device.findings())
    built = _build(job.device, case, job.precision)
    executor = job.device.open(built.step)
    try:
        yield from guarded(row, _instructions(job, case, executor))
        first = _train(executor, case)
        again = _train(executor, case)
    finally:
        executor.close()
    wanted = _once(common.device_for("cpu"), case, "f32")
    away = [abs(a - b) for a, b in zip(first.losses, wanted.losses, strict=True)]
    limit = CLOSE[job.precision]
    for number in sorted({1, (case.steps + 1) // 2, case.steps}):
        ours, theirs = first.losses[number - 1], wanted.losses[number - 1]
        yield row | {"what": f"loss of step {number}", "GPU": f"{ours:.5f}", "CPU, f32": f"{theirs:.5f}",
                     "difference": ours - theirs, "good": abs(ours - theirs) <= limit}  # fmt: skip
    good = all(a <= limit for a in away)  # (a NaN is not)
    yield row | {"what": f"{case.steps} losses", "difference": max(away, key=lambda a: a if a == a else np.inf),
                 "GPU": f"within {limit}" if good else f"further than {limit}", "good": good}  # fmt: skip
    yield {"kind": "losses", "model": case.model, "GPU": list(first.losses), "CPU": list(wanted.losses)}
    apart = [abs(a / b - 1) for a, b in zip(first.norms, wanted.norms, strict=True)]
    yield row | {"what": "norm of the gradient in step 1", "GPU": f"{first.norms[0]:.5f}",
                 "CPU, f32": f"{wanted.norms[0]:.5f}", "difference": first.norms[0] - wanted.norms[0],
                 "good": apart[0] <= NORM_CLOSE[job.precision]}  # fmt: skip
    yield row | _same("a second run", again, first)
    plain = _once(replace(job.device, graph=False), case, job.precision)
    yield row | _same("launch by launch", plain, first)
    if job.device.virtual is not None:
        found = len(job.device.findings()) - found
        yield row | {"what": "findings of the checks", "GPU": str(found), "good": not found}


def _same(what: str, run: Run, first: Run) -> Item:
    """Where other bits come from: the first step whose loss or gradient's norm differs, and what differs at the end."""
    if run == first:
        return {"what": what, "GPU": "the same bits", "good": True}
    steps = zip(zip(run.losses, run.norms, strict=True), zip(first.losses, first.norms, strict=True), strict=True)
    at = next((n for n, (a, b) in enumerate(steps, 1) if a != b), 0)
    text = f"other bits from step {at}: loss {run.losses[at - 1]:.7f} and {first.losses[at - 1]:.7f}, " if at else ""
    text += f"norm {run.norms[at - 1]:.7f} and {first.norms[at - 1]:.7f}; " if at else "losses and norms the same; "
    slots = [name for name, digest in run.digests.items() if digest != first.digests.get(name)]
    text += f"at the end {len(slots)} of {len(run.digests)} slots differ, {', '.join(slots[:4])}"
    return {"what": what, "GPU": text, "good": False}


def _instructions(job: Job, case: Case, executor: Any) -> Iterator[Item]:
    """Which matrix instructions its kernels have. Without any, nothing that follows would be about them."""
    kinds: dict[str, int] = {}
    for kernel in executor.kernels.values():
        for kind in set(re.findall(r"\b(wgmma\.mma_async|mma\.sync)\.", kernel.kernel.ptx)):
            kinds[kind] = kinds.get(kind, 0) + 1
    text = ", ".join(f"{n} by {kind}" for kind, n in sorted(kinds.items())) or "none"
    row: Item = {"kind": "row", "model": case.model, "what": f"matrix kernels of {len(executor.kernels)}", "GPU": text}
    yield row | {"good": bool(kinds) or job.precision == "f32"}


def _build(device: Device, case: Case, precision: str) -> common.Built:
    return common.build_step(
        StepRequest(
            case.model,
            "tiny",
            {"B": case.batch, "T": case.length},
            dims=case.dims,
            precision=precision,
            accumulation=case.accumulation,
        ),
        device,
    )


def _once(device: Device, case: Case, precision: str) -> Run:
    executor = device.open(_build(device, case, precision).step)
    try:
        return _train(executor, case)
    finally:
        executor.close()


def _train(executor: Executor, case: Case) -> Run:
    """A run of the case's steps from fresh parameters, on text of Python's library."""
    initialise(executor, 1, 1)
    set_scalars(executor, {"peak_lr": 3e-4, "warmup": float(case.steps), "total": float(case.steps)})
    batches = _batches(case)
    losses, norms = [], []
    for step in range(case.steps):
        executor.write("step", step)
        found = []
        for micro in range(case.accumulation):
            with executor.batch() as inputs:
                inputs["tokens"][...], inputs["targets"][...] = next(batches)
            executor.run("micro_next" if micro else "micro_first")
            found.append(executor.fetch("loss"))
        executor.run("update")
        norms.append(float(executor.fetch("norm").value()))
        losses.append(float(np.mean([float(r.value()) for r in found])))
    slots = {n: s for n, s in executor.step.slots.items() if s.kind in ("parameter", "master", "state")}
    digests = {n: hashlib.sha256(executor.read(n).tobytes()).hexdigest()[:16] for n in sorted(slots)}
    return Run(tuple(losses), tuple(norms), digests)


def _batches(case: Case) -> Iterator[tuple[Array, Array]]:
    """Tokens and targets, i32 [B, T], without end."""
    text = np.frombuffer(inspect.getsource(tokenize).encode(), np.uint8).astype(np.int32)
    random = np.random.default_rng(2)
    while True:
        at = random.integers(0, len(text) - case.length - 1, case.batch)[:, None] + np.arange(case.length + 1)
        yield text[at[:, :-1]], text[at[:, 1:]]


# ------------------------------------------------------------------------------------- against the oracle


def step(job: Job) -> Iterator[Item]:
    """A few training steps of a micro GPT-2 in f32: losses beside the CPU's, and the same bits in a second run."""
    from tcomp.runtime.verify import verify_step

    steps, sizes = (4, MICRO) if job.real else (2, ONE_LAYER)  # (a virtual one takes seconds for each)
    cpu = _losses(common.device_for("cpu", threads=1), steps, sizes)
    first = _losses(job.device, steps, sizes)
    findings = len(job.device.findings())
    for number, (ours, theirs) in enumerate(zip(first, cpu, strict=True), 1):
        away = abs(ours - theirs) / abs(theirs)
        yield {"kind": "row", "what": f"loss of step {number}", "GPU": f"{ours:.7f}", "CPU": f"{theirs:.7f}",
               "relative difference": away, "good": away <= LOSS_TOLERANCE}  # fmt: skip
    again = _losses(job.device, steps, sizes)
    yield {"kind": "row", "what": "a second run", "GPU": "the same bits" if again == first else "other bits",
           "good": again == first}  # fmt: skip
    yield {"kind": "row", "what": "findings of the checks", "GPU": str(findings), "good": not findings}
    if job.over():
        return
    built = common.build_step(StepRequest("gpt2", "tiny", {"B": 2, "T": 11}, dims=sizes), job.device)
    executor = job.device.open(built.step)
    try:
        _start(executor)
        for found in verify_step(executor, common.load_module("gpt2"), sizes):
            yield {"kind": "row", "what": f"{found.what}, against the oracle", "relative difference": found.error,
                   "good": found.error <= TOLERANCE}  # fmt: skip
    finally:
        executor.close()


def _start(executor: Executor) -> None:
    """Fresh parameters without zero biases (a fault in them must show) and gentle hyperparameters."""
    initialise(executor, 1, 1)
    random = np.random.default_rng(0)
    for parameter in executor.step.parameters:
        start = executor.read(parameter.slot)
        executor.write(parameter.slot, start + random.normal(0, 0.1, start.shape))
    set_scalars(executor, {"peak_lr": 1e-2, "warmup": 1.0, "eps": 1e-3})


def _losses(device: Device, steps: int, sizes: dict[str, int]) -> list[float]:
    built = common.build_step(StepRequest("gpt2", "tiny", {"B": 2, "T": 16}, dims=sizes), device)
    executor = device.open(built.step)
    try:
        _start(executor)
        random = np.random.default_rng(7)
        readings = []
        for number in range(steps):
            executor.write("step", number)
            with executor.batch() as inputs:
                run = random.integers(0, sizes["V"], (2, 17), dtype=np.int32)
                inputs["tokens"][...], inputs["targets"][...] = run[:, :-1], run[:, 1:]
            executor.run("micro_first")
            readings.append(executor.fetch("loss"))
            executor.run("update")
        return [float(r.value()) for r in readings]
    finally:
        executor.close()
