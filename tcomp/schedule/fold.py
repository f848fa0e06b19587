"""Dimensions become numbers and constant expressions are folded: `qk * D ** -0.5` --> `qk * 0.125`.

Lowering works on equations of one op instance, so every dimension is known and only index variables,
loop variables and accesses remain as unknowns.
"""

from __future__ import annotations

import math

from tcomp.dsl.ast import Binary, Call, Expr, Name, Num, Unary, map_children
from tcomp.dsl.dims import arithmetic


def bind_dims(e: Expr, dims: dict[str, int]) -> Expr:
    """Replace dimension names by their values and fold constants."""
    if isinstance(e, Name):
        return Num(dims[e.id], e.span) if e.id in dims else e
    return fold(map_children(e, lambda x: bind_dims(x, dims)))


def fold(e: Expr) -> Expr:
    """Fold one node whose operands are folded already."""
    match e:
        case Unary("-", Num(v)):
            return Num(-v, e.span)
        case Binary(op, Num(a), Num(b)):
            value = arithmetic(op, a, b)
            return e if value is None else Num(value, e.span)
        case Binary("+", Num(0), x) | Binary("+" | "-", x, Num(0)) if isinstance(_zero(e), int):
            return x
        case Call("sqrt", (Num(v),)) if v >= 0:
            return Num(math.sqrt(v), e.span)
        case Call("exp", (Num(v),)):
            return Num(math.exp(v), e.span)
    return e


def _zero(e: Binary) -> int | float | None:
    side = e.left if isinstance(e.left, Num) and e.left.value == 0 else e.right
    return side.value if isinstance(side, Num) else None


def add(a: Expr, b: Expr) -> Expr:
    """a + b, folded: (x - 1) + 1 is x."""
    if isinstance(a, Binary) and a.op in "+-" and isinstance(a.right, Num) and isinstance(b, Num):
        held = a.right.value if a.op == "+" else -a.right.value
        total = held + b.value
        return a.left if total == 0 else fold(Binary("+", a.left, Num(total)))
    return fold(Binary("+", a, b))


def sub(a: Expr, b: Expr) -> Expr:
    """a - b, folded; a - a is 0."""
    return Num(0) if a == b else fold(Binary("-", a, b))


def behind(s: Expr, origin: Expr) -> Expr:
    """How far a subscript is behind an origin: `128 * t + r` behind `128 * t` is r."""
    if isinstance(s, Binary) and s.op == "+" and s.left == origin:
        return s.right
    return sub(s, origin)


def minimum(a: Expr, b: Expr) -> Expr:
    """min(a, b), folded when both are numbers or equal."""
    if a == b:
        return a
    if isinstance(a, Num) and isinstance(b, Num):
        return a if a.value <= b.value else b
    return Call("min", (a, b))


def end_of_part(start: Expr, block: int, stop: Expr, end: Expr) -> Expr:
    """Where the part of an axis that goes up to `end` stops: there, or at what the whole stops at before the `block`
    values from its start on are through."""
    whole = fold(Binary("+", start, Num(block)))
    for e in _first_of(stop):
        if fold(e) != whole:
            end = Call("min", (end, e))
    return end


def _first_of(e: Expr) -> tuple[Expr, ...]:
    """The values that min is taken of."""
    match e:
        case Call("min", args):
            return tuple(x for a in args for x in _first_of(a))
    return (e,)


def by_exp2(e: Expr) -> Expr:
    """`exp(a * c - b)` --> `exp2(a * (c * log2(e)) - b * log2(e))`, one multiply-add and one instruction on a GPU: for
    values that are rounded to 16 bits, since it is only correct to 2**-21 or so of its argument. Where there is no c,
    `exp(a - b)` --> `exp2((a - b) * log2(e))`: as many instructions, and 1 where a and b are equal."""
    match e:
        case Call("exp", (x,)):
            return Call("exp2", (_scaled(x, math.log2(math.e)),), e.span)
    return map_children(e, by_exp2)


def _scaled(e: Expr, factor: float) -> Expr:
    match e:
        case Binary("+" | "-" as op, x, y) if _has_factor(x) or _has_factor(y):
            return Binary(op, _scaled(x, factor), _scaled(y, factor), e.span)
        case Binary("*", x, Num(c)) | Binary("*", Num(c), x):
            return Binary("*", x, Num(c * factor), e.span)
    return Binary("*", e, Num(factor), e.span)


def _has_factor(e: Expr) -> bool:
    """Is there a constant in one of its terms that another one goes into?"""
    match e:
        case Binary("+" | "-", x, y):
            return _has_factor(x) or _has_factor(y)
        case Binary("*", _, Num()) | Binary("*", Num(), _):
            return True
    return False
