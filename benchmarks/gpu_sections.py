"""The sections of gpu_acceptance.py, each run in a process of its own: `gpu_sections.py SECTION NOTES.jsonl ...`.

A section is a generator of items (a dict per row of its table); each is written down at once. It ends early, and says
so, when its time is used up.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_families import attention, fp8, products
from gpu_job import AGAIN, Item, Job, Lost, Skip
from gpu_step_times import kernels, startup, step_time, torch_compile
from gpu_steps import ONE_LAYER, TOLERANCE, precisions, step
from gpu_sweep import sweep_attention, sweep_fp8, sweep_products
from gpu_train import train, train_large

from tcomp.cli import common
from tcomp.dsl.ast import DType, Module, Op
from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tcomp.runtime.cuda.device import CudaDevice


def machine(job: Job) -> Iterator[Item]:
    """What all that follows was measured on."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    gpu, m = job.device.gpu, job.device.machine
    about = (
        f"driver for CUDA {gpu.driver_version // 1000}.{gpu.driver_version % 1000 // 10}, "
        f"{m.sms} SMs, {gpu.memory_bytes / 2**30:.0f} GiB; "
        + ", ".join(installed(n) for n in ("tcomp", "cuda-python", "nvidia-nvjitlink", "llvmlite", "torch"))
        + f"; {platform.platform()}"
    )
    yield {"kind": "machine", "device": job.device.description, "about": about}


# ------------------------------------------------------------------------------------------- correctness


def ops(job: Job) -> Iterator[Item]:
    yield from _ops(job, DType.F32)


def ops_bf16(job: Job) -> Iterator[Item]:
    yield from _ops(job, DType.BF16)


def _ops(job: Job, dtype: DType) -> Iterator[Item]:
    """Every op of gpt2.tc at awkward sizes, first all at one shape, then at another while there is time."""
    from tcomp.cli.check import _ops as all_ops
    from tcomp.dsl.storage import bound
    from tcomp.runtime.awkward import awkward_dims

    module = common.load_module("gpt2")
    found = [bound(op, dtype) for op in all_ops(module, None)]
    for trial in range(3 if job.real else 1):
        for op in found:
            if job.over():
                return
            random = np.random.default_rng([trial, len(op.name), *op.name.encode()])
            dims = awkward_dims(op, module, random)
            if dims is not None:
                yield _op(job, op, module, dims, trial)


def _op(job: Job, op: Op, module: Module, dims: dict[str, int], seed: int) -> Item:
    from tcomp.dsl.errors import TcError
    from tcomp.runtime.verify import rounding, verify_op

    before = len(job.device.findings())
    row: Item = {"kind": "row", "op": op.name, "sizes": ", ".join(f"{k}={v}" for k, v in dims.items())}
    try:
        errors = {c.what.split()[-1]: c.error for c in verify_op(op, module, dims, job.device, seed)}
    except (UserError, TcError) as e:
        return row | {"error": str(e).splitlines()[0], "good": False}
    worst = max(errors, key=lambda n: errors[n])
    row |= {"worst": worst, "relative error": errors[worst], "findings": len(job.device.findings()) - before}
    return row | {"good": errors[worst] <= TOLERANCE + rounding(op) and not row["findings"]}


# ------------------------------------------------------------------------------------------------- tuning


def tuning(job: Job) -> Iterator[Item]:
    """A search over the products of a step, every candidate checked and timed; on the virtual GPU two candidates of one
    of them, whose times mean nothing."""
    from tcomp.autotune.backend_cuda import CudaBackend
    from tcomp.autotune.evaluator import serve
    from tcomp.autotune.judge_measured import MeasuredJudge
    from tcomp.autotune.plan import Plan
    from tcomp.autotune.report import study_reports
    from tcomp.autotune.search import Search, Shown
    from tcomp.autotune.storage import open_storage

    precision, machine = "bf16", job.device.machine
    overrides = {} if job.real else ONE_LAYER
    request = StepRequest("gpt2", job.config, {"B": job.batch, "T": job.length}, overrides, precision)
    module = common.load_module("gpt2", precision)
    budget = max(1.0, job.deadline - time.monotonic() - 3) if job.real else None
    plan = Plan(request, budget, None if job.real else 2, ("linear*",) if job.real else ("linear",))
    if not job.real:  # a simulator would take minutes for the copies of operands and the flushes of a real L2
        machine = replace(machine, l2_bytes=1 << 10)
    with tempfile.TemporaryDirectory() as folder:
        trials = open_storage(Path(folder) / "trials.sqlite3")
        backend = CudaBackend(machine, str(job.device.gpu.index), job.device.cache)
        target = serve if job.real else partial(_serve_virtual, job.device.machine.name)
        judge = MeasuredJudge(module, backend, 0, Path(folder) / "measuring", target)
        lock = Path(folder) / "gpt2.lock"
        Search(module, backend, plan, judge, trials, lock, Shown(common.note)).run()
        for found in study_reports(trials, machine.name):
            row: Item = {"kind": "row", "kernel": found.label}
            row |= {"candidates": ", ".join(f"{n} {k}" for k, n in sorted(found.kinds.items()) if k != "repeated")}
            row |= {"why not": "; ".join(reason for reason, _ in found.reasons.most_common(2))}
            row |= {"good": not found.kinds["wrong"] and not found.kinds["crash"]}
            if job.real:
                row |= {"default, us": found.default_seconds * 1e6, "best over default": found.best or 1.0}
                row |= {"rank correlation of the model": "-" if found.correlation is None else found.correlation}
            yield row


def _serve_virtual(gpu: str, pipe: Any, subject: Any) -> None:
    """The candidates' process on a virtual GPU."""
    from tcomp.autotune.evaluator import serve
    from tcomp.runtime.vgpu.shim import install

    install(gpu)
    serve(pipe, subject)


# --------------------------------------------------------------------------------------------------- main

SECTIONS: dict[str, Callable[[Job], Iterator[Item]]] = {
    f.__name__: f
    for f in (machine, ops, sweep_products, sweep_attention, sweep_fp8, ops_bf16, products, attention, fp8, tuning,
              step, precisions, kernels, step_time, train, train_large, startup, torch_compile)
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=sorted(SECTIONS))
    parser.add_argument("notes", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpu", default="")
    parser.add_argument("--config", default="124M")
    parser.add_argument("--setting", default="16x1024")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--predictions", type=Path, help="file of gpu_predictions.py")
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--skip", type=int, default=0, help="cases that are done")
    parser.add_argument("--family-predictions", type=Path, help="file of gpu_cases.py")
    args = parser.parse_args()
    deadline = time.monotonic() + args.limit
    gc.set_threshold(100_000, 50, 10)  # as the command line has it: compilers make trees by the million and few cycles
    with args.notes.open("a") as notes:

        def note(item: Item) -> None:
            notes.write(json.dumps(item) + "\n")
            notes.flush()

        try:
            device = common.device_for(args.device, gpu=args.gpu)
            assert isinstance(device, CudaDevice)
            real = device.kind == "cuda"
            b, t = (int(v) for v in args.setting.split("x")) if real else (2, 16)
            known = json.loads(args.family_predictions.read_text()) if args.family_predictions else {}
            config = args.config if real else "tiny"
            job = Job(device, config, b, t, deadline, args.skip, known, args.precision, args.predictions)
            for item in SECTIONS[args.section](job):
                note(item)
        except Skip as e:
            note({"kind": "end", "skipped": str(e)})
        except Lost:
            os._exit(AGAIN)  # (a library that gives its memory back in a lost context may abort)
        except UserError as e:
            sys.exit(str(e))
        else:
            note({"kind": "end", "cut": job.cut})


if __name__ == "__main__":
    main()
