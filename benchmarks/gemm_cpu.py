"""Matrix products at GPT-2 124M's shapes: tcomp's kernels as a share of this machine's measured FMA peak.

    python benchmarks/gemm_cpu.py [--rows 256 1024] [--threads 2] [--only up] [--json FILE]

Each Linear layer has three products: forward Y = X W^T, dX = dY W and dW = dY^T X. tcomp's are the scheduled
`matmul` of models/ops/linear.tc, run through the same lowering and executor as a training step, packing
included; PyTorch's are torch.mm into a given result. The peak is measured again beside every case, since a
shared machine's clock moves; the share is of that peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from tcomp.dsl.ast import Module
from tcomp.dsl.load import load
from tcomp.grad import backward_of
from tcomp.grad.accumulate import restricted
from tcomp.machine.cpu import detect
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.ceilings import fma_peak
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower

LINEAR = Path(__file__).resolve().parent.parent / "models" / "ops" / "linear.tc"
LAYERS = {
    "qkv": (2304, 768),
    "proj": (768, 768),
    "up": (3072, 768),
    "down": (768, 3072),
    "head": (50304, 768),
}
"""Layer -> (outputs N, inputs K)."""
PASSES = ("forward", "dX", "dW")


@dataclass
class Row:
    """One product: GFLOP/s of both programs and of the FMA peak measured beside them."""

    layer: str
    which: str
    M: int
    N: int
    K: int
    peak: float
    tcomp: float
    torch: float


def arrays(m: int, n: int, k: int) -> dict[str, np.ndarray]:
    """Operands by the names that the op and its backward use."""
    rng = np.random.default_rng(0)
    shapes = {"X": (m, k), "W": (n, k), "dY": (m, n)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def tcomp_product(
    module: Module, which: str, data: dict[str, np.ndarray], m: int, n: int, k: int, threads: int, cache: Path
) -> tuple[Callable[[], None], Callable[[], np.ndarray], Callable[[], None]]:
    """Functions that run the product once, give its result, and free it."""
    machine = detect()
    op = module.ops["matmul"]
    if which != "forward":
        backward = backward_of("matmul", module)
        assert backward is not None
        op = restricted(backward, frozenset({which}))
    dims = {"M": m, "N": n, "K": k}
    lowered = lower(op, module, dims, machine, threads=threads)
    executor = CpuExecutor(single_op_step(lowered, dims), machine, threads, cache)
    for kernel in lowered.kernels:
        for name in kernel.reads:
            if name in data:
                executor.array(name)[...] = data[name]
    result = {"forward": "Y"}.get(which, which)
    return lambda: executor.run("run"), lambda: np.array(executor.array(result)), executor.close


def torch_product(which: str, data: dict[str, np.ndarray]) -> tuple[Callable[[], None], torch.Tensor]:
    """A function that runs torch's product once, and where its result goes."""
    x, w, dy = (torch.from_numpy(data[name]) for name in ("X", "W", "dY"))
    left, right = {"forward": (x, w.t()), "dX": (dy, w), "dW": (dy.t(), x)}[which]
    out = torch.empty(left.shape[0], right.shape[1])

    def run() -> None:
        torch.mm(left, right, out=out)

    return run, out


def rate(run: Callable[[], None], flops: float, seconds: float) -> float:
    """Median GFLOP/s over repetitions that fill `seconds`."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return flops / statistics.median(times) / 1e9


def measure(module: Module, layer: str, which: str, m: int, threads: int, seconds: float, cache: Path) -> Row:
    """One row: tcomp and torch in turns, twice, the better turn of each kept."""
    n, k = LAYERS[layer]
    data = arrays(m, n, k)
    ours, result, close = tcomp_product(module, which, data, m, n, k, threads, cache)
    theirs, wanted = torch_product(which, data)
    flops = 2.0 * m * n * k
    rates: dict[str, list[float]] = {"peak": [], "tcomp": [], "torch": []}
    for _ in range(2):
        rates["peak"].append(fma_peak(threads, seconds=0.03, repetitions=5).median)
        rates["tcomp"].append(rate(ours, flops, seconds))
        rates["torch"].append(rate(theirs, flops, seconds))
        time.sleep(0.05)  # torch's worker threads go on spinning for a while
    error = np.linalg.norm(result() - wanted.numpy()) / np.linalg.norm(wanted.numpy())
    close()
    if not error < 1e-5:
        raise SystemExit(f"{layer} {which}: the two programs' results differ by {error:.1e} relative")
    return Row(layer, which, m, n, k, **{name: max(found) for name, found in rates.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024], help="B * T")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    parser.add_argument("--seconds", type=float, default=0.4, help="spent on each program's turn")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module = load(LINEAR)
    rows: list[Row] = []
    print(f"GFLOP/s, f32, {args.threads} threads; share = of the FMA peak measured beside each case")
    print(f"{'layer':6}{'pass':9}{'M':>6}{'N':>7}{'K':>6}{'peak':>9}{'tcomp':>9}{'share':>7}{'torch':>9}{'share':>7}")
    with tempfile.TemporaryDirectory(prefix="gemm_cpu-") as folder:
        for m in args.rows:
            for layer in args.only:
                for which in args.passes:
                    r = measure(module, layer, which, m, args.threads, args.seconds, Path(folder))
                    rows.append(r)
                    print(
                        f"{r.layer:6}{r.which:9}{r.M:6}{r.N:7}{r.K:6}{r.peak:9.1f}{r.tcomp:9.1f}"
                        f"{r.tcomp / r.peak:7.0%}{r.torch:9.1f}{r.torch / r.peak:7.0%}",
                        flush=True,
                    )
    for which in args.passes:
        shares = [r.tcomp / r.peak for r in rows if r.which == which]
        print(f"{which}: {min(shares):.0%} to {max(shares):.0%} of the peak")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
