"""The shipped schedules' register tiles fit the machine: no accumulator goes to memory inside a contraction's loop."""

from __future__ import annotations

import platform
import re

import pytest

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import Module, Op
from tcomp.dsl.load import load
from tcomp.grad import backward_of
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.lower import lower

_AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2")
_AVX512 = ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
MACHINES = (
    CpuMachine("avx2", _AVX2, 8, 16, 32 << 10, 512 << 10, 32 << 20, 2),
    CpuMachine("avx512", tuple(sorted(_AVX2 + _AVX512)), 16, 32, 32 << 10, 1 << 20, 32 << 20, 2),
)
OPS = {
    "matmul": {"M": 256, "N": 2304, "K": 768},
    "linear_gelu": {"M": 256, "N": 3072, "K": 768},
    "attention": {"B": 4, "T": 256, "H": 12, "D": 64},
}

pytestmark = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 assembly")


@pytest.fixture(scope="module")
def module() -> Module:
    return load("models/gpt2.tc")


def contraction_loops(assembly: str) -> list[str]:
    """Innermost loops that multiply scalars from memory with vectors, nine times a turn or more, and store nothing but
    what they spill."""
    found = []
    for block in re.split(r"\n(?=\.LBB)", assembly):
        back = re.search(rf"\tj\w+\t{re.escape(block.split(':')[0])}\b", block)
        body = block[: back.end()] if back else ""
        scalars = re.search(r"vbroadcastss\t\S*\(|1to\d", body)
        stores = re.search(r"\tvmov\w+\t%[xyz]mm\d+, (?!-?\d*\(%rsp)", body)
        if scalars and not stores and len(re.findall(r"\tvfmadd", body)) >= 9:
            found.append(body)
    return found


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
@pytest.mark.parametrize("name", OPS)
def test_no_vector_register_is_spilled_in_a_contraction(name: str, machine: CpuMachine, module: Module) -> None:
    backward = backward_of(name, module)
    assert backward is not None
    assert sum(loops_without_spill(op, OPS[name], machine, module) for op in (module.ops[name], backward)) >= 3


def test_the_larger_tiles_of_more_queries_fit_sixteen_registers(module: Module) -> None:
    assert loops_without_spill(module.ops["attention"], OPS["attention"] | {"T": 512}, MACHINES[0], module) >= 2


def loops_without_spill(op: Op, dims: dict[str, int], machine: CpuMachine, module: Module) -> int:
    """How many there are in an op's kernels."""
    loops = 0
    for kernel in lower(op, module, dims, machine, threads=2).kernels:
        for loop in contraction_loops(kernel_assembly(kernel, machine)):
            loops += 1
            spilled = re.findall(r"\tv\w+\t.*(?:[xyz]mm\d+, -?\d*\(%rsp\)|\(%rsp\)(?:\{\w+\})?, .*[xyz]mm).*", loop)
            assert not spilled, f"{kernel.name}:\n{loop}"
    return loops


def test_sums_along_vectors_and_exp_keep_to_sixteen_registers(module: Module) -> None:
    """Eight sums of scores with their operands; exp's constants, of which one is loaded each time."""
    dims = OPS["attention"] | {"T": 128}
    (kernel,) = lower(module.ops["attention"], module, dims, MACHINES[0], threads=2).kernels
    blocks = re.split(r"\n(?=\.LBB)", kernel_assembly(kernel, MACHINES[0]))
    scores = [b for b in blocks if len(re.findall(r"\tvfmadd", b)) >= 56 and "vbroadcastss" not in b]
    exps = [b for b in blocks if "\tvpslld\t$23" in b]
    assert scores and exps
    for block in (*scores, *exps):
        assert not re.search(r"ymm\d+, -?\d*\(%rsp\)|\(%rsp\), .*ymm", block), block
    for block in exps:
        assert len(re.findall(r"\tvmovaps\t%ymm\d+, %ymm\d+", block)) <= 4, block
