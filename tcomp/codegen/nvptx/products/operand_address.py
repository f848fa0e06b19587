"""Addresses of a matrix operand's rows in shared memory: what depends on the lane once at the kernel's entry, the rest
as numbers behind it.

    plain tiles      lane part + (rows * pitch + columns) * size
    swizzled tiles   lane part, one for each place in a panel, + rows * width + panels * panel bytes

Instruction tiles begin at multiples of 8 rows, after which a swizzle repeats, so a row's granule is the lane's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I8, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.products.fragments import subscript_start
from tcomp.codegen.nvptx.swizzle import column_bytes, granule_of
from tcomp.codegen.nvptx.threads.addressing import strides
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.instructions.layout import Step
from tcomp.instructions.matching import Operand
from tcomp.ir.tile import Axis, Swizzled


class OperandAddress:
    """Addresses within one operand. `left`: it is A, whose rows in the instruction are the axis's values."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, operand: Operand, axis: Axis, k: Axis, left: bool) -> None:
        self.em, self.scope, self.operand, self.axis, self.k, self.left = em, scope, operand, axis, k, left
        self.buffer = operand.buffer
        self.size = self.buffer.dtype.bytes
        row, column = strides(self.buffer)
        self.across, self.deep = (row, column) if operand.along_k else (column, row)

    @property
    def panel(self) -> int:
        """Elements of k in one panel, where k runs along the rows of a swizzled tile; else 1."""
        layout = self.buffer.layout
        return layout.width // self.size if isinstance(layout, Swizzled) and self.operand.along_k else 1

    def lane(self, lanes: Sequence[Step], at: int, base: Int, k: int, within: Step = (0, 0)) -> tuple[IrValue, int]:
        """This lane's pointer, and a number of bytes to add to it. `at` and `base + k` are where the instruction's tile
        begins (`base` a multiple of `panel`); `lanes` is what the bits of the lane's number add to its row and column,
        `within` what all lanes add."""
        em, name, layout = self.em, self.buffer.name, self.buffer.layout
        present = self._present(at)
        steps = tuple(s if self.left else s[::-1] for s in (*lanes, within))
        if isinstance(base, int):
            base, k = 0, base + k
        if isinstance(layout, Swizzled):
            inside, constant = self._split(layout, at, k)
        else:
            inside, constant = 0, (at * self.across + k * self.deep) * self.size
        key = ("operand", self.axis.name, layout, self.buffer.shape, self.operand.along_k, steps, inside, present)
        offset = em.once(0, key, lambda: self._offset(steps, inside, present))
        root, level = self.scope.roots[name], self.scope.levels.get(name, 0)
        pointer = em.once(level, ("pointer", key, name, id(root)), lambda: self._advance(root, offset))
        own, deep = self.operand.factor.access.subscripts[:: 1 if self.operand.along_k else -1]
        em.here()
        starts = subscript_start(em, self.scope, own, self.axis), subscript_start(em, self.scope, deep, self.k)
        moved = em.add(self._bytes(starts[0], False), self._bytes(starts[1], True))
        moved = em.add(moved, self._bytes(base, True))
        return self._advance(pointer, moved), constant

    def _split(self, layout: Swizzled, at: int, k: int) -> tuple[int, int]:
        """The bytes within a panel, whose address depends on the lane's row, and the bytes of whole rows and panels."""
        row, column = (at, k) if self.operand.along_k else (k, at)
        panel, inside = divmod(column * self.size, layout.width)
        return inside, row * layout.width + panel * layout.panel_rows(self.buffer.shape) * layout.width

    def _offset(self, steps: Sequence[Step], inside: int, present: int) -> Int:
        """The lane's bytes from the tile's beginning, emitted at the kernel's entry."""
        em, layout = self.em, self.buffer.layout
        *lanes, within = steps
        own, deep = self._bits([s for s, _ in lanes]), self._bits([s for _, s in lanes])
        em.at(0)
        own, deep = em.add(em.add(self._warp(present), own), within[0]), em.add(deep, within[1])
        if not isinstance(layout, Swizzled):
            return em.mul(em.add(em.mul(own, self.across), em.mul(deep, self.deep)), self.size)
        row, column = (own, deep) if self.operand.along_k else (deep, own)
        granule = granule_of(em, layout, row)
        at = column_bytes(em, self.buffer, layout, em.add(column, inside // self.size), granule)
        return em.add(em.mul(row, layout.width), at)

    def _present(self, at: int) -> int:
        """How many warps have a part of the axis in the turn in which instruction tiles begin at `at`."""
        spread = self.axis.spread
        assert spread is not None
        return spread.present(self.axis.block, at // (spread.warps * spread.warp_tile) if spread.warp else 0)

    def _warp(self, present: int) -> Int:
        """The warp's own part along the axis. Those that have none multiply what the last one does, which is read
        inside the tile, and nobody reads their results."""
        spread = self.axis.spread
        assert spread is not None
        if present == 1:
            return 0
        warp = self.em.coordinate(f"warp.{spread.warp}")
        b = self.em.at(0)
        if present < spread.warps:
            last = self.em.i64(present - 1)
            warp = b.select(b.icmp_signed("<", warp, last), warp, last)
        return self.em.mul(warp, spread.warp_tile)

    def _bits(self, steps: Sequence[int]) -> Int:
        """The sum of the steps of the lane number's bits."""
        em = self.em
        number = em.thread()
        b = em.at(0)
        total: Int = 0
        for bit, count, step in bit_fields(steps):
            field = b.and_(b.lshr(number, em.i64(bit)) if bit else number, em.i64((1 << count) - 1))
            total = em.add(total, em.mul(field, step))
        return total

    def _bytes(self, elements: Int, deep: bool) -> Int:
        """The distance of so many values of k (else of the axis): whole rows, or whole panels."""
        layout = self.buffer.layout
        if not isinstance(layout, Swizzled):
            return self.em.mul(elements, (self.deep if deep else self.across) * self.size)
        if deep != self.operand.along_k:
            return self.em.mul(elements, layout.width)
        if isinstance(elements, int) and elements == 0:
            return 0
        return self.em.mul(elements, layout.panel_rows(self.buffer.shape) * self.size)

    def _advance(self, pointer: IrValue, offset: Int) -> IrValue:
        if isinstance(offset, int) and offset == 0:
            return pointer
        return self.em.builder.gep(pointer, [self.em.i64(offset)], source_etype=I8)


def bit_fields(steps: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs of bits whose steps double, as (first bit, bits, step of the first): one multiplication each."""
    out: list[tuple[int, int, int]] = []
    for bit, step in enumerate(steps):
        if out and out[-1][0] + out[-1][1] == bit and step == out[-1][2] << out[-1][1]:
            first, count, low = out[-1]
            out[-1] = (first, count + 1, low)
        elif step:
            out.append((bit, 1, step))
    return out
