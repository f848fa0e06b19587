"""The same step in PyTorch on the same GPU, for gpu_step_times.py: GPT-2 with fused AdamW, eager or torch.compile.

bf16 is autocast, and what stays f32 may use TF32, as llm.c's comparison has it. f32 is f32, without TF32.
"""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_job import Item, Job

STEPS, WARM = 23, 3


@dataclass
class TorchRun:
    """`steps`: loss and norm of the gradient of each."""

    rows: list[Item] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)


def torch_reason(job: Job) -> str:
    """Why PyTorch cannot run here, or nothing."""
    if not job.real:
        return "there is no GPU for it"
    try:
        import torch
    except ImportError as e:
        return f"it is not installed ({e})"
    return "" if torch.cuda.is_available() else "it was built without CUDA, or finds no GPU"


def run_torch(job: Job, workload: Any, folder: Path, compiled: bool) -> TorchRun:
    """Some steps, timed by events on the GPU; a failure is a row with its reason."""
    name = f"PyTorch {'compile' if compiled else 'eager'}"
    name += ", bf16 autocast, TF32 allowed" if workload.dtype == "bf16" else ", f32"
    name += f", vocabulary {workload.dims['V']}"
    found = TorchRun()
    try:
        found.rows.append({"kind": "row", "program": name, **_steps(job, workload, folder, compiled, found)})
    except Exception as e:
        traceback.print_exc()
        said = " ".join(str(e).split())
        found.rows.append({"kind": "row", "program": f"{name}: {type(e).__name__}: {said[:300]}"})
    return found


def _steps(job: Job, workload: Any, folder: Path, compiled: bool, found: TorchRun) -> Item:
    import torch

    from tcomp.runtime.bench.torch_program import TorchProgram
    from tcomp.runtime.bench.workload import read_batches

    gpu = workload.device.startswith("cuda")
    free = 0
    if gpu:
        torch.zeros(1, device=workload.device)  # the context, which is not counted
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        free = torch.cuda.mem_get_info()[0]
    if compiled:
        torch._dynamo.reset()  # nothing of another vocabulary's program, whose size would become a variable
    program = TorchProgram(workload, folder, compiled)
    if workload.dtype == "bf16":
        torch.set_float32_matmul_precision("high")
    norms: list[Any] = []
    clip = program.clip

    def noting(parameters: Any, limit: float) -> Any:
        norms.append(clip(parameters, limit))
        return norms[-1]

    program.clip = noting
    batches = read_batches(workload, folder)
    seconds, first = [], 0.0
    for number in range(STEPS if gpu else 2):
        began = time.perf_counter()
        loss, took = program.run(*batches[number % len(batches)], number)
        found.steps.append((float(loss), float(norms[-1]) if norms else float("nan")))
        first = first or time.perf_counter() - began
        seconds.append(took or 0.0)
        if len(seconds) > WARM + 2 and job.over():
            break
    ms = 1e3 * statistics.median(seconds[WARM:] or seconds)
    item: Item = {"loss": found.steps[-1][0], "ms a step": ms, "tokens/s": 1e3 * workload.tokens / ms}
    item["first step, s"] = first
    if gpu:
        item |= {"allocated, MiB": torch.cuda.max_memory_allocated() / 2**20,
                 "reserved, MiB": torch.cuda.max_memory_reserved() / 2**20,
                 "taken beyond the context, MiB": (free - torch.cuda.mem_get_info()[0]) / 2**20}  # fmt: skip
    del program
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
    return item
