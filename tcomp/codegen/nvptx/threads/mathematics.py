"""exp, log, tanh, sin, cos, sqrt, rsqrt, floor, division and powers in PTX, without calls.

f32 error bounds in units in the last place (the tests sweep them on the virtual GPU):

    exp 3    log 2    tanh 6    sin, cos 2 on |x| <= 1e4    rsqrt 2    sqrt and division exact rounding

(2 for sqrt and division in kernels with wgmma, which must not call anything: the assembler would serialise it.)

exp and tanh rest on ex2.approx (relative error 2^-22.5), whose argument exp splits in two so that large ones lose
nothing; log, sin, cos, all f64 functions and powers are the shared formulas. Results of infinities, NaN, zero,
overflow and underflow are those of the exact functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llvmlite import ir

from tcomp.codegen.llvm import vectormath
from tcomp.codegen.llvm.types import F32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter

_LOG2E = 1.4426950216293335
_LOG2E_LOW = 1.9259629911266175e-8
FUNCTIONS = frozenset({"exp", "log", "tanh", "sin", "cos", "sqrt", "rsqrt", "floor"})


def call(em: GpuEmitter, name: str, x: IrValue) -> IrValue:
    """The named function of a scalar, emitted where the builder stands."""
    if name == "floor":
        return em.intrinsic("llvm.floor", x.type, [x], [x.type])
    if x.type == F32:
        match name:
            case "exp":
                return exp(em, x)
            case "tanh":
                return tanh(em, x)
            case "sqrt" if not em.calls:
                return em.asm("sqrt.approx.f32 $0, $1;", F32, "=f,f", [x])
            case "rsqrt":
                return em.asm("rsqrt.approx.f32 $0, $1;", F32, "=f,f", [x])
    return vectormath.call(em, name, x, True)


def _c(value: float) -> IrValue:
    return ir.Constant(F32, value)


def _fma(em: GpuEmitter, a: IrValue, b: IrValue, c: IrValue) -> IrValue:
    return em.intrinsic("llvm.fma", F32, [a, b, c], [F32])


def _within(em: GpuEmitter, x: IrValue, low: float, high: float) -> IrValue:
    """x limited to low .. high, NaN kept."""
    x = em.intrinsic("llvm.minimum", F32, [x, _c(high)], [F32])
    return em.intrinsic("llvm.maximum", F32, [x, _c(low)], [F32])


def _power_of_e(em: GpuEmitter, x: IrValue) -> IrValue:
    """2^(high + low) with high = x log2(e) rounded and low the rest: 2^high (1 + low ln 2), for moderate x."""
    b = em.builder
    high = b.fmul(x, _c(_LOG2E))
    low = _fma(em, x, _c(_LOG2E), b.fneg(high))
    low = _fma(em, x, _c(_LOG2E_LOW), low)
    power = em.asm("ex2.approx.f32 $0, $1;", F32, "=f,f", [high])
    return _fma(em, b.fmul(power, _c(math.log(2))), low, power)


def exp2(em: GpuEmitter, x: IrValue) -> IrValue:
    """2**x with a relative error of 2**-22, in one instruction; subnormal results are 0."""
    return em.asm("ex2.approx.ftz.f32 $0, $1;", F32, "=f,f", [x])


def reciprocal(em: GpuEmitter, x: IrValue) -> IrValue:
    """1 / x within 1 unit in the last place, in one instruction; subnormal results are 0, and so are such x."""
    return em.asm("rcp.approx.ftz.f32 $0, $1;", F32, "=f,f", [x])


def divided(em: GpuEmitter, x: IrValue, y: IrValue) -> IrValue:
    """x / y within 2 units in the last place, without the call that exact rounding takes."""
    return em.asm("div.full.f32 $0, $1, $2;", F32, "=f,f,f", [x, y])


APPROXIMATE: dict[str, Callable[..., IrValue]] = {"exp2": exp2, "reciprocal": reciprocal, "quotient": divided}
"""Functions of f32 that no text names: lowering and code generation put them where they suffice."""


def exp(em: GpuEmitter, x: IrValue) -> IrValue:
    """e**x; beyond -104 .. 88.8 the result is 0 or infinity whatever the rest of the argument."""
    inside = _within(em, x, -105.0, 88.75)
    b = em.builder
    huge = b.fcmp_ordered(">", x, _c(88.72284))
    return b.select(huge, _c(math.inf), _power_of_e(em, inside))


def tanh(em: GpuEmitter, x: IrValue) -> IrValue:
    """1 - 2 / (e^2|x| + 1) from |x| = 0.55 on, an odd polynomial below, with x's sign. The power's argument is not
    split: its rounding grows with |x|, but what it does to the result shrinks faster."""
    b = em.builder
    size = em.intrinsic("llvm.fabs", F32, [x], [F32])
    e = exp2(em, b.fmul(size, _c(2 * math.log2(math.e))))
    quotient = reciprocal(em, b.fadd(e, _c(1.0)))
    large = em.intrinsic("llvm.copysign", F32, [_fma(em, quotient, _c(-2.0), _c(1.0)), x], [F32])
    z = b.fmul(x, x)
    p: IrValue = _c(_TANH[0])
    for k in _TANH[1:]:
        p = _fma(em, p, z, _c(k))
    small = _fma(em, b.fmul(p, z), x, x)
    return b.select(b.fcmp_ordered("<", size, _c(0.55)), small, large)


_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
"""(tanh(x) / x - 1) / x^2 in powers of x^2 on |x| < 0.625 (Cephes, Moshier)"""


def power(em: GpuEmitter, x: IrValue, y: IrValue) -> IrValue:
    """x ** y in f64 (`llvm/expressions.py` widens the operands)."""
    return vectormath.power(em, x, y, True)
