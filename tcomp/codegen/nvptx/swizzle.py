"""Addresses in swizzled tiles: [panel][row][width bytes], 16-byte granules exchanged by an exclusive or with row bits.

    byte = panel * panel_bytes + row * width + (column_byte % width ^ granule)
    granule = ((row * width >> 7) & (width / 16 - 1)) << 4

The granule changes no bit outside the row's own `width` bytes, so the three parts are added after it was applied.
What is known at compile time stays a number.
"""

from __future__ import annotations

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.ir.tile import Buffer, Swizzled

PATTERN_ROWS = 8
"""Rows after which granules are exchanged alike again, at every width."""


def granule_of(em: GpuEmitter, layout: Swizzled, row: Int) -> Int:
    """What the column bytes of a row are combined with by exclusive or."""
    shift, mask = 7 - (layout.width.bit_length() - 1), layout.width // 16 - 1
    if isinstance(row, int):
        return (row >> shift & mask) << 4
    b = em.builder
    turned = b.lshr(row, em.i64(shift)) if shift else row
    return b.shl(b.and_(turned, em.i64(mask)), em.i64(4))


def column_bytes(em: GpuEmitter, buffer: Buffer, layout: Swizzled, column: Int, granule: Int) -> Int:
    """Byte offset of an element of a row from where the row begins in the first panel."""
    width = layout.width
    panel_bytes = layout.panel_rows(buffer.shape) * width
    at = em.mul(column, buffer.dtype.bytes)
    b = em.builder
    if isinstance(at, int):
        panel: Int = at // width * panel_bytes
        inside: Int = at % width
    elif buffer.shape[-1] * buffer.dtype.bytes > width:
        panel = em.mul(b.lshr(at, em.i64(width.bit_length() - 1)), panel_bytes)
        inside = b.and_(at, em.i64(width - 1))
    else:
        panel, inside = 0, at
    if isinstance(inside, int) and isinstance(granule, int):
        return em.add(panel, inside ^ granule)
    return em.add(panel, b.xor(em.i64(inside), em.i64(granule)))
