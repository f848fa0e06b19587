"""Hand-built tile kernels, run on the CPU as its instruction set levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tcomp.dsl.ast import DType, Name, Num
from tcomp.errors import UserError
from tcomp.ir.tile import Axis, Buffer, Kernel, Panels, RowMajor, Scope, Statement
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.runtime.cpu.single import SingleKernel
from tests.reference.tile_ir import fn, op

LEVELS = ("avx512bf16", "avx512", "avx2", "sse2", "neon", "generic")
Arrays = dict[str, np.ndarray]


def _machines() -> list[CpuMachine]:
    found = []
    for level in LEVELS:
        try:
            found.append(detect(level))
        except UserError:
            continue
    return found


MACHINES = _machines()
F32_MACHINES = [m for m in MACHINES if m.name != "avx512bf16"]
"""For kernels without bf16: of the two levels that differ in its instructions alone, one."""
Case = TypeVar("Case")


def dealt(cases: Sequence[Case], machines: Sequence[CpuMachine], ways: int = 3) -> list[tuple[Case, CpuMachine]]:
    """Every case on the first machine, and on each other one every third of them (or by so many `ways`), from another
    on: for what follows from the case, and of the machine has only the instructions."""
    return [(c, m) for i, m in enumerate(machines) for n, c in enumerate(cases) if i == 0 or n % ways == i % ways]


def shown(value: object) -> str:
    """A case's or a machine's name in a test's."""
    return value.name if isinstance(value, CpuMachine) else str(value)


def scratch(name: str, *shape: int, layout: RowMajor | Panels = RowMajor(), dtype: DType = DType.F32) -> Buffer:
    return Buffer(name, dtype, shape, Scope.SCRATCH, layout)


def axis(name: str, extent: int, unroll: int = 1, lanes: int = 1) -> Axis:
    return Axis(name, Num(0), Num(extent), extent, unroll, lanes)


def tile_axis(name: str, block: int, limit: int, unroll: int = 1, lanes: int = 1) -> Axis:
    """start = name.0, stop = min(name.0 + block, limit)."""
    start = Name(name + ".0")
    return Axis(name, start, fn("min", op("+", start, block), limit), block, unroll, lanes)


def kernel(operands: list[Buffer], body: list[Statement], tiles: tuple[Buffer, ...] = ()) -> Kernel:
    names = frozenset(b.name for b in operands)
    return Kernel("test", tuple(operands), tiles, (tuple(body),), names, names)


def run(k: Kernel, machine: CpuMachine, objects: Path, inputs: Arrays, threads: int = 1) -> Arrays:
    with SingleKernel(k, machine, threads, objects) as single:
        for name, value in inputs.items():
            single.array(name)[...] = value
        single.run()
        return {b.name: single.array(b.name).copy() for b in k.operands}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
