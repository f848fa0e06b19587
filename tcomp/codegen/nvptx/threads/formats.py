"""Elements in memory and in registers: one access of up to 128 bits for several elements, narrow floats widened.

bf16, f16, e4m3 and e5m2 travel as packed integers and are computed in f32.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from tcomp.codegen.llvm.types import F16, F32, F64, I16, I32, IrValue, Type
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.dsl.ast import DType

WIDEST = 16
"""bytes of one access"""
_PLAIN = {DType.F32: F32, DType.F64: F64, DType.I32: I32}
_FP8 = {DType.E4M3: "e4m3x2", DType.E5M2: "e5m2x2"}


def access_type(dtype: DType, n: int) -> Type:
    """The IR type that n elements are loaded and stored as."""
    if dtype in _PLAIN:
        return _PLAIN[dtype] if n == 1 else ir.VectorType(_PLAIN[dtype], n)
    bits = 8 * dtype.bytes * n
    return ir.IntType(bits) if bits <= 32 else ir.VectorType(I32, bits // 32)


def load(em: GpuEmitter, pointer: IrValue, dtype: DType, n: int, constant: bool) -> list[IrValue]:
    """n neighbouring elements, in the kind they are computed in. `constant`: nobody writes them meanwhile."""
    raw = em.builder.load(pointer, typ=access_type(dtype, n), align=dtype.bytes * n)
    if constant:
        raw.set_metadata("invariant.load", em.module.add_metadata([]))
    return unpack(em, raw, dtype, n)


def load_where(em: GpuEmitter, wanted: IrValue, pointer: IrValue, dtype: DType) -> IrValue:
    """One element of what others may write meanwhile; where it is not `wanted` nothing is read, and it is zero."""
    bits, kept = 8 * dtype.bytes, max(16, 8 * dtype.bytes)
    text = f"{{ .reg .pred p; setp.ne.b32 p, $2, 0; mov.b{kept} $0, 0; @p ld.global.b{bits} $0, [$1]; }}"
    word = {16: "h", 32: "r", 64: "l"}[kept]
    arguments = [pointer, em.builder.zext(wanted, I32)]
    raw = em.asm(text, ir.IntType(kept), f"=&{word},l,r,~{{memory}}", arguments, effect=True)
    if dtype in _PLAIN:
        return em.builder.bitcast(raw, _PLAIN[dtype])
    return unpack(em, raw if kept == bits else em.builder.trunc(raw, ir.IntType(bits)), dtype, 1)[0]


def store(em: GpuEmitter, pointer: IrValue, dtype: DType, values: Sequence[IrValue]) -> None:
    em.builder.store(pack(em, values, dtype), pointer, align=dtype.bytes * len(values))


def unpack(em: GpuEmitter, raw: IrValue, dtype: DType, n: int) -> list[IrValue]:
    """The elements of a loaded value."""
    b = em.builder
    if dtype in _PLAIN:
        return [raw] if n == 1 else [b.extract_element(raw, em.i64(i)) for i in range(n)]
    words = [raw]
    if isinstance(raw.type, ir.VectorType):
        words = [b.extract_element(raw, em.i64(i)) for i in range(raw.type.count)]
    out: list[IrValue] = []
    for word in words:
        out += _widened(em, word, dtype, n // len(words))
    return out


def _widened(em: GpuEmitter, word: IrValue, dtype: DType, n: int) -> list[IrValue]:
    b = em.builder
    if dtype in _FP8:
        out = []
        for i in range(0, n, 2):
            pair = word if i == 0 else b.lshr(word, ir.Constant(word.type, 16))
            pair = pair if pair.type == I16 else b.zext(pair, I16) if pair.type.width < 16 else b.trunc(pair, I16)
            halves = em.asm(f"cvt.rn.f16x2.{_FP8[dtype]} $0, $1;", I32, "=r,h", [pair])
            out += _widened(em, halves, DType.F16, 2)
        for i, value in enumerate(out[:n]):
            em.stored[value] = (dtype, word, i)
        return out[:n]
    out = []
    for i in range(n):
        if dtype is DType.BF16:
            wide = word if word.type == I32 else b.zext(word, I32)
            bits = b.shl(wide, em.i64(16)) if i == 0 else b.and_(wide, em.i64(-65536))
            out.append(b.bitcast(bits, F32))
        else:
            half = word if i == 0 else b.lshr(word, em.i64(16))
            half = half if half.type == I16 else b.trunc(half, I16)
            out.append(b.fpext(b.bitcast(half, F16), F32))
    return out


def pack(em: GpuEmitter, values: Sequence[IrValue], dtype: DType) -> IrValue:
    """The stored form of values of the dtype's kind."""
    if dtype in _PLAIN:
        return _vector(em, list(values))
    bits = 8 * dtype.bytes
    per_word = max(1, min(len(values), 32 // bits))
    words = [_narrowed(em, values[i : i + per_word], dtype) for i in range(0, len(values), per_word)]
    return _vector(em, words)


def _vector(em: GpuEmitter, parts: list[IrValue]) -> IrValue:
    if len(parts) == 1:
        return parts[0]
    t = ir.VectorType(parts[0].type, len(parts))
    out: IrValue = ir.Constant(t, ir.Undefined)
    for i, p in enumerate(parts):
        out = em.builder.insert_element(out, p, em.i64(i))
    return out


def _narrowed(em: GpuEmitter, values: Sequence[IrValue], dtype: DType) -> IrValue:
    """One integer of at most 32 bits that holds the values, the first lowest."""
    b = em.builder
    if dtype is DType.BF16:
        if len(values) == 1:
            return em.asm("cvt.rn.bf16.f32 $0, $1;", I16, "=h,f", list(values))
        return em.asm("cvt.rn.bf16x2.f32 $0, $1, $2;", I32, "=r,f,f", [values[1], values[0]])
    if dtype in _FP8:
        values = [em.rounded.get((v, dtype), v) for v in values]
        if (kept := _as_stored(em, values, dtype)) is not None:
            return kept
    if dtype is DType.F16:
        halves = [b.bitcast(b.fptrunc(v, F16), I16) for v in values]
    else:
        pairs = [(values[i], values[i + 1] if i + 1 < len(values) else ir.Constant(F32, 0.0))
                 for i in range(0, len(values), 2)]  # fmt: skip
        convert = f"cvt.rn.satfinite.{_FP8[dtype]}.f32 $0, $1, $2;"
        halves = [em.asm(convert, I16, "=h,f,f", [high, low]) for low, high in pairs]
        if len(values) == 1:
            return b.trunc(halves[0], ir.IntType(8))
    if len(halves) == 1:
        return halves[0]
    return b.or_(b.zext(halves[0], I32), b.shl(b.zext(halves[1], I32), em.i64(16)))


def _as_stored(em: GpuEmitter, values: Sequence[IrValue], dtype: DType) -> IrValue | None:
    """The bytes that the values were read from, where all were stored in that type: one integer, as `_narrowed` gives.
    None where some were computed."""
    found = [em.stored.get(v) for v in values]
    if any(f is None or f[0] is not dtype for f in found):
        return None
    b, n = em.builder, len(values)
    places = [(f[1], f[2]) for f in found if f is not None]
    word = places[0][0]
    if word.type.width == 8 * n and all(w is word and i == at for at, (w, i) in enumerate(places)):
        return word
    out: IrValue | None = None
    for at, (w, i) in enumerate(places):
        x = w if w.type == I32 else b.zext(w, I32)
        x = b.lshr(x, em.i64(8 * i)) if i else x
        x = x if w.type.width == 8 else b.and_(x, em.i64(255))
        x = b.shl(x, em.i64(8 * at)) if at else x
        out = x if out is None else b.or_(out, x)
    assert out is not None
    return out if n > 2 else b.trunc(out, ir.IntType(8 * n))


def round_to(em: GpuEmitter, value: IrValue, dtype: DType) -> IrValue:
    """The value rounded to a narrow type and back: to bf16 in one instruction, since the upper half of a word is that
    value in f32."""
    if dtype is DType.BF16:
        word = em.asm("cvt.rn.bf16x2.f32 $0, $1, $2;", I32, "=r,f,f", [value, ir.Constant(F32, 0.0)])
        return em.builder.bitcast(word, F32)
    rounded = unpack(em, pack(em, [value], dtype), dtype, 1)[0]
    if dtype in _FP8:
        em.rounded[(rounded, dtype)] = value  # what is rounded again to be stored is rounded once
    return rounded
