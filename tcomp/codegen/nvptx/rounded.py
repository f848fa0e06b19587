"""Values that are stored in 16 bits: forms that are as right as those can tell, in fewer instructions.

    a + a * tanh(v)    -->    2 a * reciprocal(1 + exp2(-2 log2(e) v))        relative error 2^-20 for |v| <= 16
    exp(v)             -->    exp2(log2(e) v)                                 relative error 2^-22 + |v| 2^-24
    1 / v              -->    reciprocal(v)                                   relative error 2^-23

GELU is of the first form. Nothing cancels where tanh is close to -1, so small results are better than those of the form
as it is written; constants go into those that are there.
"""

from __future__ import annotations

import math

from tcomp.codegen.rounded import NARROW, logistic_of, scaled
from tcomp.dsl.ast import Binary, Call, Expr, Num, children, rebuild

__all__ = ["NARROW", "for_narrow"]


def for_narrow(e: Expr) -> Expr:
    """The expression for a target of one of the `NARROW` types."""
    turned = logistic_of(e)
    if turned is not None:
        twice, v = turned
        power = Call("exp2", (scaled(for_narrow(v), -2 * math.log2(math.e)),))
        return Binary("*", for_narrow(twice), Call("reciprocal", (Binary("+", Num(1.0), power),)))
    match e:
        case Binary("/", Num(1.0) as one, v):
            return Call("reciprocal", (for_narrow(v),), one.span)
        case Call("exp", (v,)):
            return Call("exp2", (Binary("*", for_narrow(v), Num(math.log2(math.e))),))
    kids = children(e)
    return rebuild(e, tuple(for_narrow(k) for k in kids)) if kids else e
