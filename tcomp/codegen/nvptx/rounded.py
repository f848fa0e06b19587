"""Values that are stored in 16 bits: forms that are as right as those can tell, in fewer instructions.

    a + a * tanh(v)    -->    2 a * reciprocal(1 + exp2(-2 log2(e) v))        relative error 2^-20 for |v| <= 16
    exp(v)             -->    exp2(log2(e) v)                                 relative error 2^-22 + |v| 2^-24
    1 / v              -->    reciprocal(v)                                   relative error 2^-23

GELU is of the first form. Nothing cancels where tanh is close to -1, so small results are better than those of the form
as it is written; constants go into those that are there.
"""

from __future__ import annotations

import math

from tcomp.dsl.ast import Binary, Call, DType, Expr, Num, children, rebuild

NARROW = (DType.BF16, DType.F16)


def for_narrow(e: Expr) -> Expr:
    """The expression for a target of one of the `NARROW` types."""
    match e:
        case Binary("+", a, Binary("*", b, Call("tanh", (v,)))) | Binary("+", Binary("*", b, Call("tanh", (v,))), a):
            if a == b:
                power = Call("exp2", (scaled(for_narrow(v), -2 * math.log2(math.e)),))
                return Binary("*", scaled(for_narrow(a), 2.0), Call("reciprocal", (Binary("+", Num(1.0), power),)))
        case Binary("/", Num(1.0) as one, v):
            return Call("reciprocal", (for_narrow(v),), one.span)
        case Call("exp", (v,)):
            return Call("exp2", (Binary("*", for_narrow(v), Num(math.log2(math.e))),))
    kids = children(e)
    return rebuild(e, tuple(for_narrow(k) for k in kids)) if kids else e


def scaled(e: Expr, factor: float) -> Expr:
    """`factor` times the expression, by its own constants where it has some."""
    match e:
        case Num(c):
            return Num(c * factor)
        case Binary("+" | "-" as op, x, y) if _has_constant(e):
            return Binary(op, scaled(x, factor), scaled(y, factor))
        case Binary("*", x, y) if _has_constant(e):
            x, y = (x, scaled(y, factor)) if _has_constant(y) else (scaled(x, factor), y)
            return y if x == Num(1.0) else x if y == Num(1.0) else Binary("*", x, y)
    return Binary("*", e, Num(factor))


def _has_constant(e: Expr) -> bool:
    """Can a factor go into the expression's constants?"""
    match e:
        case Num():
            return True
        case Binary("+" | "-", x, y):
            return _has_constant(x) and _has_constant(y)
        case Binary("*", x, y):
            return _has_constant(x) or _has_constant(y)
    return False
