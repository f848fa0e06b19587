"""Sections of gpu_acceptance.py: the commands as a user gives them: `tcomp train`, `--resume`, `tcomp generate`.

As a program of its own (`gpu_train.py train gpt2 ...`) it is the command `tcomp`, in the environment of its parent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_job import Item, Job, guarded
from gpu_step_times import device_arguments

GAP = 0.08
"""Nats, of the mean loss of the last 30 steps from the CPU's in f32 (0.011 between precisions on the CPU)."""


class Failed(Exception):
    """A command ended with another code than 0; the end of what it said."""


def tcomp(*arguments: str, limit: float | None = None) -> tuple[str, float]:
    """Run the command; what it printed, and seconds. Failed where it did not end well, TimeoutExpired after `limit`
    seconds."""
    began = time.monotonic()
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False, env=environment,
        timeout=limit,
    )  # fmt: skip
    sys.stderr.write(done.stderr)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise Failed(f"tcomp {arguments[0]} ended with {done.returncode}: {said}")
    return done.stdout, time.monotonic() - began


def losses(run: Path) -> list[float]:
    return [x["loss"] for x in lines(run) if "loss" in x]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(job: Job) -> Iterator[Item]:
    """The small model on the text that `tcomp train` has by itself, beside the CPU in f32; a resumed run; a sample."""
    steps = 400 if job.real else 2
    common = ["train", "gpt2", "--config", "tiny", "--steps", str(steps), "--sample", "0", "--eval-every", "0"]
    common += ["--save-every", str(steps // 2), "--eval-batches", "10" if job.real else "1"]
    if not job.real:
        common += ["--dim", "L=1", "--dim", "H=2", "--dim", "C=32", "-B", "1", "-T", "16"]
    device = device_arguments(job.device)
    with tempfile.TemporaryDirectory(prefix="tcomp-train-") as base:
        gpu, cpu, again = (Path(base) / name for name in ("gpu", "cpu", "again"))
        told: Item = {"kind": "row"}
        out, seconds = tcomp(*common, *device, "--precision", job.precision, "--run", str(gpu))
        found = losses(gpu)
        row = told | {"what": f"{steps} steps, {job.precision}", "result": last_step(out)}
        took = {"seconds": seconds, "ms a step": step_ms(gpu)} if job.real else {}
        yield row | took | {"good": len(found) == steps and bool(np.isfinite(found).all())}
        yield from guarded({"what": "resumed"}, _resumed(job, gpu, again, steps))
        yield from guarded({"what": "generate"}, _generated(job, gpu, device))
        if not job.over():
            yield from guarded({"what": "the CPU"}, _beside_cpu(job, common, cpu, found))


def last_step(out: str) -> str:
    """The last line of progress that the command printed."""
    return next((line for line in reversed(out.splitlines()) if line.startswith("step ") and "tokens/s" in line), "")


def step_ms(run: Path) -> float:
    """Median milliseconds of a step as the command has them, without the first few."""
    seconds = [float(x["seconds"]) for x in lines(run) if "seconds" in x]
    return 1e3 * statistics.median(seconds[5:] or [math.nan])


def _resumed(job: Job, run: Path, again: Path, steps: int) -> Iterator[Item]:
    """A copy of the run that knows nothing after its middle goes on to the same bits."""
    half, end = (f"step-{n:06d}" for n in (steps // 2, steps))
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / end)
    tcomp("train", "--resume", str(again))
    one, two = (
        hashlib.sha256((r / "checkpoints" / end / "tensors.safetensors").read_bytes()).hexdigest() for r in (run, again)
    )
    good = one == two and losses(run) == losses(again)
    text = "the same bits at the end" if good else "other bits at the end"
    yield {"kind": "row", "what": f"resumed from {half}", "result": text, "good": good}


def _generated(job: Job, run: Path, device: list[str]) -> Iterator[Item]:
    out, seconds = tcomp("generate", str(run), *device, "-n", "120" if job.real else "4", "--temperature", "0")
    row: Item = {"kind": "row", "what": "generate, likeliest tokens", "result": repr(out[:160])}
    yield row | ({"seconds": seconds} if job.real else {}) | {"good": out.startswith("def ")}


def _beside_cpu(job: Job, common: list[str], run: Path, found: list[float]) -> Iterator[Item]:
    try:
        tcomp(*common, "--device", "cpu", "--precision", "f32", "--run", str(run), limit=max(1.0, job.left))
    except subprocess.TimeoutExpired:  # no fault of the GPU's
        job.cut = True
        return
    wanted = losses(run)
    last = slice(-30, None) if len(wanted) > 60 else slice(-1, None)
    ours, theirs = float(np.mean(found[last])), float(np.mean(wanted[last]))
    fell = len(wanted) < 60 or theirs < wanted[0] - 1
    text = f"{ours:.4f}; CPU in f32 {theirs:.4f}"
    yield {"kind": "row", "what": f"loss at the end, {found[0]:.3f} at first", "result": text,
           "good": abs(ours - theirs) <= GAP and fell}  # fmt: skip
    yield {"kind": "losses", "GPU": found, "CPU": wanted}


def train_large(job: Job) -> Iterator[Item]:
    """The timed configuration for a while, by the command."""
    steps, batch = (50, job.batch) if job.real else (2, 1)  # (as `train` has it there, whose kernels are at hand)
    arguments = ["train", "gpt2", "--config", job.config, "-B", str(batch), "-T", str(job.length)]
    arguments += ["--precision", job.precision, "--steps", str(steps), "--sample", "0", "--eval-every", "0"]
    arguments += ["--save-every", "0", "--eval-batches", "1", *device_arguments(job.device)]
    if not job.real:
        arguments += ["--dim", "L=1", "--dim", "H=2", "--dim", "C=32"]
    with tempfile.TemporaryDirectory(prefix="tcomp-train-") as base:
        run = Path(base) / "run"
        out, seconds = tcomp(*arguments, "--run", str(run))
        found = losses(run)
        row: Item = {"kind": "row", "what": f"{steps} steps of {job.config}, {job.precision}", "result": last_step(out)}
        if job.real:
            ms = step_ms(run)
            row |= {"seconds": seconds, "ms a step": ms, "tokens/s": 1e3 * job.batch * job.length / ms}
        row |= {"first loss": found[0], "last loss": found[-1]}
        yield row | {"good": bool(np.isfinite(found).all()) and (not job.real or found[-1] < found[0] - 1)}
        yield {"kind": "losses", "GPU": found}


if __name__ == "__main__":
    from tcomp.__main__ import main

    sys.argv[0] = "tcomp"
    main()
