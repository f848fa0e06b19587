"""How many blocks of a kernel an SM holds at once, and what limits them.

The rules are those of the CUDA occupancy calculator (`cuda_occupancy.h` in the CUDA toolkit): registers are given to
warps in fixed portions and come from each sub-core's own share; shared memory is rounded up and counts what the
machine keeps for itself per block. Columns of tensor memory, which a block allocates when it runs, are ours to count:
a block for which an SM has too few left waits there, and does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.machine.gpu import GpuMachine


@dataclass(frozen=True)
class Occupancy:
    """`blocks` and `warps` resident per SM; `limit` names what allows no more: registers | shared | threads | blocks |
    columns.

    A kernel that cannot be launched at all has 0 blocks, and `problem` says why.
    """

    blocks: int
    warps: int
    fraction: float
    limit: str
    problem: str = ""


def occupancy(machine: GpuMachine, registers: int, threads: int, shared: int, columns: int = 0) -> Occupancy:
    """For a kernel of `registers` per thread, blocks of `threads`, and `shared` bytes (static + dynamic) and `columns`
    of tensor memory per block."""
    problem = _problem(machine, registers, threads, shared, columns)
    if problem:
        return Occupancy(0, 0, 0.0, problem.split(" ")[0], problem)
    warps = -(-threads // 32)
    limits = {
        "threads": machine.warps_per_sm // warps,
        "registers": _warps_by_registers(machine, registers) // warps,
        "shared": machine.shared_per_sm // _up(shared + machine.shared_reserved, machine.shared_granularity),
        "blocks": machine.blocks_per_sm,
    }
    if columns:
        limits["columns"] = machine.tensor_columns // columns
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    resident = blocks * warps
    return Occupancy(blocks, resident, resident / machine.warps_per_sm, limit)


def shared_for(machine: GpuMachine, blocks: int) -> int:
    """The least shared memory of a block by which an SM holds no more than so many."""
    share = machine.shared_per_sm // (blocks + 1) // machine.shared_granularity + 1
    return share * machine.shared_granularity - machine.shared_reserved


def _problem(machine: GpuMachine, registers: int, threads: int, shared: int, columns: int) -> str:
    """Why no block of the kernel starts; empty when one does."""
    if not 1 <= threads <= machine.threads_per_block:
        return f"threads {threads} in a block, between 1 and {machine.threads_per_block} are possible"
    if shared > machine.shared_per_block:
        return f"shared memory of {shared} bytes, a block has at most {machine.shared_per_block}"
    if columns > machine.tensor_columns:
        return f"columns {columns} of tensor memory for a block, an SM has {machine.tensor_columns}"
    if registers > machine.registers_per_thread:
        return f"registers {registers} per thread, at most {machine.registers_per_thread} are possible"
    # The hardware's check counts a block's warps as if they were dealt to the sub-cores evenly.
    warps = _up(-(-threads // 32), machine.partitions)
    taken = warps * _up(registers * 32, machine.register_granularity)
    if taken > machine.registers_per_block:
        return f"registers {taken} for a block, at most {machine.registers_per_block} are possible"
    return ""


def _warps_by_registers(machine: GpuMachine, registers: int) -> int:
    per_warp = max(1, _up(registers * 32, machine.register_granularity))
    return machine.registers_per_sm // machine.partitions // per_warp * machine.partitions


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
