"""The sections of gpu_acceptance.py, each run in a process of its own: `gpu_sections.py SECTION NOTES.jsonl ...`.

A section is a generator of items (a dict per row of its table); each is written down at once. It ends early, and says
so, when its time is used up.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
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
from gpu_sweep import sweep_attention, sweep_fp8, sweep_products

from tcomp.cli import common
from tcomp.dsl.ast import DType, Module, Op
from tcomp.errors import UserError
from tcomp.runtime.cuda.device import CudaDevice

TOLERANCE = 1e-4
"""Relative L2 distance from the oracle, in f32."""
MICRO = {"L": 2, "H": 2, "C": 32, "V": 61, "S": 16}
LOSS_TOLERANCE = 1e-5
"""Relative difference of a loss from the CPU backend's."""


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
    from tcomp.runtime.verify import awkward_dims

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


def step(job: Job) -> Iterator[Item]:
    """A few training steps of a micro GPT-2: losses beside the CPU's, and the same bits in a second run."""
    from tcomp.runtime.verify import verify_step

    steps = 4
    cpu = _losses(common.device_for("cpu", threads=1), steps)
    first = _losses(job.device, steps)
    findings = len(job.device.findings())
    for number, (ours, theirs) in enumerate(zip(first, cpu, strict=True), 1):
        away = abs(ours - theirs) / abs(theirs)
        yield {"kind": "row", "what": f"loss of step {number}", "GPU": f"{ours:.7f}", "CPU": f"{theirs:.7f}",
               "relative difference": away, "good": away <= LOSS_TOLERANCE}  # fmt: skip
    again = _losses(job.device, steps)
    yield {"kind": "row", "what": "a second run", "GPU": "the same bits" if again == first else "other bits",
           "good": again == first}  # fmt: skip
    yield {"kind": "row", "what": "findings of the checks", "GPU": str(findings), "good": not findings}
    if job.over():
        return
    built = common.build_step("gpt2", "tiny", 2, 11, dims=MICRO, device=job.device)
    executor = job.device.open(built.step)
    try:
        _start(executor)
        for found in verify_step(executor, common.load_module("gpt2"), 2, 11, MICRO):
            yield {"kind": "row", "what": f"{found.what}, against the oracle", "relative difference": found.error,
                   "good": found.error <= TOLERANCE}  # fmt: skip
    finally:
        executor.close()


def _start(executor: Any) -> None:
    """Fresh parameters without zero biases (a fault in them must show) and gentle hyperparameters."""
    from tcomp.runtime.initialise import initialise
    from tcomp.runtime.train import set_scalars

    initialise(executor, 1, 1)
    random = np.random.default_rng(0)
    for parameter in executor.step.parameters:
        start = executor.read(parameter.slot)
        executor.write(parameter.slot, start + random.normal(0, 0.1, start.shape))
    set_scalars(executor, {"peak_lr": 1e-2, "warmup": 1.0, "eps": 1e-3})


def _losses(device: Any, steps: int) -> list[float]:
    built = common.build_step("gpt2", "tiny", 2, 16, dims=MICRO, device=device)
    executor = device.open(built.step)
    try:
        _start(executor)
        random = np.random.default_rng(7)
        readings = []
        for number in range(steps):
            executor.write("step", number)
            with executor.batch() as inputs:
                run = random.integers(0, MICRO["V"], (2, 17), dtype=np.int32)
                inputs["tokens"][...], inputs["targets"][...] = run[:, :-1], run[:, 1:]
            executor.run("micro_first")
            readings.append(executor.fetch("loss"))
            executor.run("update")
        return [float(r.value()) for r in readings]
    finally:
        executor.close()


# ------------------------------------------------------------------------------------------------- times


def kernels(job: Job) -> Iterator[Item]:
    """Every distinct kernel of a step: median of repeats between events, the L2 cache flushed before each."""
    from tcomp.runtime.cuda.timing import time_launch

    built, executor = _timed_step(job)
    try:
        seen: set[str] = set()
        m = job.device.machine
        for program in ("micro_first", "update"):
            executor.run(program)
            executor.wait()
            bound = iter(executor.programs[program])
            for launch in built.step.programs[program]:
                parts = [next(bound) for _ in executor.kernels[launch.kernel].functions]
                if launch.kernel in seen or job.over():
                    continue
                seen.add(launch.kernel)
                kernel = built.step.kernels[launch.kernel]
                grids = ", ".join(f"{p.shape.blocks} x {p.shape.threads}" for p in parts)
                row: Item = {
                    "kind": "row",
                    "kernel": launch.kernel,
                    "first use": launch.label,
                    "blocks x threads": grids,
                }
                if not job.real:
                    yield row
                    continue
                ms = sum(time_launch(executor, part, 20) for part in parts)
                moved = sum(o.bytes for o in kernel.operands)
                bound_ms = 1e3 * max(kernel.flops / m.f32_flops, moved / m.memory_bandwidth)
                yield row | {"microseconds": ms * 1e3, "TFLOP/s": kernel.flops / ms / 1e9, "GB/s": moved / ms / 1e6,
                             "part of the f32 roofline": bound_ms / ms}  # fmt: skip
    finally:
        executor.close()


def step_time(job: Job) -> Iterator[Item]:
    """The whole step as a graph and launch by launch; then the same model in PyTorch on the same GPU."""
    from tcomp.runtime.cuda.timing import time_programs

    _, executor = _timed_step(job)
    tokens = job.batch * job.length
    try:
        programs = ("micro_first", "update")
        losses = []
        for way in ("one graph a program", "launch by launch"):
            _start(executor)  # both do the same steps from the same parameters, so they end at the same loss
            ms = time_programs(executor, programs, 10 if job.real else 1, graph=way.startswith("one"))
            loss = float(executor.fetch("loss").value())
            losses.append(loss)
            good = bool(np.isfinite(loss)) and loss == losses[0]
            row: Item = {"kind": "row", "program": f"tcomp, {way}", "loss": loss, "good": good}
            yield row | ({"ms a step": ms, "tokens/s": 1e3 * tokens / ms} if job.real else {})
    finally:
        executor.close()
    yield from _torch(job, tokens)


def _timed_step(job: Job) -> tuple[common.Built, Any]:
    dims = {} if job.real else MICRO
    built = common.build_step("gpt2", job.config, job.batch, job.length, dims=dims, device=job.device)
    executor = job.device.open(built.step)
    _start(executor)
    random = np.random.default_rng(0)
    with executor.batch() as inputs:
        for name, array in inputs.items():
            array[...] = random.integers(0, built.step.inputs[name] or 2, array.shape)
    return built, executor


def _torch(job: Job, tokens: int) -> Iterator[Item]:
    """Eager and compiled steps, in f32 (no TF32) and bf16 autocast."""
    if not job.real:
        yield {"kind": "row", "program": "PyTorch: skipped, there is no GPU for it"}
        return
    try:
        import torch
    except ImportError:
        yield {"kind": "row", "program": "PyTorch: skipped, it is not installed"}
        return
    if not torch.cuda.is_available():
        yield {"kind": "row", "program": "PyTorch: skipped, it was built without CUDA"}
        return
    from tcomp.runtime.bench.build import workload_of, write_folder
    from tcomp.runtime.bench.torch_program import TorchProgram
    from tcomp.runtime.bench.workload import read_batches

    built = common.build_step("gpt2", job.config, job.batch, job.length, device=job.device)
    device = f"cuda:{job.device.gpu.index}"
    workload = workload_of(built.step, common.find_file("gpt2"), {}, device, "", 4)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(workload, built.step, Path(folder))
        batch = read_batches(workload, Path(folder))[0]
        for compiled, dtype in ((False, "f32"), (True, "f32"), (True, "bf16")):
            if job.over():
                return
            name = f"torch {'compile' if compiled else 'eager'}, {'bf16 autocast' if dtype == 'bf16' else dtype}"
            try:
                program = TorchProgram(replace(workload, dtype=dtype), Path(folder), compiled)
                found = []
                for number in range(13):
                    found.append(program.run(*batch, number))
                    if len(found) > 3 and job.over():
                        break
            except RuntimeError as e:
                yield {"kind": "row", "program": f"{name}: {str(e).splitlines()[0]}"}
                continue
            ms = 1e3 * statistics.median(seconds or 0.0 for _, seconds in found[3:])
            yield {"kind": "row", "program": name, "loss": found[-1][0], "ms a step": ms, "tokens/s": 1e3 * tokens / ms}


# ------------------------------------------------------------------------------------------------- tuning


def tuning(job: Job) -> Iterator[Item]:
    """A search over the products of a step, every candidate checked and timed; on the virtual GPU two candidates of one
    of them, whose times mean nothing."""
    from tcomp.autotune.backend_cuda import CudaBackend
    from tcomp.autotune.evaluator import serve
    from tcomp.autotune.instances import StepShape
    from tcomp.autotune.judge_measured import MeasuredJudge
    from tcomp.autotune.plan import Plan
    from tcomp.autotune.report import study_reports
    from tcomp.autotune.search import Search
    from tcomp.autotune.storage import open_storage

    precision, machine = "bf16", job.device.machine
    overrides = {} if job.real else {**MICRO, "L": 1}
    shape = StepShape(job.config, job.batch, job.length, 1, overrides, precision)
    module = common.load_module("gpt2", precision)
    budget = max(1.0, job.deadline - time.monotonic() - 3) if job.real else None
    plan = Plan(shape, budget, None if job.real else 2, ("linear*",) if job.real else ("linear",))
    if not job.real:  # a simulator would take minutes for the copies of operands and the flushes of a real L2
        machine = replace(machine, l2_bytes=1 << 10)
    with tempfile.TemporaryDirectory() as folder:
        trials = open_storage(Path(folder) / "trials.sqlite3")
        backend = CudaBackend(machine, str(job.device.gpu.index), job.device.cache)
        target = serve if job.real else partial(_serve_virtual, job.device.machine.name)
        judge = MeasuredJudge(module, backend, 0, Path(folder) / "measuring", target)
        lock = Path(folder) / "gpt2.lock"
        Search(module, "gpt2", machine, 1, plan, judge, trials, lock, lambda text: print(text, file=sys.stderr)).run()
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
    for f in (machine, ops, step, sweep_products, sweep_attention, sweep_fp8, ops_bf16, products, attention, fp8,
              kernels, step_time, tuning)
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=sorted(SECTIONS))
    parser.add_argument("notes", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpu", default="")
    parser.add_argument("--config", default="124M")
    parser.add_argument("--setting", default="4x1024")
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--skip", type=int, default=0, help="cases that are done")
    parser.add_argument("--family-predictions", type=Path, help="file of gpu_cases.py")
    args = parser.parse_args()
    deadline = time.monotonic() + args.limit
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
            job = Job(device, args.config if real else "tiny", b, t, deadline, args.skip, known)
            for item in SECTIONS[args.section](job):
                note(item)
        except Skip as e:
            note({"kind": "end", "skipped": str(e)})
        except Lost:
            sys.exit(AGAIN)
        except UserError as e:
            sys.exit(str(e))
        else:
            note({"kind": "end", "cut": job.cut})


if __name__ == "__main__":
    main()
