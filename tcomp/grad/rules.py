"""Derivatives of expressions: `partial(e, a)` is the derivative of `e` by the access `a`.

Where a function has a corner, one of its slopes there is taken: abs(0) has slope 1, min and max of equals
follow their first argument; the slope of x ** y by y is 0 where x ** y is. floor, comparisons, integers and random
numbers have slope 0; a cast has slope 1.
"""

from __future__ import annotations

from collections.abc import Callable

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Num, Unary, walk
from tcomp.dsl.errors import TcError
from tcomp.grad.logistic import finite
from tcomp.grad.parts import both
from tcomp.grad.simplify import ONE, ZERO, simplify

FLOAT_CASTS = {d.value for d in DType if d.is_float}


def _times(a: Expr, b: Expr) -> Expr:
    return Binary("*", a, b)


SLOPES: dict[str, Callable[[Expr, Expr], Expr]] = {
    "exp": lambda x, y: y,
    "log": lambda x, y: Binary("/", ONE, x),
    "tanh": lambda x, y: Binary("-", ONE, _times(y, y)),
    "sqrt": lambda x, y: Binary("/", Num(0.5), y),
    "rsqrt": lambda x, y: _times(Num(-0.5), _times(y, _times(y, y))),
    "sin": lambda x, y: Call("cos", (x,)),
    "cos": lambda x, y: Unary("-", Call("sin", (x,))),
    "abs": lambda x, y: Call("select", (Binary("<", x, ZERO), Num(-1.0), ONE)),
    "floor": lambda x, y: ZERO,
}
"""The slope of each function of one argument, from the argument x and the result y."""


def partial(e: Expr, a: Access) -> Expr:
    """The derivative of `e` by the value of the access `a` (equal accesses vary together), simplified."""
    return finite(simplify(_partial(e, a)))


def _partial(e: Expr, a: Access) -> Expr:
    if e == a:
        return ONE
    if not any(n == a for n in walk(e)):
        return ZERO
    match e:
        case Unary("-", x):
            return Unary("-", _partial(x, a))
        case Binary("+" | "-" as op, x, y):
            return Binary(op, _partial(x, a), _partial(y, a))
        case Binary("*", x, y):
            return Binary("+", _times(_partial(x, a), y), _times(_partial(y, a), x))
        case Binary("/", x, y):
            top = Binary("/", _partial(x, a), y)
            slope = _partial(y, a)
            return top if slope == ZERO else Binary("-", top, _times(slope, Binary("/", x, _times(y, y))))
        case Binary("**", x, y):
            return _power(e, x, y, a)
        case Call("select", (c, x, y)):
            return _either(c, _partial(x, a), _partial(y, a))
        case Call("max", (x, y)):
            return _either(Binary(">=", x, y), _partial(x, a), _partial(y, a))
        case Call("min", (x, y)):
            return _either(Binary("<=", x, y), _partial(x, a), _partial(y, a))
        case Call(f, (x,)) if f in SLOPES:
            return _times(SLOPES[f](x, e), _partial(x, a))
        case Call(f, (x, *_)) if f in FLOAT_CASTS:
            return _partial(x, a)
        case Call("random" | "i32") | Unary("not") | Access():
            return ZERO
        case Binary():
            return ZERO  # comparisons, logic, // and % (of integers)
    raise TcError(
        "this expression has no derivative here",
        getattr(e, "span", a.span),
        hint="write the backward: `backward NAME(...)`",
    )


def _power(e: Expr, x: Expr, y: Expr, a: Access) -> Expr:
    base, exponent = _partial(x, a), _partial(y, a)
    out: Expr = ZERO
    if base != ZERO:
        out = _times(base, _times(y, Binary("**", x, simplify(Binary("-", y, Num(1))))))
    if exponent != ZERO:
        log: Expr = Call("log", (x,))
        if not isinstance(x, Num):  # x ** y log(x) has the limit 0 where x ** y has it, and would be 0 times infinity
            log = Call("select", (Binary("==", e, ZERO), ZERO, log))
        out = Binary("+", out, _times(exponent, _times(e, log)))
    return out


def _either(condition: Expr, x: Expr, y: Expr) -> Expr:
    x, y = simplify(x), simplify(y)
    return x if x == y else Call("select", (condition, x, y))


def reached(e: Expr, a: Access) -> Expr | None:
    """A condition under which `e` reads the access `a`: the selects on the way. None: always."""
    found = _paths(e, a, None)
    if not found or any(c is None for c in found):
        return None
    out = found[0]
    for c in found[1:]:
        if c != out:
            assert out is not None and c is not None
            out = Binary("or", out, c)
    return out


def _paths(e: Expr, a: Access, so_far: Expr | None) -> list[Expr | None]:
    if e == a:
        return [so_far]
    match e:
        case Call("select", (c, x, y)):
            out = _paths(c, a, so_far)
            out += _paths(x, a, both(so_far, c))
            return out + _paths(y, a, both(so_far, Unary("not", c)))
        case Unary(_, x):
            return _paths(x, a, so_far)
        case Binary(_, x, y):
            return _paths(x, a, so_far) + _paths(y, a, so_far)
        case Call(_, args) | Access(_, args):
            return [p for x in args for p in _paths(x, a, so_far)]
    return []
