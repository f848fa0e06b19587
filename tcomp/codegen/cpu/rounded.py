"""Values that are stored in 16 bits: forms that are as right as those can tell, in fewer instructions.

    a + a * tanh(v)    -->    2 a / (1 + exp2(-2 log2(e) v))        relative error 2^-18 for |v| <= 16
    exp(v)             -->    exp, with log(2) not taken apart      relative error 2^-22 + |v| 2^-28

GELU is of the first form. Small results are better than those of the form as it is written, where tanh is close to -1.
The second is exp of an argument that is off by less than its own rounding, so nothing that cancels gets worse. What is
stored in f32, or goes on in a sum, keeps its form.
"""

from __future__ import annotations

import math

from tcomp.codegen.llvm.expressions import NARROW_EXP, SHORT_EXP2
from tcomp.codegen.rounded import NARROW, logistic_of, scaled
from tcomp.dsl.ast import Binary, Call, DType, Expr, Num, children, rebuild


def as_stored(e: Expr, dtype: DType) -> Expr:
    """The expression whose value is stored in elements of this type, in the form to compute."""
    return _for_narrow(e) if dtype in NARROW else e


def _for_narrow(e: Expr) -> Expr:
    turned = logistic_of(e)
    if turned is not None:
        twice, v = turned
        power = Call(SHORT_EXP2, (scaled(_for_narrow(v), -2 * math.log2(math.e)),))
        return Binary("/", _for_narrow(twice), Binary("+", Num(1.0), power))
    kids = tuple(_for_narrow(k) for k in children(e))
    if isinstance(e, Call) and e.function == "exp":
        return Call(NARROW_EXP, kids)
    return rebuild(e, kids) if kids else e
