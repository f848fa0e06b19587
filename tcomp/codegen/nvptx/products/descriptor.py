"""Matrix descriptors: how wgmma and tcgen05 are told where a swizzled tile in shared memory begins and how it goes on.

    bits 0-13 address   16-29 leading offset   32-45 stride offset   (bytes / 16)
    62-63 swizzle (wgmma)     46-48 0b001, 61-63 swizzle (tcgen05)

    along k     stride: from 8 rows to the next 8; k goes on by 32 bytes, then by panels
    across k    stride: from 8 rows (of k) to the next 8; leading: from panel to panel (of the other index)

Tiles begin at multiples of 1024 bytes and instruction tiles at multiples of 8 rows, so the base offset is 0.
Source: PTX ISA, "Matrix Descriptor Format" and "Strides" of wgmma, "Shared memory descriptor" of tcgen05.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.instructions.declaration import Home
from tcomp.instructions.matching import Operand
from tcomp.ir.tile import Swizzled

_MODES = {128: 1 << 30, 64: 2 << 30, 32: 3 << 30}
_TENSOR_MODES = {128: 2 << 29 | 1 << 14, 64: 4 << 29 | 1 << 14, 32: 6 << 29 | 1 << 14}
"""bytes of a swizzle -> the bits of the upper half that say so"""
GROUP = 8
"""rows after which a core matrix ends"""
ADDRESS = 0x3FFF
"""the bits of a descriptor that its encoded address takes"""


def encoded(offset: int) -> int:
    return offset >> 4 & ADDRESS


@dataclass(frozen=True)
class Descriptors:
    """The descriptors of one operand: `high` is their upper half, `low` is added to the encoded address."""

    operand: Operand
    high: int
    low: int
    panel: int
    """bytes of a panel"""
    width: int
    """bytes of its rows"""

    def offset(self, at: int, k: int) -> int:
        """What to add to the lower half for the instruction tile that begins at (at, k)."""
        row, column = (at, k) if self.operand.along_k else (k, at)
        panels, inside = divmod(column * self.operand.buffer.dtype.bytes, self.width)
        if row % GROUP or (inside and not self.operand.along_k):
            raise Unsupported(f"a matrix operand begins amid a panel of '{self.operand.buffer.name}'",
                              self.operand.factor.access.span)  # fmt: skip
        return encoded(panels * self.panel + row * self.width + inside)


def descriptors(o: Operand, home: Home = Home.REGISTERS) -> Descriptors:
    """Of an operand in a swizzled tile, for instructions whose sums have that home."""
    layout = o.buffer.layout
    assert isinstance(layout, Swizzled)
    panel = layout.panel_rows(o.buffer.shape) * layout.width
    modes = _TENSOR_MODES if home is Home.TENSOR_MEMORY else _MODES
    high = encoded(GROUP * layout.width) | modes[layout.width]
    leading = 1 if o.along_k else encoded(panel)
    return Descriptors(o, high, leading << 16, panel, layout.width)
