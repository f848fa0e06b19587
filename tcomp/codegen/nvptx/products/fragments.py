"""Register tiles as matrix instructions see them: element numbers, packed left operands, where a tile is entered."""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import affine_form
from tcomp.codegen.llvm.types import F32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.threads import formats
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import Access, Binary, DType, Expr, Name, names_in
from tcomp.instructions.matching import Operand
from tcomp.ir.tile import Axis, Buffer, Fragment


def fragment_element(buffer: Buffer, access: Access, numbers: Mapping[str, int]) -> int:
    """The number of an element of a register tile whose dimensions are walked by these axes."""
    assert isinstance(buffer.layout, Fragment)
    total = 0
    for subscript, size, spread in zip(access.subscripts, buffer.shape, buffer.layout.spreads, strict=True):
        axis = next(n for n in numbers if n in names_in(subscript))
        total = total * spread.per_thread(size) + numbers[axis]
    return total


def packed_rows(
    em: GpuEmitter, scope: GpuScope, o: Operand, m: str, k: str, tile: int, step: int, dtype: DType
) -> list[IrValue]:
    """The left operand's four registers for 16 values of k from `step` on, of a warp's 16 rows number `tile`:
    neighbouring columns of an accumulator, rounded and packed."""
    slots = scope.fragments[o.buffer.name]
    out = []
    for half in (0, 1):
        for row in (2 * tile, 2 * tile + 1):
            first = step // 4 + 2 * half
            numbers = [fragment_element(o.buffer, o.factor.access, {m: row, k: first + v}) for v in (0, 1)]
            b = em.here()
            out.append(formats.pack(em, [b.load(slots[n], typ=F32) for n in numbers], dtype))
    return out


def subscript_start(em: GpuEmitter, scope: GpuScope, subscript: Expr, axis: Axis) -> Int:
    """The tile coordinate of an axis's first value, emitted where the builder stands."""
    match subscript:
        case Name():
            return integer_value(em, axis.start, scope)
        case Binary("-", Name(), start):
            place = Binary("-", axis.start, start)
            form = affine_form(place)
            return form.constant if form is not None and not form.terms else integer_value(em, place, scope)
    raise Unsupported(f"a matrix operand at subscript {subscript}")
