"""Quotients of exponentials that stay finite: exp(v) / (a + b exp(v))  -->  1 / (b + a exp(-v)).

The left one is inf / inf where exp(v) overflows, the right one 1 / b. Slopes of the logistic function and of its
relatives (softplus, SiLU) have such quotients, for instance exp(-x) / (1 + exp(-x))**2.
"""

from __future__ import annotations

from tcomp.dsl.ast import Binary, Call, Expr, Num, Unary, map_children
from tcomp.grad.simplify import ONE, polynomial, simplify


def finite(e: Expr) -> Expr:
    """The expression with every such quotient of a product by a product written the other way."""
    e = map_children(e, finite)
    if not (isinstance(e, Binary) and e.op == "/"):
        return e
    above, below = _factors(e.left), _factors(e.right)
    for i, x in enumerate(above):
        for j, d in enumerate(below):
            other = _reversed(d, x) if isinstance(x, Call) and x.function == "exp" else None
            if other is not None:
                above, below = above[:i] + above[i + 1 :], [*below[:j], other, *below[j + 1 :]]
                return finite(Binary("/", _product(above), _product(below)))
    return e


def _reversed(d: Expr, x: Expr) -> Expr | None:
    """b + a exp(-v) for d = a + b exp(v) and x = exp(v); None for another d."""
    p = polynomial(d)
    if set(p) != {(), ((x, 1),)}:
        return None
    a, b = p[()], p[((x, 1),)]
    assert isinstance(x, Call)
    scaled = Call("exp", (simplify(Unary("-", x.args[0])),))
    return simplify(Binary("+", Num(float(b)), Binary("*", Num(float(a)), scaled)))


def _factors(e: Expr) -> list[Expr]:
    match e:
        case Binary("*", x, y):
            return _factors(x) + _factors(y)
        case Unary("-", x):
            return [Num(-1.0), *_factors(x)]
    return [e]


def _product(factors: list[Expr]) -> Expr:
    out: Expr = ONE
    for f in factors:
        out = f if out == ONE else Binary("*", out, f)
    return out
