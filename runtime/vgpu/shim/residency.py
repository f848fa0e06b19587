"""How many blocks of a function an SM holds, for the occupancy calls."""

from __future__ import annotations

from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.runtime.vgpu.shim.modules import Function


def blocks_per_sm(function: Function, threads: int, dynamic: int) -> int:
    """Resident blocks of `threads` threads with `dynamic` bytes of dynamic shared memory; 0 when none fits."""
    shared = function.static_shared + dynamic
    return occupancy(function.module.context.device.model, function.registers, threads, shared).blocks


def best_block_size(function: Function, dynamic: int, limit: int) -> tuple[int, int]:
    """The largest block size that keeps the most threads resident, and the grid that fills the GPU with it."""
    most = min(limit or 1024, function.max_threads)
    sizes = list(range(32, most + 1, 32)) or [most]
    best = max(sizes, key=lambda t: (blocks_per_sm(function, t, dynamic) * t, t))
    return best, blocks_per_sm(function, best, dynamic) * function.module.context.device.model.sms
