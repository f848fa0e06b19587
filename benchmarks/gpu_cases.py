"""Ops of the tensor-core families at the sizes that gpu_families.py times, lowered and predicted without a GPU.

python benchmarks/gpu_cases.py PREDICTIONS.json [--gpu h100]      the static model's seconds of every kernel
"""

from __future__ import annotations

import argparse
import json
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from predicted_fp8 import FORMS, LONGEST, SHAPE as FP8
from published_attention import CHANNELS, SHAPES, TOKENS, without_mask

from tcomp.autotune.gpu_conditions import flushed
from tcomp.autotune.gpu_predict import predict_kernel
from tcomp.codegen.nvptx.assembly.assemble import assemble_all
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.load import library, load_text
from tcomp.dsl.storage import bound
from tcomp.errors import UserError
from tcomp.grad import backward_of
from tcomp.machine.gpu import GpuMachine, machine_named
from tcomp.runtime.cache import cache_folder
from tcomp.runtime.cuda.kernels import compile_all
from tcomp.schedule.lower import LoweredOp, lower


@dataclass(frozen=True)
class Case:
    """An op of the library's file `ops/<file>.tc` at some dimensions. `full`: without attention's mask. `longest`: the
    sums that are not promoted (`fp8.tc`; 0: as shipped). `tf32`: the products of f32 by the matrix unit."""

    file: str
    op: str
    dims: tuple[tuple[str, int], ...]
    dtype: DType = DType.BF16
    full: bool = False
    longest: int = 0
    tf32: bool = False

    def __str__(self) -> str:
        kind = "tf32" if self.tf32 else self.dtype.value
        notes = [kind, *(["full"] if self.full else []), *(["never promoted"] if self.longest else [])]
        return f"{self.op} {' '.join(f'{n}{x}' for n, x in self.dims)} {', '.join(notes)}"

    @property
    def backward(self) -> bool:
        return self.op.endswith(".backward")

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.dims)


@dataclass(frozen=True)
class Prepared:
    """A case ready to be run: `predicted` has seconds of each kernel."""

    lowered: LoweredOp
    predicted: dict[str, float]


def case(file: str, op: str, dtype: DType = DType.BF16, **dims: int) -> Case:
    return Case(file, op, tuple(dims.items()), dtype)


GPT2 = ((2304, 768), (768, 768), (3072, 768), (768, 3072), (50304, 768))
"""outputs and inputs of GPT-2 124M's layers, the vocabulary padded as its model has it"""
PRODUCTS = tuple(
    case("linear", f"matmul{suffix}", M=m, N=n, K=k)
    for m, n, k in ((4096, 4096, 4096), (8192, 8192, 8192), *((16384, n, k) for n, k in GPT2))
    for suffix in ("", ".backward")
)
ATTENTION = (
    *(
        Case("attention", "attention.backward" if backward else "attention",
             (("B", 1), ("T", TOKENS), ("H", CHANNELS // head), ("D", head)), full=not causal)
        for backward, head, causal in SHAPES
    ),
    *(case("attention", f"attention{suffix}", B=16, T=1024, H=12, D=64) for suffix in ("", ".backward")),
)  # fmt: skip
EIGHT_BITS = tuple(
    Case("fp8_block" if "block" in op else "fp8", op,
         tuple({**FP8, **({} if "block" in op else {"H": 16})}.items()), longest=longest)
    for op, _, longest in FORMS
)  # fmt: skip


@cache
def module_of(case: Case) -> Module:
    """The library's file as the case has it."""
    path = library() / "ops" / f"{case.file}.tc"
    text = path.read_text()
    if case.longest:
        text = LONGEST.sub(f"tune longest = {case.longest}", text)
    if case.full:
        text = without_mask(text)
    if case.tf32:  # an f32 is two bf16 values long
        text = re.sub(r"use wgmma for", "use wgmma.tf32 for", text).replace(
            "KC = 64 from 64, 128", "KC = 32 from 32, 64"
        )
    return load_text(text, str(path))


def op_of(case: Case) -> Op:
    """The op, its `real` operands of the case's type."""
    module = module_of(case)
    found = module.ops.get(case.op) or backward_of(case.op.removesuffix(".backward"), module)
    if found is None:
        raise UserError(f"there is no op {case.op}")
    return bound(found, case.dtype)


def built(case: Case, machine: GpuMachine, cache: Path | None) -> LoweredOp:
    """The case lowered, its kernels' machine code in the cache."""
    lowered = lower(op_of(case), module_of(case), case.sizes, machine)
    compiled = compile_all({k.name: k for k in lowered.kernels}, machine, cache)
    assemble_all([(ptx, machine.target) for ptx in dict.fromkeys(c.ptx for c in compiled.values())], cache)
    return lowered


def prepare(machine: GpuMachine, cache: Path | None, known: dict[str, dict[str, float]], case: Case) -> Prepared:
    """Lowered, compiled, and predicted unless that is known, behind a fill of L2; no predictions where nvdisasm is not
    installed."""
    lowered = built(case, machine, cache)
    if str(case) in known:
        return Prepared(lowered, known[str(case)])
    if cuda_tool("nvdisasm") is None:
        return Prepared(lowered, {})
    found = [predict_kernel(k, machine, cache, flushed(machine)) for k in lowered.kernels]
    return Prepared(lowered, {p.name: p.seconds for p in found if p.counted})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpu", default="h100")
    args = parser.parse_args()
    cases = (*PRODUCTS, *ATTENTION, *EIGHT_BITS)
    with ProcessPoolExecutor() as pool:
        work = partial(prepare, machine_named(args.gpu), cache_folder("kernels"), {})
        found = {str(c): p.predicted for c, p in zip(cases, pool.map(work, cases), strict=True)}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
