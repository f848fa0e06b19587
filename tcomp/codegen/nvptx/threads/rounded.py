"""Values that are stored in 16 bits, or cast to them: forms that are as right as those can tell, in fewer instructions.

    a + a * tanh(v)                          -->    2 a l                        relative error 2^-20 for |v| <= 16
    a * (1 + tanh(v) + x * (1 - tanh(v)**2)) -->    2 a l (1 + 2 x (1 - l))
    1 + tanh(v),  1 - tanh(v)**2             -->    2 l,  4 (l - l l)
    exp(v)                                   -->    exp2(log2(e) v)              relative error 2^-22 + |v| 2^-24
    1 / v                                    -->    reciprocal(v)                relative error 2^-23
    bf16(u / v)                              -->    bf16(quotient(u, v))         relative error 2^-22

Subnormal numbers count as zero in exp2 and reciprocal: exp(v) is 0 below -87.3, 1 / v is infinite for v below 2^-126
and 0 beyond 2^126. A quotient is right for them, too, and for zero, infinity and NaN. It may be the other neighbour
where the exact one is within 2^-22 of the middle between two 16-bit values, as no normal quotient of bf16 values is.

where l = reciprocal(1 + exp2(-2 log2(e) v)). GELU is of the first form, its derivative of the second. Nothing cancels
where tanh is close to -1, so small results are better than those of the form as it is written; constants go into those
that are there.
"""

from __future__ import annotations

import math

from tcomp.codegen.rounded import NARROW, has_constant, logistic_of, scaled, slope_of, turn_of
from tcomp.dsl.ast import Binary, Call, Expr, Num, map_children

__all__ = ["NARROW", "for_narrow", "in_casts"]
_CASTS = frozenset(d.value for d in NARROW)


def _logistic(v: Expr) -> Expr:
    """1 / (1 + exp(-2 v))."""
    power = Call("exp2", (scaled(for_narrow(v), -2 * math.log2(math.e)),))
    return Call("reciprocal", (Binary("+", Num(1.0), power),))


def _bend(turn: Expr) -> Expr:
    """l (1 - l), which one multiply-add rounds once."""
    return Binary("-", turn, Binary("*", turn, turn))


def for_narrow(e: Expr) -> Expr:
    """The expression for a target of one of the `NARROW` types."""
    turned = logistic_of(e)
    if turned is not None:
        twice, v = turned
        return _logistic(v) if twice == Num(1.0) else Binary("*", for_narrow(twice), _logistic(v))
    slope = slope_of(e)
    if slope is not None:
        twice, turn, x = for_narrow(slope[0]), _logistic(slope[1]), for_narrow(slope[2])
        bend = Binary("+", Num(1.0), Binary("*", x, Binary("-", Num(1.0), turn)))
        return Binary("*", Binary("*", twice, turn), bend)
    part = turn_of(e)
    if part is not None:
        turn = _logistic(part[1])
        return scaled(turn, 2.0) if part[0] == "+" else scaled(_bend(turn), 4.0)
    match e:
        case Binary("*", x, y) if has_constant(y) and (found := turn_of(x)) is not None and found[0] == "-":
            return Binary("*", for_narrow(scaled(y, 4.0)), _bend(_logistic(found[1])))
        case Binary("/", Num(1.0) as one, v):
            return Call("reciprocal", (for_narrow(v),), one.span)
        case Call("exp", (v,)):
            return Call("exp2", (Binary("*", for_narrow(v), Num(math.log2(math.e))),))
    return map_children(e, for_narrow)


def in_casts(e: Expr) -> Expr:
    """The expression with what it casts to a `NARROW` type, as a scale that is `bf16(448.0 / a)`, in these forms."""
    match e:
        case Call(name, (x,)) if name in _CASTS:
            x = for_narrow(x)
            if isinstance(x, Binary) and x.op == "/":
                x = Call("quotient", (x.left, x.right), x.span)
            return Call(name, (x,), e.span)
    return map_children(e, in_casts)
