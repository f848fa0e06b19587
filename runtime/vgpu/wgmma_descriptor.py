"""The shared-memory matrix descriptor of wgmma (PTX ISA 9.7.15.5.1.2): 64 bits -> where each 16-byte chunk lies.

Every operand of one instruction is 32 bytes wide along K, whatever its type, and all layouts move whole
16-byte chunks, so an operand is a table of chunk offsets: (MN rows, 2) for K-major, (16 k, MN / 8) for MN-major.
Offsets are added to the start address, and the swizzle then exchanges chunks by bits 7 to 9 of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from tcomp.runtime.vgpu.lanes import Array

CHUNK = 16
SWIZZLE_BYTES = {0: 0, 1: 128, 2: 64, 3: 32}
USED_BITS = 0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 7 << 49 | 3 << 62


@dataclass(frozen=True)
class Layout:
    """All of a descriptor but its start address: byte strides, base offset (0 to 7), swizzle width in bytes."""

    leading: int
    stride: int
    base: int
    width: int


def start_of(descriptor: Array) -> Array:
    """Start addresses (bytes in the block's shared memory) of uint64 descriptors."""
    found: Array = (descriptor & np.uint64(0x3FFF)).astype(np.int64) << 4
    return found


def layout_of(descriptor: int) -> Layout:
    return Layout(
        (descriptor >> 16 & 0x3FFF) << 4,
        (descriptor >> 32 & 0x3FFF) << 4,
        descriptor >> 49 & 7,
        SWIZZLE_BYTES[descriptor >> 62 & 3],
    )


def unused_bits(descriptor: int) -> int:
    """The bits that must be zero and are not."""
    return descriptor & ~USED_BITS


@cache
def chunk_offsets(layout: Layout, extent: int, transposed: bool, size: int = 2) -> Array:
    """Byte offsets from the start address, before swizzling, of an operand with `extent` rows along M or N, of elements
    of `size` bytes.

    K-major gives (extent, 2); MN-major (1 or 2 bytes) gives (32 / size, extent * size / 16). Follows the canonical
    layouts of the PTX ISA: strides between 8-row groups (SBO) and between chunks or panels (LBO) swap roles by layout.
    """
    if not transposed:
        row, c = np.arange(extent)[:, None], np.arange(2)[None, :]
        if layout.width:
            return row % 8 * layout.width + row // 8 * layout.stride + c * CHUNK
        return row % 8 * CHUNK + row // 8 * layout.stride + c * layout.leading
    k, q = np.arange(32 // size)[:, None], np.arange(extent * size // CHUNK)[None, :]
    if layout.width:
        per = layout.width // CHUNK
        return q % per * CHUNK + q // per * layout.leading + k % 8 * layout.width + k // 8 * layout.stride
    return q * layout.stride + k % 8 * CHUNK + k // 8 * layout.leading


def swizzle(address: Array, width: int, base: int = 0) -> Array:
    """Byte addresses after the XOR swizzle; the pattern's first row is at 128-byte line `base` (mod 8)."""
    if not width:
        return address
    line = (address >> 7) - base
    found: Array = address ^ ((line & (width // CHUNK - 1)) << 4)
    return found


def chunk_addresses(start: Array, layout: Layout, extent: int, transposed: bool, size: int = 2) -> Array:
    """(operands, rows, chunks) byte addresses for operands that begin at `start`."""
    offsets = chunk_offsets(layout, extent, transposed, size)
    return swizzle(start.reshape(-1, 1, 1) + offsets, layout.width, layout.base)
