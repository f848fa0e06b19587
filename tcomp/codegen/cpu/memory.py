"""Loads and stores of one register: contiguous vectors, masked tails, lanes with a stride, narrow floats.

bf16 and 8-bit floats are converted here (formats.py, so no library call is needed); f16 uses the machine's
conversions.
"""

from __future__ import annotations

from functools import partial

from llvmlite import ir

from tcomp.codegen.cpu.addressing import Addressing, Place
from tcomp.codegen.llvm import formats
from tcomp.codegen.llvm.domain import Domain, Point
from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.expressions import Node
from tcomp.codegen.llvm.types import F16, F32, I32, I64, POINTER, VOID, IrValue, constant, like, stored_type
from tcomp.dsl.ast import DType
from tcomp.machine.cpu import BF16_DOT


class Memory:
    """Reads and writes of a Compute's domain; the caller has placed the builder."""

    def __init__(self, domain: Domain, addressing: Addressing) -> None:
        self.domain = domain
        self.em: Emitter = domain.emitter
        self.addressing = addressing

    # ------------------------------------------------------------------------------------------- loads

    def load_scalar(
        self, place: Place, point: Point, wanted: IrValue | None, level: int, condition: Node | None = None
    ) -> IrValue:
        """One element; where it is not `wanted` (a scalar, of the condition) the buffer's first one is read instead."""
        pointer = self.addressing.pointer(place, point, condition)
        b = self.em.at(level)
        if wanted is not None:
            pointer = b.select(wanted, pointer, self.domain.scope.roots[place.buffer.name])
        return self._widen(self._load(pointer, place.buffer.dtype), place.buffer.dtype)

    def load_vector(
        self, place: Place, point: Point, mask: IrValue | None, level: int, condition: Node | None = None
    ) -> IrValue:
        """A register of lanes; masked lanes read as zero and touch no memory outside the buffer. The mask has in it
        where the condition holds."""
        dtype = place.buffer.dtype
        t = ir.VectorType(stored_type(dtype), self.domain.lanes)
        if self.domain.interleaved:
            return self._load_half(place, point, level)
        if self.addressing.lane_stride(place, point) == 1:
            pointer = self.addressing.pointer(place, point, condition)
            b = self.em.at(level)
            if mask is None:
                raw = b.load(pointer, typ=t, align=dtype.bytes)
            else:
                raw = self.em.intrinsic(
                    "llvm.masked.load", t, [pointer, ir.Constant(I32, dtype.bytes), mask, constant(t, 0)], [t, POINTER]
                )
            return self._widen(raw, dtype)
        pointers = self.lanes(place, point, condition)
        b = self.em.at(level)
        root = self.domain.scope.roots[place.buffer.name]
        raw = ir.Constant(t, ir.Undefined)
        for i, pointer in enumerate(pointers):
            if mask is not None:
                pointer = b.select(b.extract_element(mask, self.em.i64(i)), pointer, root)
            raw = b.insert_element(raw, self._load(pointer, dtype), self.em.i64(i))
        return self._widen(raw, dtype)

    def _load_half(self, place: Place, point: Point, level: int) -> IrValue:
        """The even or the odd of twice as many bf16 elements, which are read once for both."""
        vector = self.domain.vector
        assert vector is not None
        pointer = self.addressing.pointer(place, {**point, vector: point[vector] // 2 * 2})
        b = self.em.at(level)
        memo = self.em.frames[level].memo
        words = memo.get(("words", pointer))
        if words is None:
            words = b.load(pointer, typ=ir.VectorType(I32, self.domain.lanes), align=place.buffer.dtype.bytes)
            memo["words", pointer] = words
        return formats.half_of_words(b, words, odd=point[vector] % 2 == 1)

    def lanes(self, place: Place, point: Point, condition: Node | None = None) -> list[IrValue]:
        """The address of each lane."""
        stride = self.addressing.lane_stride(place, point)
        if stride is None:
            return self.addressing.lane_pointers(place, point, condition)
        first = self.addressing.pointer(place, point, condition)
        b = self.em.at(self.addressing.level_of(place, condition))
        t = stored_type(place.buffer.dtype)
        return [
            first if i * stride == 0 else b.gep(first, [self.em.i64(i * stride)], source_etype=t)
            for i in range(self.domain.lanes)
        ]

    def read(self, pointer: IrValue, dtype: DType) -> IrValue:
        """The element at a pointer, in its kind."""
        return self._widen(self._load(pointer, dtype), dtype)

    def write(self, value: IrValue, pointer: IrValue, dtype: DType) -> None:
        self._store(self.narrow(value, dtype), pointer, dtype)

    def _load(self, pointer: IrValue, dtype: DType) -> IrValue:
        return self.em.builder.load(pointer, typ=stored_type(dtype), align=dtype.bytes)

    def _widen(self, raw: IrValue, dtype: DType) -> IrValue:
        b = self.em.builder
        match dtype:
            case DType.BF16:
                return formats.widened_bf16(b, raw)
            case DType.E4M3 | DType.E5M2:
                return formats.widened_eight(b, raw, dtype)
            case DType.F16:
                self._need_f16()
                return b.fpext(raw, like(raw.type, F32))
            case DType.I32:
                return raw if isinstance(raw.type, ir.VectorType) else b.sext(raw, I64)
        return raw

    # ------------------------------------------------------------------------------------------ stores

    def store_scalar(self, place: Place, point: Point, value: IrValue) -> None:
        pointer = self.addressing.pointer(place, point)
        self.em.here()
        self._store(self.narrow(value, place.buffer.dtype), pointer, place.buffer.dtype)

    def store_vector(self, place: Place, point: Point, value: IrValue, mask: IrValue | None) -> None:
        """Write the lanes under the mask; lane by lane, in order, where they are not contiguous."""
        dtype = place.buffer.dtype
        if self.addressing.lane_stride(place, point) == 1:
            pointer = self.addressing.pointer(place, point)
            b = self.em.here()
            raw = self.narrow(value, dtype)
            if mask is None:
                b.store(raw, pointer, align=dtype.bytes)
            elif (lane := only_lane(mask)) is not None:
                self._store(b.extract_element(raw, self.em.i64(lane)), pointer_to(b, pointer, lane, dtype), dtype)
            else:
                self.em.intrinsic(
                    "llvm.masked.store", VOID, [raw, pointer, ir.Constant(I32, dtype.bytes), mask], [raw.type, POINTER]
                )
            return
        pointers = self.lanes(place, point)
        b = self.em.here()
        raw = self.narrow(value, dtype)
        for i, pointer in enumerate(pointers):
            b = self.em.here()
            element = b.extract_element(raw, self.em.i64(i))
            if mask is None:
                self._store(element, pointer, dtype)
            else:
                on = b.extract_element(mask, self.em.i64(i))
                self.em.when(on, partial(self._store_here, element, pointer, dtype))

    def store_halves(self, place: Place, point: Point, even: IrValue, odd: IrValue) -> None:
        """Write the registers at `point` and behind it, which hold even and odd bf16 elements."""
        pointer = self.addressing.pointer(place, point)
        b = self.em.here()
        raw = formats.words_of_halves(self.em, even, odd, self.domain.scope.features)
        b.store(raw, pointer, align=place.buffer.dtype.bytes)

    def _store_here(self, raw: IrValue, pointer: IrValue, dtype: DType) -> None:
        self.em.here()
        self._store(raw, pointer, dtype)

    def _store(self, raw: IrValue, pointer: IrValue, dtype: DType) -> None:
        self.em.builder.store(raw, pointer, align=dtype.bytes)

    def narrow(self, value: IrValue, dtype: DType) -> IrValue:
        """The stored form of a value of the dtype's kind."""
        match dtype:
            case DType.BF16 if BF16_DOT in self.domain.scope.features:
                return formats.bf16_bits_at_once(self.em.builder, value)
            case DType.BF16:
                return formats.bf16_bits(self.em.builder, value)
            case DType.E4M3 | DType.E5M2:
                return formats.eight_bits(self.em.builder, value, dtype)
            case DType.F16:
                self._need_f16()
                return self.em.builder.fptrunc(value, like(value.type, F16))
            case DType.I32:
                if isinstance(value.type, ir.VectorType):
                    return value
                return self.em.builder.trunc(value, I32)
        return value

    def round_to(self, value: IrValue, dtype: DType) -> IrValue:
        """The value rounded to a narrow type and back."""
        return self._widen(self.narrow(value, dtype), dtype)

    def _need_f16(self) -> None:
        features = self.domain.scope.features
        if "sse2" in features:
            raise NotImplementedError("f16 needs a CPU with F16C (AVX2 level): use bf16 or f32 storage here")


def only_lane(mask: IrValue) -> int | None:
    """The one lane that a constant mask leaves on; None for other masks.

    With AVX-512, LLVM 22.1.0 makes of a truncation and a masked store of one lane a store of the untruncated 4 bytes
    (llvm/llvm-project issue 179489): such a lane is stored as a scalar.
    """
    lanes = mask.constant if isinstance(mask, ir.Constant) else ()
    on = [i for i, lane in enumerate(lanes) if lane.constant] if isinstance(lanes, (list, tuple)) else []
    return on[0] if len(on) == 1 else None


def pointer_to(b: ir.IRBuilder, first: IrValue, lane: int, dtype: DType) -> IrValue:
    """The address of a lane of contiguous elements."""
    return b.gep(first, [ir.Constant(I64, lane)], source_etype=stored_type(dtype)) if lane else first
