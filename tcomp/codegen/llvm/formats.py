"""Narrow floats as bits: widened to f32 where they are loaded, rounded to nearest even where they are stored.

bf16 is the upper half of an f32. e4m3 and e5m2 have an f32's fields, fewer and with another bias, so moving their bits
to an f32's places and multiplying by a power of two widens them, subnormals included; rounding adds half a unit to
the f32's bits before cutting them off. Overflow saturates (OCP FP8, as the conversions of GPUs do). Works on scalars
and on vectors; a NaN stays one.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import F32, I8, I16, I32, BFloat, IrValue, Type, constant, i32_lanes, lanes_of, like
from tcomp.dsl.ast import DType

_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000


@dataclass(frozen=True)
class Eight:
    """An 8-bit format: fraction bits, exponent bias, the largest finite code, the first code that is no number."""

    fraction: int
    bias: int
    largest: int
    nan: int

    @property
    def cut(self) -> int:
        """Fraction bits of an f32 that the format has not."""
        return 23 - self.fraction

    @property
    def smallest_normal(self) -> float:
        return float(2.0 ** (1 - self.bias))

    @property
    def quantum(self) -> float:
        """The distance of two subnormals."""
        return float(2.0 ** (1 - self.bias - self.fraction))


EIGHT = {DType.E4M3: Eight(3, 7, 0x7E, 0x7F), DType.E5M2: Eight(2, 15, 0x7B, 0x7D)}


def widened_bf16(b: ir.IRBuilder, raw: IrValue) -> IrValue:
    """bf16 bits (i16) as f32."""
    bits = b.zext(raw, like(raw.type, I32))
    return b.bitcast(b.shl(bits, constant(bits.type, 16)), like(raw.type, F32))


def bf16_bits(b: ir.IRBuilder, value: IrValue) -> IrValue:
    """An f32 rounded to bf16, as i16."""
    t: Type = like(value.type, I32)
    bits = b.bitcast(value, t)
    odd = b.and_(b.lshr(bits, constant(t, 16)), constant(t, 1))
    rounded = b.add(bits, b.add(odd, constant(t, 0x7FFF)))
    quiet = b.or_(bits, constant(t, 0x400000))
    upper = b.lshr(b.select(_is_nan(b, value), quiet, rounded), constant(t, 16))
    return b.trunc(upper, like(value.type, I16))


def bf16_bits_at_once(b: ir.IRBuilder, value: IrValue) -> IrValue:
    """The same by the CPU's instruction (vcvtneps2bf16), which takes subnormal numbers for zeros of their sign."""
    return b.bitcast(b.fptrunc(value, like(value.type, BFloat())), like(value.type, I16))


_ROUNDING_TWO = {16: "llvm.x86.avx512bf16.cvtne2ps2bf16.512", 8: "llvm.x86.avx512bf16.cvtne2ps2bf16.256"}


def flushed_pair(em: Emitter, low: IrValue, high: IrValue, features: frozenset[str]) -> IrValue:
    """The bits of two f32 rounded to bf16, as one i32, for readers to whom subnormals are zeros: by the instruction
    that makes them so, where there is one."""
    b, lanes = em.builder, lanes_of(low.type)
    t: Type = like(low.type, I32)
    name = _ROUNDING_TWO.get(lanes) if "avx512bf16" in features else None
    if name is None:
        first, second = (b.zext(bf16_bits(b, v), t) for v in (low, high))
        return b.or_(first, b.shl(second, constant(t, 16)))
    both = em.intrinsic(name, ir.VectorType(BFloat(), 2 * lanes), [high, low], [])
    halves = b.bitcast(both, ir.VectorType(I16, 2 * lanes))
    mask = i32_lanes(*(i + half * lanes for i in range(lanes) for half in (0, 1)))
    return b.bitcast(b.shuffle_vector(halves, ir.Constant(halves.type, ir.Undefined), mask), t)


def half_of_words(b: ir.IRBuilder, words: IrValue, odd: bool) -> IrValue:
    """The bf16 values in the upper (`odd`) or the lower halves of i32 words, as f32."""
    upper = b.and_(words, constant(words.type, -65536)) if odd else b.shl(words, constant(words.type, 16))
    return b.bitcast(upper, like(words.type, F32))


def words_of_halves(em: Emitter, even: IrValue, odd: IrValue, features: frozenset[str]) -> IrValue:
    """Two f32 vectors rounded to bf16, `even` in the lower halves of i32 words: as each is rounded by itself, by
    instruction (which takes subnormals for zeros) where the CPU has it."""
    if "avx512bf16" in features and lanes_of(even.type) in _ROUNDING_TWO:
        return flushed_pair(em, even, odd, features)
    b = em.builder
    round_one = bf16_bits_at_once if "avx512bf16" in features else bf16_bits
    t: Type = like(even.type, I32)
    low, high = (b.zext(round_one(b, v), t) for v in (even, odd))
    return b.or_(low, b.shl(high, constant(t, 16)))


def bf16_pair(b: ir.IRBuilder, low: IrValue, high: IrValue) -> IrValue:
    """The bits of two bf16 values, given as f32, as one i32."""
    t: Type = like(low.type, I32)
    upper = b.and_(b.bitcast(high, t), constant(t, -65536))
    return b.or_(upper, b.lshr(b.bitcast(low, t), constant(t, 16)))


def stochastic_bf16(b: ir.IRBuilder, value: IrValue, u: IrValue) -> IrValue:
    """An f32 rounded to bf16 away from zero where the fraction that is cut off plus `u` reaches 1, else towards zero;
    as f32. `u` in [0, 1)."""
    t: Type = like(value.type, I32)
    f: Type = like(value.type, F32)
    share = b.fptosi(b.fmul(u, constant(f, 65536.0)), t)
    bits = b.and_(b.add(b.bitcast(value, t), share), constant(t, -65536))
    return b.select(_is_nan(b, value), value, b.bitcast(bits, f))


def widened_eight(b: ir.IRBuilder, raw: IrValue, dtype: DType) -> IrValue:
    """The bits of an 8-bit float (i8) as f32."""
    form = EIGHT[dtype]
    t: Type = like(raw.type, I32)
    f: Type = like(raw.type, F32)
    code = b.zext(raw, t)
    sign = b.shl(b.and_(code, constant(t, 0x80)), constant(t, 24))
    magnitude = b.and_(code, constant(t, 0x7F))
    moved = b.bitcast(b.shl(magnitude, constant(t, form.cut)), f)
    scaled = b.bitcast(b.fmul(moved, constant(f, 2.0 ** (127 - form.bias))), t)
    if dtype is DType.E5M2:  # 0x7C is infinity, with an f32's fraction bits behind it NaN
        beyond = b.or_(b.shl(magnitude, constant(t, form.cut)), constant(t, _INFINITY))
        scaled = b.select(b.icmp_signed(">=", magnitude, constant(t, 0x7C)), beyond, scaled)
    else:
        quiet = constant(t, _INFINITY | 0x400000)
        scaled = b.select(b.icmp_signed("==", magnitude, constant(t, form.nan)), quiet, scaled)
    return b.bitcast(b.or_(scaled, sign), f)


def eight_bits(b: ir.IRBuilder, value: IrValue, dtype: DType) -> IrValue:
    """An f32 rounded to an 8-bit float, as i8."""
    form = EIGHT[dtype]
    t: Type = like(value.type, I32)
    f: Type = like(value.type, F32)
    bits = b.bitcast(value, t)
    size = b.and_(bits, constant(t, _MAGNITUDE))
    odd = b.and_(b.lshr(size, constant(t, form.cut)), constant(t, 1))
    half = b.add(odd, constant(t, (1 << (form.cut - 1)) - 1))
    rebias = (127 - form.bias) << form.fraction
    normal = b.sub(b.lshr(b.add(size, half), constant(t, form.cut)), constant(t, rebias))
    # Added to a number whose unit is the quantum, a subnormal is rounded to whole quanta: its code.
    magic = 2.0**23 * form.quantum
    sum_ = b.fadd(b.bitcast(size, f), constant(f, magic))
    subnormal = b.sub(b.bitcast(sum_, t), b.bitcast(constant(f, magic), t))
    small = b.fcmp_ordered("<", b.bitcast(size, f), constant(f, form.smallest_normal))
    code = b.select(small, subnormal, normal)
    largest = constant(t, form.largest)
    code = b.select(b.icmp_signed(">", code, largest), largest, code)
    code = b.select(_is_nan(b, value), constant(t, 0x7F), code)
    sign = b.and_(b.lshr(bits, constant(t, 24)), constant(t, 0x80))
    return b.trunc(b.or_(code, sign), like(value.type, I8))


def _is_nan(b: ir.IRBuilder, value: IrValue) -> IrValue:
    return b.fcmp_unordered("uno", value, value)
