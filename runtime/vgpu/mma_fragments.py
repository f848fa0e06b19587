"""Register fragments of mma.sync <-> matrices (PTX ISA 9.7.14.5.1 to 9.7.14.5.13), for all warps at once.

One rule covers every shape but the f16 m8n8k4: with lane = 4 g + t, a register of A holds neighbouring columns of
row g or g + 8, registers run through the 8-row halves first and then along K. B is the same with N for rows.
C and D hold two neighbouring columns of each half. So fragments turn into matrices by transposing axes.
"""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu import formats
from tcomp.runtime.vgpu.lanes import Array
from tcomp.runtime.vgpu.matrix_numbers import values


def multiplicand(raw: Array, halves: int, kind: str) -> Array:
    """(registers, lanes) uint32 or uint64 -> (warps, 8 halves, K) values; `halves` is 2 for A of m16, else 1."""
    r = raw.reshape(-1, halves, raw.shape[1] // 32, 8, 4)
    by_row = np.ascontiguousarray(r.transpose(2, 1, 3, 0, 4))
    return values(by_row.view(np.uint8).reshape(by_row.shape[0], 8 * halves, -1), kind)


def accumulator(raw: Array, kind: str) -> Array:
    """(registers, lanes) bits -> (warps, 8 or 16, 8) values of f16 (as f32), f32, s32 or f64."""
    if kind == "f16":
        pairs = formats.from16(np.ascontiguousarray(raw)[..., None].view(np.uint16), "f16")
        by_element = pairs.reshape(len(raw), -1, 8, 4, 2).transpose(1, 0, 2, 3, 4)
    else:
        typed = np.ascontiguousarray(raw).view({"f32": np.float32, "s32": np.int32, "f64": np.float64}[kind])
        by_element = typed.reshape(len(raw) // 2, 2, -1, 8, 4).transpose(2, 0, 3, 4, 1)
    rows = by_element.shape[1] * 8
    return np.ascontiguousarray(by_element).reshape(-1, rows, 8)


def accumulator_registers(matrix: Array, kind: str) -> Array:
    """The inverse of `accumulator`: (warps, rows, 8) values -> (registers, lanes) bits."""
    halves = matrix.shape[1] // 8
    split = matrix.reshape(-1, halves, 8, 4, 2)
    if kind == "f16":
        bits = np.ascontiguousarray(formats.to16(split, "f16")).view(np.uint32)[..., 0]
        return np.ascontiguousarray(bits.transpose(1, 0, 2, 3)).reshape(halves, -1)
    ordered = np.ascontiguousarray(split.transpose(1, 4, 0, 2, 3))
    return ordered.view(np.uint64 if kind == "f64" else np.uint32).reshape(2 * halves, -1)


# --- the f16 m8n8k4: four products in a warp, each by lanes 4 q .. 4 q + 3 and 16 more
def _quads() -> tuple[Array, Array, Array]:
    """(product, position in its quad, low or high group) of each lane."""
    lane = np.arange(32)
    return lane % 16 // 4, lane % 4, lane // 16


def small_multiplicand(raw: Array, contiguous: bool) -> Array:
    """(2, lanes) of f16 pairs -> (warps, 4 products, 8 rows of M or N, 4 of K). `contiguous`: a register runs along
    K (A row-major, B column-major), else along M or N."""
    pairs = formats.from16(np.ascontiguousarray(raw)[..., None].view(np.uint16), "f16")
    elements = pairs.transpose(1, 0, 2).reshape(-1, 32, 4)
    product, position, high = (x[:, None] for x in _quads())
    i = np.arange(4)[None, :]
    out = np.zeros((len(elements), 4, 8, 4), np.float32)
    if contiguous:
        out[:, product, position + 4 * high, i] = elements
    else:
        out[:, product, i + 4 * high, position] = elements
    return out


def small_places(kind: str) -> tuple[Array, Array, Array]:
    """(product, row, column) of each lane's eight accumulators of the f16 m8n8k4."""
    product, position, high = (x[:, None] for x in _quads())
    i = np.arange(8)[None, :]
    if kind == "f16":
        return product, position + 4 * high + 0 * i, i + 0 * position
    return product, (position & 1) + (i & 2) + 4 * high, (i & 4) + (position & 2) + (i & 1)
