"""What the static model says of every kernel of a step, made ahead for gpu_acceptance.py, which takes it beside times.

    python benchmarks/gpu_predictions.py [--gpu h100] [--config 124M] [--setting 16x1024]
        [--precisions bf16,fp8,fp8_block] [--out benchmarks/results/gpu_predictions.json]

Half a minute a precision on one core: every kernel is assembled, disassembled and read. No GPU is needed. Kernels that
have other code by then are predicted anew where they are timed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tcomp.cli import common
from tcomp.cli.limits import cores
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import GpuMachine, machine_named
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.runtime.cache import cache_folder

DEFAULT = Path(__file__).resolve().parent / "results" / "gpu_predictions.json"


def code_digest(ptx: str) -> str:
    """Tells whether a kernel that is timed is the one that was predicted."""
    return hashlib.sha256(ptx.encode()).hexdigest()[:12]


def predict_one(kernel: Kernel, machine: GpuMachine, before: float, most: float) -> dict[str, Any]:
    """Seconds of a kernel, what binds it, FLOPs, bytes of device memory, digest of its code. `before`: bytes
    that others left in L2 for memory, `most`: hertz at most. UserError where it cannot be assembled or disassembled."""
    from tcomp.autotune.gpu_predict import predict_kernel
    from tcomp.runtime.cuda.kernels import compile_all

    cache = cache_folder("kernels")
    ptx = compile_all({kernel.name: kernel}, machine, cache)[kernel.name].ptx
    k = predict_kernel(kernel, machine, cache, before, most)
    return {
        "seconds": k.seconds, "binding": k.binding, "flops": sum(p.flops for p in k.launches),
        "bytes": sum(p.hbm_bytes for p in k.launches), "code": code_digest(ptx),
    }  # fmt: skip


@contextmanager
def predicting(
    step: Step, names: Iterable[str], machine: GpuMachine, workers: int
) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """Predictions of a step's kernels by name, each behind what it runs behind there, made in other processes
    meanwhile."""
    from tcomp.autotune.gpu_predict import behind, clock_in

    left, most, wanted = behind(step, machine), clock_in(step, machine), list(names)
    pool = ProcessPoolExecutor(max(1, min(workers, len(wanted))), mp_context=get_context("spawn"))
    try:
        yield {name: pool.submit(predict_one, step.kernels[name], machine, left[name], most) for name in wanted}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def predicted(step: Step, machine: GpuMachine, workers: int = 1) -> dict[str, Any]:
    """`seconds` of the step and its `kernels` by name, each with its launches a step."""
    from tcomp.autotune.gpu_predict import launches_of

    counts = launches_of(step)
    with predicting(step, counts, machine, workers) as found:
        kernels = {name: {"launches": n, **found[name].result()} for name, n in counts.items()}
    return {"seconds": sum(k["seconds"] * k["launches"] for k in kernels.values()), "kernels": kernels}


def key(machine: str, config: str, batch: int, length: int, precision: str) -> str:
    return f"{machine} gpt2 {config} {batch}x{length} {precision}"


def load(path: Path | None, wanted: str) -> Mapping[str, Any] | None:
    """The predictions under that key; None where there are none."""
    if path is None or not path.is_file():
        return None
    found: Mapping[str, Any] | None = json.loads(path.read_text()).get(wanted)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--config", default="124M")
    parser.add_argument("--setting", default="16x1024", help="BxT")
    parser.add_argument("--precisions", default="bf16,fp8,fp8_block")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    args = parser.parse_args()
    from tcomp.cli.build_gpu import TargetDevice

    machine = machine_named(args.gpu)
    batch, length = (int(v) for v in args.setting.split("x"))
    found = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for precision in args.precisions.split(","):
        built = common.build_step(
            StepRequest("gpt2", args.config, {"B": batch, "T": length}, precision=precision),
            TargetDevice(machine),
        )
        name = key(machine.name, args.config, batch, length, precision)
        found[name] = predicted(built.step, machine, cores())
        print(f"{name}: {found[name]['seconds'] * 1e3:.2f} ms, {len(found[name]['kernels'])} kernels", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
