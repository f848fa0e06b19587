"""What a kernel costs, predicted before anything runs: the roofline of its arithmetic and its operands' bytes.

A GPU's rates are its description's. A CPU does not say its own, so it gets nominal ones (below): such predictions are
for weighing kernels against each other, and are given as shares of a step, not as times.
"""

from __future__ import annotations

from collections.abc import Iterable

from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine

NOMINAL_HZ = 2.5e9
NOMINAL_BANDWIDTH = 12e9
"""Bytes per second of each thread."""
PART_BYTES = 2048
"""Bytes of each column of a part of a tensor: 512 rows in f32. GPT-2's head takes 0.7% longer in two such parts of 1024
rows, 2.5% in four of 256."""
CHEAP_PASSES = 3.5
"""On a CPU a result is computed again rather than kept where that moves at most so many bytes for each byte of it."""


def rates(machine: CpuMachine | GpuMachine, threads: int) -> tuple[float, float]:
    """FLOP/s in f32 and bytes/s."""
    if isinstance(machine, GpuMachine):
        return machine.f32_flops, machine.memory_bandwidth
    return threads * machine.lanes_f32 * 4 * NOMINAL_HZ, threads * NOMINAL_BANDWIDTH


def cheap_price(machine: CpuMachine | GpuMachine, threads: int) -> float:
    """Seconds per byte up to which a result is computed again though no memory budget asks for it. None on a GPU, whose
    step moves more bytes for its arithmetic: there a pass over memory counts."""
    return 0.0 if isinstance(machine, GpuMachine) else CHEAP_PASSES / rates(machine, threads)[1]


def part_rows(machine: CpuMachine | GpuMachine, itemsize: int) -> int:
    """Rows of a result of `itemsize` bytes a value from which on its weight can be read for each such part beside the
    multiplication, and the weight's gradient added to; 0: whole, on a GPU, whose products take all rows at once."""
    return 0 if isinstance(machine, GpuMachine) else PART_BYTES // itemsize


def predicted_seconds(kernels: Iterable[Kernel], machine: CpuMachine | GpuMachine, threads: int) -> float:
    """The kernels one after another, each bound by arithmetic or by memory."""
    flops, bandwidth = rates(machine, threads)
    return sum(max(k.flops / flops, sum(b.bytes for b in k.operands) / bandwidth) for k in kernels)
