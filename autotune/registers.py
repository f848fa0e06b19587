"""Register pressure of a CPU kernel's register tiles, from tile IR: what would spill is not worth compiling.

A tile of MR x NV vectors keeps its accumulators, the NV vectors of one operand and one broadcast value of the other in
registers; with MR = 1 operands are used as they are loaded. Held against the assembly of LLVM 22 on AVX2, GEMM tiles
from 12 to 15 accumulators spill exactly where this count exceeds 16 (a tail of a tile that is no divisor may spill too,
which costs little: it runs once).
"""

from __future__ import annotations

import math

from tcomp.ir.tile import Compute, Kernel
from tcomp.ir.walk import computes
from tcomp.machine.cpu import CpuMachine


def registers_of(c: Compute) -> int:
    """Vector registers that a reduction's register tile needs."""
    unrolls = [(a.unroll, a.lanes > 1) for a in c.axes if a.name not in c.reduced]
    accumulators = math.prod(u for u, _ in unrolls)
    vectors = math.prod(u for u, vector in unrolls if vector)
    return accumulators + (vectors if vectors < accumulators else 1) + 1


def pressure(kernel: Kernel) -> int:
    """The most that any reduction of the kernel needs."""
    return max((registers_of(c) for phase in kernel.phases for c in computes(phase) if c.reduced), default=0)


def spill_of(kernel: Kernel, default: Kernel, machine: CpuMachine) -> str:
    """Why the kernel would spill where the default does not; empty when it fits."""
    needed = pressure(kernel)
    if needed <= max(machine.vector_registers, pressure(default)):
        return ""
    return f"its register tile needs {needed} vector registers, operands included; there are {machine.vector_registers}"
