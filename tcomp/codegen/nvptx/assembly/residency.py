"""How many blocks of a kernel share an SM: what the assembler has to know before it gives registers to threads.

Warpgroups whose products go by way of tensor memory issue them and wait for them. Where an SM has columns and shared
memory for another block, and registers enough are left to the threads that compute, the one runs beside the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.nvptx.assembly.occupancy import occupancy, shared_for
from tcomp.codegen.nvptx.emitter import WARPGROUP
from tcomp.codegen.nvptx.layout import pieces_in_tensor_memory
from tcomp.ir.tile import Kernel, Statement
from tcomp.machine.gpu import GpuMachine

ENOUGH = 200
"""registers of a thread that computes, by which nothing spills"""
LEAST = 24
"""registers that a thread has in any case"""


def resident_blocks(kernel: Kernel, machine: GpuMachine, shared: int, columns: int) -> int:
    """Blocks that are to share an SM, of `shared` bytes and so many columns of tensor memory each. One where the
    kernel has none, or moves no registers between its warps."""
    blocks, producer = kernel.gpu, kernel.gpu.producer
    if not columns or producer is None or not producer.registers:
        return 1
    if blocks.order.persistent or blocks.cluster is not None:
        return 1
    threads = blocks.shape.threads + 32 * producer.warps
    most = occupancy(machine, LEAST, threads, shared, columns).blocks
    return next((n for n in range(most, 1, -1) if computing_registers(kernel, machine, n) >= ENOUGH), 1)


def shared_wanted(phase: Sequence[Statement], kernel: Kernel, machine: GpuMachine) -> int:
    """The bytes of shared memory by which an SM holds two blocks of one warpgroup that waits for products by way of
    tensor memory; 0 for other blocks."""
    alone = kernel.gpu.shape.warps == WARPGROUP and kernel.gpu.producer is not None
    return shared_for(machine, 1) - machine.shared_granularity if alone and pieces_in_tensor_memory(phase) else 0


def computing_registers(kernel: Kernel, machine: GpuMachine, resident: int = 1) -> int:
    """Registers of a thread that computes once the producer has given up its own; 0 where none move."""
    producer = kernel.gpu.producer
    if producer is None:
        return 0
    warps = kernel.gpu.shape.warps * kernel.gpu.sides
    return machine.registers_moved(warps, producer.warps, producer.registers, resident)
