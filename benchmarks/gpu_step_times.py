"""Sections of gpu_acceptance.py: how fast is a step, by kernel and whole, beside its prediction and PyTorch?"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_job import Item, Job, Skip, guarded
from gpu_predictions import code_digest, key, load
from gpu_steps import MICRO
from gpu_torch import run_torch, torch_reason

from tcomp.cli import common
from tcomp.ir.tile import Kernel
from tcomp.model.step import Step
from tcomp.runtime.cuda.device import CudaDevice
from tcomp.runtime.initialise import initialise
from tcomp.runtime.train import set_scalars

REPEATS = 20
LONG = 5.0
"""Milliseconds: what takes longer is repeated a few times only."""
LOSS_AWAY = {"f32": 1e-3, "bf16": 5e-3}
"""Relative, of a loss and of the gradient's norm from PyTorch's on the same weights and batches."""
NORM_AWAY = 0.03


def timed_build(job: Job, dims: Mapping[str, int] | None = None) -> common.Built:
    """The step that is timed; on the virtual GPU a tiny one."""
    small = MICRO if not job.real else {}
    return common.build_step(
        "gpt2", job.config, job.batch, job.length, dims={**small, **(dims or {})}, precision=job.precision,
        device=job.device,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ kernels


def kernels(job: Job) -> Iterator[Item]:
    """Every distinct kernel of a step where it is first used, so on that step's data: the median of repeats between
    events, the L2 cache flushed before each; then all launches in their turn, L2 as they find it."""
    from tcomp.runtime.cuda.timing import ColdClock

    built = timed_build(job)
    machine, step = job.device.machine, built.step
    predictions = load(job.predictions, key(machine.name, job.config, job.batch, job.length, job.precision))
    known = (predictions or {}).get("kernels", {})
    executor: Any = job.device.open(step)
    clock = ColdClock(job.device.gpu, machine) if job.real else None
    try:
        initialise(executor, 1, os.cpu_count() or 1)
        set_scalars(executor, {})
        fill_batch(executor, np.random.default_rng(0))
        measured: dict[str, float] = {}
        other = 0
        for launch, parts in launches(executor):
            work = partial(submit, parts, executor.context.compute)
            if launch.kernel in measured or (measured and job.over()):
                work()
                continue
            kernel, said = step.kernels[launch.kernel], known.get(launch.kernel)
            other += said is not None and said["code"] != code_digest(executor.kernels[launch.kernel].kernel.ptx)
            row: Item = {
                "kind": "row", "kernel": launch.kernel, "first use": launch.label, "times": times(step, launch.kernel),
                "blocks x threads": ", ".join(f"{p.shape.blocks} x {p.shape.threads}" for p in parts),
            }  # fmt: skip
            measured[launch.kernel] = math.nan
            if clock is not None:
                ms = cold_median(clock, executor, work)
                measured[launch.kernel] = 1e3 * ms
                row |= rates(kernel, ms) | beside(1e3 * ms, said)
            else:
                work()
                work()
            yield row
        executor.wait()
        if clock is not None:
            yield from guarded({"kernel": "sums"}, _sums(job, executor, measured, predictions, other))
    finally:
        if clock is not None:
            clock.close()
        executor.close()


def launches(executor: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Launches of a step of one micro-batch, in order, each with its functions bound to addresses."""
    for program in ("micro_first", "update"):
        bound = iter(executor.programs[program])
        for launch in executor.step.programs[program]:
            yield launch, [next(bound) for _ in executor.kernels[launch.kernel].functions]


def submit(parts: list[Any], stream: Any) -> None:
    """A kernel's functions one after another: the later ones may need what an earlier one has set to zero."""
    for part in parts:
        part.submit(stream)


def times(step: Step, kernel: str) -> int:
    """Launches of it a step."""
    return sum(launch.kernel == kernel for p in ("micro_first", "update") for launch in step.programs[p])


def cold_median(clock: Any, executor: Any, work: Callable[[], None]) -> float:
    """Median milliseconds."""
    first = statistics.median(clock.milliseconds(executor, [work] * 3))
    return statistics.median(clock.milliseconds(executor, [work] * (REPEATS if first < LONG else 3)))


def rates(kernel: Kernel, ms: float) -> Item:
    moved = sum(o.bytes for o in kernel.operands)
    return {"us": 1e3 * ms, "TFLOP/s": kernel.flops / ms / 1e9, "GB/s of operands": moved / ms / 1e6}


def beside(us: float, said: Mapping[str, Any] | None) -> Item:
    if said is None:
        return {}
    return {"us predicted": 1e6 * said["seconds"], "measured over predicted": us / 1e6 / said["seconds"],
            "bound by, predicted": said["binding"]}  # fmt: skip


def _sums(
    job: Job, executor: Any, measured: dict[str, float], predictions: Mapping[str, Any] | None, other: int
) -> Iterator[Item]:
    """Over a step: kernels measured one by one, and each launch in its turn (a gap before it included)."""
    step = executor.step
    counts = {k: times(step, k) for k in measured}
    said = predictions["kernels"] if predictions else {}
    both = [k for k in measured if k in said]
    row: Item = {"kind": "row", "times": sum(counts.values())}
    total = sum(us * counts[k] for k, us in measured.items())
    yield row | {"kernel": "all, one by one", "us": total} | (
        beside(total, {"seconds": sum(said[k]["seconds"] * counts[k] for k in both), "binding": ""})
        if len(both) == len(step.kernels) else {}
    )  # fmt: skip
    turns: dict[str, list[float]] = {}
    for number in range(6):
        took = dict.fromkeys(measured, 0.0)
        found = iter([ms for p in ("micro_first", "update") for _, ms in executor.profile(p)])
        for launch, parts in launches(executor):
            took[launch.kernel] = took.get(launch.kernel, 0.0) + sum(next(found) for _ in parts)
        for kernel, ms in took.items():
            if number:
                turns.setdefault(kernel, []).append(1e3 * ms)
    medians = {k: statistics.median(v) for k, v in turns.items()}
    yield row | {"kernel": "all, in their turn", "us": sum(medians.values())}
    yield {"kind": "in turn", "us a step": medians}
    longest = sorted(medians, key=lambda k: -medians[k])[:8]
    share = sum(medians.values())
    text = "; ".join(f"{k} {medians[k] / share:.1%}" for k in longest)
    yield {"kind": "row", "kernel": f"longest in a step: {text}"}
    if other:
        yield {"kind": "row", "kernel": f"{other} kernels are of other code than was predicted"}


def fill_batch(executor: Any, random: np.random.Generator) -> None:
    with executor.batch() as inputs:
        for name, array in inputs.items():
            array[...] = random.integers(0, executor.step.inputs[name] or 2, array.shape)


# -------------------------------------------------------------------------------------------------- steps


def step_time(job: Job) -> Iterator[Item]:
    """Three steps beside PyTorch's on the same weights and batches, the time of a step, the memory it takes."""
    with workload_folder(job) as (built, workload, folder):
        ours: list[tuple[float, float]] = []
        yield from guarded({"program": "tcomp"}, _ours(job, built, workload, folder, ours))
        yield {"kind": "losses", "tcomp": ours}
        if torch_reason(job):
            yield {"kind": "row", "program": f"PyTorch: skipped, {torch_reason(job)}"}
        elif job.precision not in LOSS_AWAY:
            yield {"kind": "row", "program": f"PyTorch: skipped, it has no {job.precision}"}
        elif not job.over():
            found = run_torch(job, workload, folder, compiled=False)
            yield from found.rows
            yield from _agree(job, ours, found.steps)


def _ours(
    job: Job, built: common.Built, workload: Any, folder: Path, ours: list[tuple[float, float]]
) -> Iterator[Item]:
    from tcomp.runtime.bench.tcomp_program import TcompProgram
    from tcomp.runtime.bench.workload import read_batches
    from tcomp.runtime.cuda.timing import time_programs

    free = job.device.free_memory() or 0
    program = TcompProgram(workload, folder, lambda _: (built.step, job.device))
    executor = program.executor
    try:
        batches = read_batches(workload, folder)
        for number in range(3):
            loss, _ = program.run(*batches[number], number)
            ours.append((loss, float(executor.read("norm"))))
        row: Item = {"kind": "row", "program": f"tcomp {job.precision}, first three steps"}
        texts = {name: ", ".join(f"{pair[i]:.5f}" for pair in ours) for i, name in enumerate(("losses", "norms"))}
        yield row | texts | {"good": bool(np.isfinite(ours).all())}
        losses = []
        for way in ("one graph a program", "launch by launch"):
            program._load(_weights(workload, folder))  # the same steps from the same weights end at the same loss
            ms = time_programs(executor, ("micro_first", "update"), REPEATS if job.real else 1, way.startswith("one"))
            losses.append(float(executor.fetch("loss").value()))
            good = bool(np.isfinite(losses[-1])) and losses[-1] == losses[0]
            row = {"kind": "row", "program": f"tcomp {job.precision}, {way}", "loss": losses[-1], "good": good}
            yield row | (speed(job, built.step, ms) if job.real else {})
        held = free - executor.context.free_memory()
        mib = {"arena, MiB": built.step.arena_bytes / 2**20, "taken beyond the context, MiB": held / 2**20}
        yield {"kind": "row", "program": f"tcomp {job.precision}, memory", **(mib if job.real else {})}
    finally:
        program.close()


def _weights(workload: Any, folder: Path) -> Any:
    from tcomp.runtime.bench.workload import Weights

    return Weights(workload, folder)


def speed(job: Job, step: Step, ms: float) -> Item:
    """As llm.c counts it: 6 FLOPs a parameter and token, and 6 L C T a token for attention; over the bf16 peak."""
    tokens = job.batch * job.length
    parameters = sum(math.prod(step.slots[p.slot].shape) for p in step.parameters)
    flops = tokens * (6 * parameters + 6 * int(step.dims["L"]) * int(step.dims["C"]) * job.length)
    peak = job.device.machine.tensor_rate("bf16") or math.nan
    return {"ms a step": ms, "tokens/s": 1e3 * tokens / ms, "TFLOP/s": flops / ms / 1e9,
            "of the bf16 peak": 1e3 * flops / ms / peak}  # fmt: skip


@contextmanager
def workload_folder(job: Job, dims: Mapping[str, int] | None = None) -> Iterator[tuple[common.Built, Any, Path]]:
    """The step, and weights and batches in a folder that both programs read."""
    from tcomp.runtime.bench.build import workload_of, write_folder

    built = timed_build(job, dims)
    device = f"cuda:{job.device.gpu.index}"
    small = {} if job.real else MICRO
    workload = workload_of(built.step, common.find_file("gpt2"), {**small, **(dims or {})}, device, "", 8)
    with tempfile.TemporaryDirectory(prefix="tcomp-steps-") as folder:
        write_folder(workload, built.step, Path(folder))
        yield built, workload, Path(folder)


def _agree(job: Job, ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> Iterator[Item]:
    """Losses and norms of the gradient of the same steps by the two programs."""
    for number, ((loss, norm), (loss_there, norm_there)) in enumerate(zip(ours, theirs, strict=False), 1):
        away, norm_away = abs(loss / loss_there - 1), abs(norm / norm_there - 1)
        good = away <= LOSS_AWAY[job.precision] and norm_away <= NORM_AWAY
        text = f"loss {loss:.5f} and {loss_there:.5f}, norm of the gradient {norm:.5f} and {norm_there:.5f}"
        yield {"kind": "row", "program": f"step {number}, tcomp beside PyTorch: {text}", "good": good}


def torch_compile(job: Job) -> Iterator[Item]:
    """The vocabulary padded to whole tiles, as written for speed: eager and compiled; then compiled as it is."""
    if torch_reason(job):
        raise Skip(torch_reason(job))
    for dims in ({"V": 50304}, None):
        if job.over() or job.left < 30:
            return
        with workload_folder(job, dims) as (_, workload, folder):
            for compiled in (False, True) if dims else (True,):
                if not job.over():
                    yield from run_torch(job, workload, folder, compiled).rows


# ------------------------------------------------------------------------------------------------ startup


def startup(job: Job) -> Iterator[Item]:
    """From the start of the process to the end of the first step of `tcomp train`: an empty cache, then a full one."""
    import startup as starts

    arguments = ["train", "gpt2", "--config", job.config, "-B", str(job.batch), "-T", str(job.length)]
    arguments += ["--precision", job.precision, "--steps", str(starts.STEPS), "--eval-every", "0", "--save-every", "0"]
    arguments += ["--sample", "0", "--eval-batches", "1", *device_arguments(job.device)]
    arguments += [] if job.real else [a for k, v in MICRO.items() if k != "V" for a in ("--dim", f"{k}={v}")]
    with tempfile.TemporaryDirectory(prefix="tcomp-startup-") as cache:
        for name in ("empty", "full", "full"):
            if job.over():
                return
            stages = starts.tcomp_start(arguments, cache)
            yield {"kind": "row", "cache": name, **({k: v if job.real else "" for k, v in stages.items()})}


def device_arguments(device: CudaDevice) -> list[str]:
    """The same device for a command."""
    if device.virtual is not None:
        return ["--device", "virtual", "--gpu", device.machine.name]
    return ["--device", f"cuda:{device.gpu.index}"]
