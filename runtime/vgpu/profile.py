"""How a warp's accesses fall on 32-byte sectors (global memory) and on the 32 banks (shared memory)."""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, distinct, every, greatest, least


def sectors(start: Array, warp: Array) -> tuple[int, int]:
    """(requests, distinct 32-byte sectors summed over them). One request per warp."""
    requests = int(np.count_nonzero(warp[1:] != warp[:-1])) + 1
    sector = start >> 5
    new = sector[1:] != sector[:-1]
    step = sector[1:] - sector[:-1]
    edge = warp[1:] != warp[:-1]
    if every(step[~edge] >= 0):
        return requests, int(np.count_nonzero(new | edge)) + 1
    return requests, len(distinct(sector + warp * (1 << 42)))


def bank_conflicts(address: Array, thread: Array, size: int) -> tuple[int, int]:
    """(requests, extra passes): a pass serves one word per bank; 16-byte accesses go by quarter-warps."""
    warp = thread >> 5
    requests = int(np.count_nonzero(warp[1:] != warp[:-1])) + 1
    if size > 4:
        warp = warp * (size // 4) + (thread & 31) // (128 // size)
    word = address >> 2
    step = word[1:] - word[:-1]
    edge = warp[1:] != warp[:-1]
    if every((step == size // 4 if size > 4 else (step == 1) | (step == 0)) | edge):
        return requests, 0
    pairs = distinct(warp.astype(np.int64) << 32 | word)
    bank = (pairs >> 32) * 32 + (pairs & 31)
    low, high = least(bank) // 32, greatest(bank) // 32 + 1
    load = np.bincount(bank - 32 * low, minlength=32 * (high - low)).reshape(-1, 32).max(axis=1)
    return requests, int((np.maximum(load, 1) - 1).sum())
