"""Values that are stored in 16 bits may take forms that are as right as those can tell: what targets share of it.

Each target has its own forms (threads/rounded.py, cpu/rounded.py), since what is cheap differs.
"""

from __future__ import annotations

from tcomp.dsl.ast import Binary, Call, DType, Expr, Num

NARROW = (DType.BF16, DType.F16)


def logistic_of(e: Expr) -> tuple[Expr, Expr] | None:
    """(2 a, v) where the expression is a + a * tanh(v), which is 2 a / (1 + exp(-2 v)): there nothing cancels."""
    match e:
        case Binary("+", a, Binary("*", b, Call("tanh", (v,)))) | Binary("+", Binary("*", b, Call("tanh", (v,))), a):
            if a == b:
                return scaled(a, 2.0), v
    return None


def turn_of(e: Expr) -> tuple[str, Expr] | None:
    """("+", v) where the expression is 1 + tanh(v), ("-", v) where it is 1 - tanh(v) * tanh(v): with
    l = 1 / (1 + exp(-2 v)), these are 2 l and 4 l (1 - l)."""
    match e:
        case Binary("+", Num(1.0), Call("tanh", (v,))) | Binary("+", Call("tanh", (v,)), Num(1.0)):
            return "+", v
        case Binary("-", Num(1.0), Binary("*", Call("tanh", (v,)), Call("tanh", (w,)))) if v == w:
            return "-", v
    return None


def slope_of(e: Expr) -> tuple[Expr, Expr, Expr] | None:
    """(2 a, v, 2 x) where the expression is a * (1 + tanh(v) + x * (1 - tanh(v) * tanh(v))), GELU's derivative: that is
    2 a * l * (1 + 2 x (1 - l))."""
    match e:
        case Binary("*", a, Binary("+", sum, Binary("*", x, rest))):
            first, second = turn_of(sum), turn_of(rest)
            if first is not None and second is not None and (first[0], second[0]) == ("+", "-"):
                return (scaled(a, 2.0), first[1], scaled(x, 2.0)) if first[1] == second[1] else None
    return None


def scaled(e: Expr, factor: float) -> Expr:
    """`factor` times the expression, by its own constants where it has some."""
    match e:
        case Num(c):
            return Num(c * factor)
        case Binary("+" | "-" as op, x, y) if has_constant(e):
            return Binary(op, scaled(x, factor), scaled(y, factor))
        case Binary("*", x, y) if has_constant(e):
            x, y = (x, scaled(y, factor)) if has_constant(y) else (scaled(x, factor), y)
            return y if x == Num(1.0) else x if y == Num(1.0) else Binary("*", x, y)
    return Binary("*", e, Num(factor))


def has_constant(e: Expr) -> bool:
    """Can a factor go into the expression's constants?"""
    match e:
        case Num():
            return True
        case Binary("+" | "-", x, y):
            return has_constant(x) and has_constant(y)
        case Binary("*", x, y):
            return has_constant(x) or has_constant(y)
    return False
