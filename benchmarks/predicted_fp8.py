"""The 8-bit matrix products as the static model predicts them on an H100, beside DeepGEMM's published figures.

    python benchmarks/predicted_fp8.py [--gpu h100] [--set BM=128 --set BN=128 --set S=4]

No GPU is needed and nothing is timed: the shipped schedules' kernels are assembled and their machine code is read.
Only the product's kernel counts, as in the published figures: operands are quantised before it. Published: DeepGEMM's
README, 1358 TFLOP/s at its first release and up to 1550 later, on an H800 (an H100's matrix units).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping

from tcomp.autotune.gpu_predict import KernelPrediction, predict_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import library, load_text
from tcomp.dsl.storage import bound
from tcomp.errors import UserError
from tcomp.machine.gpu import GpuMachine, machine_named
from tcomp.runtime.cache import cache_folder
from tcomp.schedule.lower import lower

PUBLISHED = (1358, 1550)
SHAPE = {"M": 4096, "N": 7168, "K": 16384}
"""that of DeepGEMM's first figure"""
FLOPS = 2.0 * SHAPE["M"] * SHAPE["N"] * SHAPE["K"]
"""of the product alone, whatever scaling costs"""
FORMS = (
    ("matmul_fp8_block", "a scale for each block (as DeepGEMM)", 0),
    ("matmul_fp8_block.backward", "its gradients", 0),
    ("matmul_fp8", "a scale for each tensor, promoted (as shipped)", 0),
    ("matmul_fp8.backward", "its gradients", 0),
    ("matmul_fp8", "a scale for each tensor, never promoted", 1 << 30),
    ("matmul_fp8.backward", "its gradients", 1 << 30),
)
"""op, what it is, and the longest sum that is not promoted to f32 (0: as the shipped schedule says)"""
LONGEST = re.compile(r"tune longest = \d+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a schedule's parameter")
    args = parser.parse_args()
    chosen = {n: int(x) for n, x in (s.split("=", 1) for s in args.set)}
    try:
        machine = machine_named(args.gpu)
        rows = [row for name, title, n in FORMS for row in products(name, title, machine, chosen, n)]
    except UserError as error:
        sys.exit(str(error))
    print(f"fp8 {SHAPE['M']} x {SHAPE['N']} x {SHAPE['K']} on {machine.label}: predicted, nothing is measured")
    print(f"{'':62}{'TFLOP/s':>9}  of {PUBLISHED[0]}  of {PUBLISHED[1]}  bound by")
    for title, p in rows:
        rate = FLOPS / p.seconds / 1e12
        print(f"{title:62}{rate:9.0f}{rate / PUBLISHED[0]:9.0%}{rate / PUBLISHED[1]:9.0%}  {p.binding}")


def products(
    name: str, title: str, machine: GpuMachine, chosen: Mapping[str, int | float], longest: int = 0
) -> list[tuple[str, KernelPrediction]]:
    """The kernels of an op that are matrix products, predicted. UserError where one cannot be assembled."""
    file = library() / "ops" / ("fp8_block.tc" if "block" in name else "fp8.tc")
    text = file.read_text()
    module = load_text(LONGEST.sub(f"tune longest = {longest}", text) if longest else text, str(file))
    dims = dict(SHAPE) if "block" in name else {**SHAPE, "H": 16}
    lowered = lower(bound(module.ops[name], DType.BF16), module, dims, machine, chosen=chosen)
    found = []
    for kernel in lowered.kernels:
        output = kernel.name.rpartition(".")[2]
        if output in ("Y", "dX", "dW"):
            found.append((f"{output}: {title}", predict_kernel(kernel, machine, cache_folder("kernels"))))
    return found


if __name__ == "__main__":
    main()
