"""exp, log, tanh, sin, cos, sqrt, rsqrt, floor, pow on scalars or vectors, as polynomials: no library calls.

Each function works on f32 and f64 of any number of lanes and emits straight-line code. Error bounds, in units
in the last place of the exact result (tests/tcomp/test_cpu_vectormath.py sweeps them):

    f32: exp 2.2, log 2, tanh 6, sin and cos 2 on |x| <= 1e4, rsqrt 2        f64: exp, log 2; tanh, sin, cos 4

with exp and log right for infinities, NaN, zero, subnormals, overflow and underflow, but that exp in f32 is zero below
2**-125.5 (the second factor that subnormals need costs a quarter of its rate). exp in f32 on 16 lanes has a table
(seen over all arguments: 1.98 ulp; 1.91 without). Polynomials and argument
splittings are those of the Cephes library (Moshier) and FreeBSD's msun (Sun Microsystems, e_log.c, k_sin.c).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import F32, F64, I32, I64, IrValue, Type, constant, lanes_of, like

_LOG2 = (0.693359375, -2.12194440e-4)
_LOG2_AT_ONCE = (0.69314718,)
# 2 e**r on |r| <= log(2) / 2, within 1.1 ulp and exact at 0
_TWICE_EXP32 = (
    1.6531798988580704e-2,
    8.379931002855301e-2,
    3.3336299657821655e-1,
    9.999827146530151e-1,
    1.999998927116394,
    2.0,
)
# (e**r - 1) / r on 0 <= r <= log(2) / 32: e**r within 2**-23.9
_EXPM1_OVER_R = (5.0505237e-1, 9.9996614e-1)
# Word j of 32: the mantissa of 2**(j / 32), less j in its first five bits
_MANTISSAS = tuple(
    tuple(round(2.0**23 * (2.0 ** (j / 32) - 1)) - (j << 18) for j in range(first, first + 16)) for first in (0, 16)
)
# 2**r on |r| <= 1/2, relative error 2**-18.5
_SHORT_EXP2 = (
    9.570101911165462e-3,
    5.591786031938822e-2,
    2.402474482786378e-1,
    6.931218147366892e-1,
    9.999992614457122e-1,
)
# tanh(x) = x P(x**2) / Q(x**2) on |x| <= 9.02, relative error 2**-25; all terms are positive, so nothing cancels
_TANH32_P = (1.3384224395451838e-8, 2.063577267108485e-5, 3.4974548034369946e-3, 1.338268369436264e-1, 1.0)
_TANH32_Q = (7.790224572090665e-7, 3.2885122345760465e-4, 2.5884348899126053e-2, 4.6716004610061646e-1, 1.0)
_LOG32 = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SIN32 = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS32 = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_EXP64_P = (1.26177193074810590878e-4, 3.02994407707441961300e-2, 9.99999999999999999910e-1)
_EXP64_Q = (
    3.00198505138664455042e-6, 2.52448340349684104192e-3, 2.27265548208155028766e-1, 2.00000000000000000005,
)  # fmt: skip
_LOG64 = (
    1.479819860511658591e-1, 1.531383769920937332e-1, 1.818357216161805012e-1, 2.222219843214978396e-1,
    2.857142874366239149e-1, 3.999999999940941908e-1, 6.666666666666735130e-1,
)  # fmt: skip
_SIN64 = (
    1.58969099521155010221e-10, -2.50507602534068634195e-8, 2.75573137070700676789e-6,
    -1.98412698298579493134e-4, 8.33333333332248946124e-3, -1.66666666666666324348e-1,
)  # fmt: skip
_COS64 = (
    -1.13596475577881948265e-11, 2.08757232141817482790e-9, -2.75573143513906633035e-7,
    2.48015872894767294178e-5, -1.38888888888741095749e-3, 4.16666666666666019037e-2,
)  # fmt: skip


class Math:
    """Arithmetic on one type, to write formulas in; emits where the emitter's builder stands."""

    def __init__(self, em: Emitter, t: Type, fma: bool, features: frozenset[str] = frozenset()) -> None:
        self.em, self.b, self.t, self.has_fma, self.features = em, em.builder, t, fma, features
        self.single = (t.element if isinstance(t, ir.VectorType) else t) == F32
        self.bits: Type = like(t, I32 if self.single else I64)

    def c(self, value: float) -> IrValue:
        return constant(self.t, value)

    def i(self, value: int) -> IrValue:
        return constant(self.bits, value)

    def fma(self, a: IrValue, b: IrValue, c: IrValue) -> IrValue:
        if not self.has_fma:
            return self.b.fadd(self.b.fmul(a, b), c)
        return self.em.intrinsic("llvm.fma", self.t, [a, b, c], [self.t])

    def polynomial(self, x: IrValue, coefficients: Sequence[float]) -> IrValue:
        """Horner's scheme, highest power first. Of 16 registers exp's 13 constants leave one too few in loops with two
        values of their own, and LLVM moves twenty about for it: the first coefficient, which is copied in any case, is
        loaded."""
        y = self.c(coefficients[0])
        if lanes_of(self.t) > 1 and "avx2" in self.features and "avx512f" not in self.features:
            y = self.em.loaded(y)
        for k in coefficients[1:]:
            y = self.fma(y, x, self.c(k))
        return y

    def less(self, x: IrValue, n: IrValue, parts: Sequence[float]) -> IrValue:
        """x - n (parts[0] + parts[1] + ..)"""
        for part in parts:
            x = self.fma(n, self.c(-part), x)
        return x

    def to_bits(self, x: IrValue) -> IrValue:
        return self.b.bitcast(x, self.bits)

    def from_bits(self, x: IrValue) -> IrValue:
        return self.b.bitcast(x, self.t)

    def at_most(self, x: IrValue, limit: float) -> IrValue:
        """min(x, limit), NaN kept."""
        return self.b.select(self.b.fcmp_ordered(">", x, self.c(limit)), self.c(limit), x)

    def at_least(self, x: IrValue, limit: float) -> IrValue:
        return self.b.select(self.b.fcmp_ordered("<", x, self.c(limit)), self.c(limit), x)

    def round(self, x: IrValue) -> tuple[IrValue, IrValue]:
        """The nearest whole number as a float and as an integer, for |x| < 2**22 (2**31 in f64)."""
        magic = 12582912.0 if self.single else 6755399441055744.0
        shifted = self.b.fadd(x, self.c(magic))
        whole = self.b.fsub(shifted, self.c(magic))
        return whole, self.b.sub(self.to_bits(shifted), self.to_bits(self.c(magic)))

    def power_of_two(self, n: IrValue) -> IrValue:
        """2**n for n in the range of normal exponents."""
        bias, shift = (127, 23) if self.single else (1023, 52)
        return self.from_bits(self.b.shl(self.b.add(n, self.i(bias)), self.i(shift)))

    def absolute(self, x: IrValue) -> IrValue:
        return self.em.intrinsic("llvm.fabs", self.t, [x], [self.t])

    def copysign(self, x: IrValue, sign: IrValue) -> IrValue:
        return self.em.intrinsic("llvm.copysign", self.t, [x, sign], [self.t])


def call(em: Emitter, name: str, x: IrValue, fma: bool, features: frozenset[str] = frozenset()) -> IrValue:
    """The named function of `x`, emitted where the builder stands; `features` are those of the CPU."""
    m = Math(em, x.type, fma, features)
    match name:
        case "exp":
            return exp(m, x)
        case "log":
            return log(m, x)
        case "tanh":
            return tanh(m, x)
        case "sin":
            return sin_cos(m, x, quarter_turns=0)
        case "cos":
            return sin_cos(m, x, quarter_turns=1)
        case "sqrt":
            return em.intrinsic("llvm.sqrt", x.type, [x], [x.type])
        case "rsqrt":
            return m.b.fdiv(m.c(1.0), em.intrinsic("llvm.sqrt", x.type, [x], [x.type]))
        case "floor":
            return floor(m, x)
    raise NotImplementedError(name)


def exp(m: Math, x: IrValue) -> IrValue:
    """e**x = 2**n e**r with x = n log 2 + r, |r| <= log(2) / 2."""
    return _exp32(m, x, _LOG2) if m.single else _exp64(m, x)


def exp_for_16_bits(em: Emitter, x: IrValue, fma: bool, features: frozenset[str]) -> IrValue:
    """e**x in f32 for results of 16 bits, within 2 ulp and |x| 2**-28.4 of it: log(2) is not taken apart."""
    return _exp32(Math(em, x.type, fma, features), x, _LOG2_AT_ONCE)


def _exp32(m: Math, x: IrValue, parts: Sequence[float]) -> IrValue:
    """By the parts of log(2), whose multiple goes from `x`."""
    by_table = "avx512f" in m.features and lanes_of(m.t) == 16
    return _exp32_by_table(m, x, parts) if by_table else _exp32_by_polynomial(m, x, parts)


def _exp32_by_polynomial(m: Math, x: IrValue, parts: Sequence[float]) -> IrValue:
    """13 instructions beside the constants' loads. The rounding constant is added in the multiplication that it rounds,
    and carries the exponent's bias, so that the factor 2**(n - 1) is a shift of its bits: with it twice e**r gives
    infinity where it should, and from n = -126 on the factor is zero."""
    b = m.b
    x = m.at_least(m.at_most(x, 89.0), -87.6)
    magic = 12582912.0 + 126
    shifted = m.fma(x, m.c(1 / math.log(2)), m.c(magic))
    whole = b.fsub(shifted, m.c(magic))
    r = m.less(x, whole, parts)
    factor = m.from_bits(b.shl(m.to_bits(shifted), m.i(23)))
    return b.fmul(m.polynomial(r, _TWICE_EXP32), factor)


def _exp32_by_table(m: Math, x: IrValue, parts: Sequence[float]) -> IrValue:
    """e**x = 2**n 2**(j / 32) e**r with 0 <= r < log(2) / 32: two registers hold the powers 2**(j / 32), from which one
    instruction takes those of 16 values, and two coefficients are enough. 12 instructions, 8 of them on the two units
    that multiply, for 11 of 13 in `_exp32_by_polynomial`.

    The multiple is rounded down, so that n is 127 up to the greatest float. The lowest five bits of the sum are j, the
    others n and the exponent's bias. Shifted they are exponent and first five bits of the mantissa; a table's word is
    the mantissa less those.
    """
    b = m.b
    kept = b.fcmp_unordered(">=", x, m.c(-125.5 * math.log(2)))
    x = m.at_most(x, 88.73)
    magic = m.c(393216.0 + 127)
    down = ir.Constant(I32, 9)
    product = [x, m.c(1 / math.log(2)), magic, down]
    shifted = m.em.intrinsic("llvm.x86.avx512.vfmadd.ps.512", m.t, product, [])
    multiple = b.fsub(shifted, magic)
    r = m.less(x, multiple, parts)
    bits = m.to_bits(shifted)
    low, high = (ir.Constant(m.bits, [ir.Constant(I32, word) for word in words]) for words in _MANTISSAS)
    mantissa = m.em.intrinsic("llvm.x86.avx512.vpermi2var.d.512", m.bits, [low, bits, high], [])
    power = m.from_bits(b.add(b.shl(bits, m.i(18)), mantissa))
    rest = b.fmul(m.polynomial(r, _EXPM1_OVER_R), r)
    return b.select(kept, m.fma(rest, power, power), m.c(0.0))


def short_exp2(em: Emitter, x: IrValue, fma: bool, features: frozenset[str]) -> IrValue:
    """2**x in f32 for results of 16 bits, within 2**-18 of it; infinite, or zero, beyond the exponents' range.

    AVX-512 scales by powers of two in one instruction, which keeps those bounds by itself.
    """
    m = Math(em, x.type, fma)
    b = m.b
    if "avx512f" in features and lanes_of(x.type) == 16:
        x = m.at_least(x, -150.0)
        whole = em.intrinsic("llvm.nearbyint", x.type, [x], [x.type])
        power = m.polynomial(b.fsub(x, whole), _SHORT_EXP2)
        arguments = [power, whole, power, ir.Constant(ir.IntType(16), -1), ir.Constant(I32, 4)]
        return em.intrinsic("llvm.x86.avx512.mask.scalef.ps.512", x.type, arguments, [])
    x = m.at_least(m.at_most(x, 129.0), -126.0)
    magic = 12582912.0 + 126
    shifted = b.fadd(x, m.c(magic))
    r = b.fsub(x, b.fsub(shifted, m.c(magic)))
    factor = m.from_bits(b.shl(m.to_bits(shifted), m.i(23)))
    return b.fmul(m.polynomial(r, [2 * c for c in _SHORT_EXP2]), factor)


def _exp64(m: Math, x: IrValue) -> IrValue:
    """2**n goes in as two factors, so that results beyond the exponents' range are right: infinite, or subnormal with
    one rounding."""
    b = m.b
    x = m.at_least(m.at_most(x, 710.0), -746.0)
    e, n = _reduced_exp64(m, x)
    y = b.fadd(e, m.c(1.0))
    half = b.ashr(n, m.i(1))
    return b.fmul(b.fmul(y, m.power_of_two(half)), m.power_of_two(b.sub(n, half)))


def _reduced_exp64(m: Math, x: IrValue) -> tuple[IrValue, IrValue]:
    """(expm1(r), n) with x = n log 2 + r, |r| <= log(2) / 2."""
    b = m.b
    whole, n = m.round(b.fmul(x, m.c(1 / math.log(2))))
    r = m.fma(whole, m.c(-6.93145751953125e-1), x)
    r = m.fma(whole, m.c(-1.42860682030941723212e-6), r)
    square = b.fmul(r, r)
    p = b.fmul(r, m.polynomial(square, _EXP64_P))
    q = m.polynomial(square, _EXP64_Q)
    return b.fdiv(b.fadd(p, p), b.fsub(q, p)), n


def tanh(m: Math, x: IrValue) -> IrValue:
    """f32: a rational function of the argument held to the range where tanh is not yet 1. f64: expm1(2|x|) /
    (expm1(2|x|) + 2) with x's sign, so that nothing cancels near zero; 1 from |x| = 20 on."""
    b = m.b
    if m.single:
        y = m.at_least(m.at_most(x, 9.02), -9.02)
        square = b.fmul(y, y)
        y = b.fdiv(b.fmul(y, m.polynomial(square, _TANH32_P)), m.polynomial(square, _TANH32_Q))
        return m.at_least(m.at_most(y, 1.0), -1.0)
    y = m.at_most(m.absolute(x), 20.0)
    e, n = _reduced_exp64(m, b.fadd(y, y))
    scale = m.power_of_two(n)
    e = m.fma(scale, e, b.fsub(scale, m.c(1.0)))
    return m.copysign(b.fdiv(e, b.fadd(e, m.c(2.0))), x)


def log(m: Math, x: IrValue) -> IrValue:
    """log(2**n f) = n log 2 + log(f), f in [sqrt(1/2), sqrt(2)); subnormals are scaled up first."""
    b = m.b
    smallest, up, shift = (2.0**-126, 24, 23) if m.single else (2.0**-1022, 54, 52)
    tiny = b.fcmp_ordered("<", x, m.c(smallest))
    y = b.select(tiny, b.fmul(x, m.c(2.0**up)), x)
    bits = m.to_bits(y)
    # Exponent such that f lies in [sqrt(1/2), sqrt(2)): subtract sqrt(1/2)'s bits before shifting.
    root = 0x3F3504F3 if m.single else 0x3FE6A09E667F3BCD
    n = b.ashr(b.sub(bits, m.i(root)), m.i(shift))
    f = m.from_bits(b.sub(bits, b.shl(n, m.i(shift))))
    n = b.sub(n, b.select(tiny, m.i(up), m.i(0)))
    e = _small_int_to_float(m, n)
    f = b.fsub(f, m.c(1.0))
    if m.single:
        square = b.fmul(f, f)
        p = b.fmul(b.fmul(f, square), m.polynomial(f, _LOG32))
        p = m.fma(e, m.c(-2.12194440e-4), p)
        p = m.fma(square, m.c(-0.5), p)
        result = m.fma(e, m.c(0.693359375), b.fadd(f, p))
    else:
        s = b.fdiv(f, b.fadd(f, m.c(2.0)))
        z = b.fmul(s, s)
        r = b.fmul(z, m.polynomial(z, _LOG64))
        half = b.fmul(b.fmul(f, m.c(0.5)), f)
        low = m.fma(s, b.fadd(half, r), b.fmul(e, m.c(1.90821492927058770002e-10)))
        result = m.fma(e, m.c(6.93147180369123816490e-1), b.fsub(f, b.fsub(half, low)))
    infinite = b.fcmp_ordered("==", x, m.c(math.inf))
    result = b.select(infinite, x, result)
    result = b.select(b.fcmp_ordered("==", x, m.c(0.0)), m.c(-math.inf), result)
    return b.select(b.fcmp_unordered("<", x, m.c(0.0)), m.c(math.nan), result)


def _small_int_to_float(m: Math, n: IrValue) -> IrValue:
    """An integer of few bits as a float (SIMD sets below AVX-512 convert no 64-bit integers)."""
    if m.single:
        return m.b.sitofp(n, m.t)
    magic = 6755399441055744.0
    return m.b.fsub(m.from_bits(m.b.add(n, m.to_bits(m.c(magic)))), m.c(magic))


def sin_cos(m: Math, x: IrValue, quarter_turns: int) -> IrValue:
    """sin(x + quarter_turns pi / 2): the argument is reduced to |r| <= pi / 4 in f64."""
    b = m.b
    wide = Math(m.em, like(m.t, F64), m.has_fma)
    y = b.fpext(x, wide.t) if m.single else x
    whole, n = wide.round(b.fmul(y, wide.c(2 / math.pi)))
    minus = b.fneg(whole)
    r = wide.fma(minus, wide.c(1.57079632673412561417), y)
    tail = b.fmul(minus, wide.c(6.07710050630396597660e-11))
    r_low = b.fadd(r, tail)
    error = b.fadd(b.fsub(r, r_low), tail)
    r = b.fadd(r_low, wide.fma(minus, wide.c(2.02226624879595063154e-21), error))
    if m.single:
        r = b.fptrunc(r, m.t)
        n = b.trunc(n, m.bits)
    n = b.add(n, m.i(quarter_turns))
    z = b.fmul(r, r)
    sine = m.fma(b.fmul(r, z), m.polynomial(z, _SIN32 if m.single else _SIN64), r)
    half = b.fmul(m.c(0.5), z)
    one = b.fsub(m.c(1.0), half)
    rest = b.fsub(b.fsub(m.c(1.0), one), half)
    cosine = b.fadd(one, m.fma(b.fmul(z, z), m.polynomial(z, _COS32 if m.single else _COS64), rest))
    odd = b.icmp_signed("!=", b.and_(n, m.i(1)), m.i(0))
    value = b.select(odd, cosine, sine)
    negative = b.icmp_signed("!=", b.and_(n, m.i(2)), m.i(0))
    return b.select(negative, b.fneg(value), value)


def floor(m: Math, x: IrValue) -> IrValue:
    """Rounded down; written with the rounding constant, since SSE2 has no instruction for it."""
    b = m.b
    magic = m.c(8388608.0 if m.single else 4503599627370496.0)
    size = m.absolute(x)
    whole = m.copysign(b.fsub(b.fadd(size, magic), magic), x)
    above = b.fcmp_ordered(">", whole, x)
    down = b.select(above, b.fsub(whole, m.c(1.0)), whole)
    small = b.fcmp_ordered("<", size, magic)
    return m.copysign(b.select(small, down, x), x)


def power(em: Emitter, x: IrValue, y: IrValue, fma: bool) -> IrValue:
    """x ** y in f64, `y` a float or an integer: exp(y log|x|), negative x only to whole powers."""
    m = Math(em, x.type, fma)
    b = m.b
    if isinstance((y.type.element if isinstance(y.type, ir.VectorType) else y.type), ir.IntType):
        odd = b.icmp_signed("!=", b.and_(y, constant(y.type, 1)), constant(y.type, 0))
        y = b.sitofp(y, m.t)
        whole = None
    else:
        rounded = floor(m, y)
        half = b.fmul(rounded, m.c(0.5))
        odd = b.fcmp_ordered("!=", floor(m, half), half)
        whole = b.fcmp_ordered("==", rounded, y)
    size = exp(m, b.fmul(y, log(m, m.absolute(x))))
    negative = b.fcmp_ordered("<", x, m.c(0.0))
    result = b.select(b.and_(negative, odd), b.fneg(size), size)
    if whole is not None:
        result = b.select(b.and_(negative, b.not_(whole)), m.c(math.nan), result)
    trivial = b.or_(b.fcmp_ordered("==", y, m.c(0.0)), b.fcmp_ordered("==", x, m.c(1.0)))
    return b.select(trivial, m.c(1.0), result)
