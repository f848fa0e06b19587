"""What adding in the tensor core costs 8-bit products in accuracy on Hopper, with and without promotion to f32.

    python benchmarks/fp8_accumulation.py

The shipped sm_90a schedule of `matmul_fp8` (models/ops/fp8.tc), once with no sum promoted and once with all, on the
virtual GPU, whose matrix unit keeps 14 bits of such sums (docs/virtual-gpu.md). Relative L2 errors against the exact
sums of the rounded values, and what rounding the values themselves costs. `shipped`: which of the two that length gets.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from tcomp.autotune.virtual_run import execute
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.load import library, load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import H100
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower

ROWS, COLUMNS = 64, 64
LARGEST = 5.6
"""deviations that are scaled to e4m3's largest value, 448"""
LINE = re.compile(r"tune longest = (\d+)")
"""of the schedule: the longest sum that is not promoted"""
Array = np.ndarray


def text() -> str:
    return (library() / "ops" / "fp8.tc").read_text()


@cache
def product(longest: int) -> tuple[Op, Module]:
    """`matmul_fp8` with f32 results, and its module, where sums of more than `longest` products are promoted."""
    module = load_text(LINE.sub(f"tune longest = {longest}", text()), str(library() / "ops" / "fp8.tc"))
    return bound(module.ops["matmul_fp8"], DType.F32), module


def result(longest: int, inputs: dict[str, Array], dims: dict[str, int]) -> Array:
    op, module = product(longest)
    return execute(op, lower(op, module, dims, H100), inputs, H100)["Y"]


def distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main() -> None:
    rng = np.random.default_rng(0)
    shipped = int(LINE.findall(text())[0])
    print(f"{'mean/deviation':>14} {'K':>6} {'14 bits':>9} {'promoted':>9} {'rounding the values':>20} {'shipped':>9}")
    for mean in (0.0, 0.5):
        for k in (768, 2048, 3072, 16384):
            x, w = ((rng.standard_normal((n, k)) + mean).astype(np.float32) for n in (ROWS, COLUMNS))
            history = np.full((3, 16), LARGEST, np.float32)
            inputs = {"X": x, "W": w, "h": history}
            dims = {"M": ROWS, "N": COLUMNS, "K": k, "H": 16}
            op, module = product(shipped)
            exact = evaluate(op, module, inputs, dims)["Y"]
            plain, promoted = (distance(result(n, inputs, dims), exact) for n in (k, 1))
            rounding = distance(exact, x.astype(np.float64) @ w.T.astype(np.float64))
            choice = "promoted" if k > shipped else "14 bits"
            print(f"{mean:14} {k:6} {plain:9.1e} {promoted:9.1e} {rounding:20.1e} {choice:>9}", flush=True)


if __name__ == "__main__":
    main()
