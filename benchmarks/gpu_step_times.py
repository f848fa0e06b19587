"""Sections of gpu_acceptance.py: how fast is a step, by kernel and whole, beside its prediction and PyTorch?"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_job import Item, Job, Skip, guarded
from gpu_predictions import code_digest, key, load, predicting
from gpu_steps import ONE_LAYER
from gpu_torch import run_torch, torch_reason

from tcomp.autotune.gpu_predict import launches_of
from tcomp.cli import common
from tcomp.cli.limits import cores
from tcomp.ir.tile import Kernel
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.runtime.cuda.device import CudaDevice
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars

REPEATS = 20
LONG = 5.0
"""Milliseconds: what takes longer is repeated a few times only."""
LOSS_AWAY = {"f32": 1e-3, "bf16": 5e-3}
"""Relative, of a loss and of the gradient's norm from PyTorch's on the same weights and batches."""
NORM_AWAY = 0.03


def timed_build(job: Job, dims: Mapping[str, int] | None = None) -> common.Built:
    """The step that is timed; on the virtual GPU a tiny one."""
    small = ONE_LAYER if not job.real else {}
    return common.build_step(
        StepRequest(
            "gpt2",
            job.config,
            {"B": job.batch, "T": job.length},
            dims={**small, **(dims or {})},
            precision=job.precision,
        ),
        job.device,
    )


# ------------------------------------------------------------------------------------------------ kernels


def kernels(job: Job) -> Iterator[Item]:
    """Every distinct kernel of a step where it is first used, so on that step's data: the median of repeats between
    events, the L2 cache flushed before each. Then a step's launches in their turn, L2 as they find it, an event after
    each; what an event takes is told by the same step's graphs."""
    from tcomp.runtime.cuda.timing import ColdClock, time_programs

    machine = job.device.machine
    step = timed_build(job).step
    executor: Any = job.device.open(step)
    clock = ColdClock(job.device.gpu, machine) if job.real else None
    try:
        initialise(executor, 1, cores())
        set_scalars(executor, {})
        fill_batch(executor, np.random.default_rng(0))
        with beforehand(job, executor) as said:
            measured: dict[str, Item] = {}
            for launch, parts in launches(executor):
                work = partial(submit, parts, executor.context.compute)
                if launch.kernel in measured or (measured and job.over()):
                    work()
                    continue
                row: Item = {"times": times(step, launch.kernel), "first use": launch.label}
                if clock is not None:
                    row |= rates(step.kernels[launch.kernel], cold_median(clock, executor, work))
                else:
                    work()
                    work()
                row["blocks x threads"] = ", ".join(f"{p.shape.blocks} x {p.shape.threads}" for p in parts)
                measured[launch.kernel] = row
                yield {"kind": "measured", "kernel": launch.kernel, **row}
            executor.wait()
            turns = in_turn(executor, clock) if clock is not None else {}
            graph = 1e3 * time_programs(executor, ("micro_first", "update"), REPEATS) if job.real else 0.0
            event = max(0.0, sum(turns.values()) - graph) / sum(len(parts) for _, parts in launches(executor))
            yield from _table(job, step, measured, turns, event, said)
    finally:
        if clock is not None:
            clock.close()
        executor.close()


@contextmanager
def beforehand(job: Job, executor: Any) -> Iterator[Callable[[str], Mapping[str, Any] | None]]:
    """What gives a kernel's prediction, or None: from the file, and made meanwhile for code that is not in it."""
    machine, step = job.device.machine, executor.step
    if not job.real:
        yield lambda _: None
        return
    read = load(job.predictions, key(machine.name, job.config, job.batch, job.length, job.precision))
    known = read["kernels"] if read else {}
    code = {name: code_digest(loaded.kernel.ptx) for name, loaded in executor.kernels.items()}
    new = [k for k in launches_of(step) if known.get(k, {}).get("code") != code[k]]
    with predicting(step, new, machine, min(14, cores())) as found:

        def said(name: str) -> Mapping[str, Any] | None:
            if name not in found:
                return known.get(name)
            try:
                return found[name].result(max(0.0, job.left))
            except Exception as e:  # no nvdisasm, say, or no time
                print(f"{name}: not predicted: {type(e).__name__}: {e}", file=sys.stderr)
                return None

        yield said


def _table(
    job: Job, step: Step, measured: dict[str, Item], turns: dict[str, float], event: float,
    said: Callable[[str], Mapping[str, Any] | None],
) -> Iterator[Item]:  # fmt: skip
    """A row for each kernel, those with the greatest share of the step first, and the sums. `event`: us that an event
    after a launch takes."""
    whole, us, predicted_us = sum(turns.values()), 0.0, 0.0
    parts = {name: len(m["blocks x threads"].split(",")) for name, m in measured.items()}
    without = 0.0
    for name in sorted(measured, key=lambda n: -turns.get(n, 0.0)):
        row: Item = {"kind": "row", "kernel": name, **measured[name]}
        if not job.real:
            yield row
            continue
        row["flops"] = step.kernels[name].flops
        prediction = said(name)
        row |= beside(row["us"], prediction)
        us += row["us"] * row["times"]
        predicted_us += row.get("predicted us", math.nan) * row["times"]
        row["us in their turn"] = turns[name] / row["times"]
        row["without events"] = row["us in their turn"] - event * parts[name]
        without += row["without events"] * row["times"]
        yield row | {"share": f"{turns[name] / whole:.1%}"}
    if job.real:
        row = {"kind": "row", "kernel": "the whole step", "times": sum(m["times"] for m in measured.values())}
        row |= {"us": us, "us in their turn": whole, "without events": without, "an event": event}
        if predicted_us == predicted_us:
            row |= {"predicted us": predicted_us, "measured over predicted": us / predicted_us}
        yield row


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
    return float(statistics.median(clock.milliseconds(executor, [work] * (REPEATS if first < LONG else 3))))


def rates(kernel: Kernel, ms: float) -> Item:
    moved = sum(o.bytes for o in kernel.operands)
    return {"us": 1e3 * ms, "TFLOP/s": kernel.flops / ms / 1e9, "GB/s of operands": moved / ms / 1e6}


def beside(us: float, said: Mapping[str, Any] | None) -> Item:
    if said is None:
        return {}
    return {"predicted us": 1e6 * said["seconds"], "measured over predicted": us / 1e6 / said["seconds"],
            "bound by": said["binding"]}  # fmt: skip


TURNS = 5
"""Steps whose medians are taken, behind one that does not count."""
AHEAD = 20
"""Fills before each program, a millisecond: the host is that far ahead, and its first kernels, which are short, do not
wait for it."""


def in_turn(executor: Any, clock: Any) -> dict[str, float]:
    """Microseconds of a step by kernel, all its launches together, the gaps before them and events after them included:
    medians of several steps."""
    turns: dict[str, list[float]] = {}
    for number in range(1 + TURNS):
        took: dict[str, float] = {}
        profiles = []
        for program in ("micro_first", "update"):
            clock.fill(executor, AHEAD)
            profiles += executor.profile(program)
        found = iter([ms for _, ms in profiles])
        for launch, parts in launches(executor):
            took[launch.kernel] = took.get(launch.kernel, 0.0) + 1e3 * sum(next(found) for _ in parts)
        for kernel, us in took.items():
            if number:
                turns.setdefault(kernel, []).append(us)
    return {k: statistics.median(v) for k, v in turns.items()}


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
    workload = workload_of(built.step, built.request, device, threads=8)
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
    """From the start of the process to the end of the first step of `tcomp train`: an empty cache, then a full one
    (twice where there are times)."""
    import startup as starts

    batch = job.batch if job.real else 1
    arguments = ["train", "gpt2", "--config", job.config, "-B", str(batch), "-T", str(job.length)]
    arguments += ["--precision", job.precision, "--steps", str(starts.STEPS), "--eval-every", "0", "--save-every", "0"]
    arguments += ["--sample", "0", "--eval-batches", "1", *device_arguments(job.device)]
    arguments += [] if job.real else [a for k, v in ONE_LAYER.items() if k != "V" for a in ("--dim", f"{k}={v}")]
    with tempfile.TemporaryDirectory(prefix="tcomp-startup-") as cache:
        for name in ("empty", "full", "full") if job.real else ("empty", "full"):
            if job.over():
                return
            stages = starts.tcomp_start(arguments, cache)
            yield {"kind": "row", "cache": name, **({k: v if job.real else "" for k, v in stages.items()})}


def device_arguments(device: CudaDevice) -> list[str]:
    """The same device for a command."""
    if device.virtual is not None:
        return ["--device", "virtual", "--gpu", device.machine.name]
    return ["--device", f"cuda:{device.gpu.index}"]
