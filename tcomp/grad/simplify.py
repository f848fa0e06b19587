"""Simplify real expressions through a normal form: a sum of monomials over atoms.

    (a * x + x * b - b * x) / x   -->   a

An atom is whatever is not + - * / or a numeric power: an access, a name, a call with simplified arguments, a
sum inside a product. Sums are not multiplied out (that would lose accuracy, and the reader); only
`expand=True`, which proves that something is zero, does. Works in exact rationals where literals allow.
Integers divide as reals here, so only real-valued expressions may be given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Unary, map_children, names_in
from tcomp.dsl.printer import print_expression

Number = int | float | Fraction
Monomial = tuple[tuple[Expr, Number], ...]
"""Atoms with their exponents (never 0), in the order in which they print."""
Polynomial = dict[Monomial, Number]
"""Monomials with their coefficients (never 0), in order of first appearance."""

ZERO, ONE = Num(0.0), Num(1.0)
MOST_TERMS = 64


class TooLong(Exception):
    """Multiplying out gave more than MOST_TERMS terms."""


def simplify(e: Expr) -> Expr:
    """An equal expression with terms collected and constants folded."""
    return expression(polynomial(e))


def is_zero(e: Expr, inline: Callable[[Expr], Expr] = lambda e: e) -> bool:
    """Is it zero for all values? Multiplies everything out; False when that does not show it."""
    try:
        return not polynomial(inline(e), expand=True)
    except TooLong:
        return False


# ------------------------------------------------------------------------------------- to normal form


def polynomial(e: Expr, expand: bool = False) -> Polynomial:
    """The normal form of an expression."""
    match e:
        case Num(value):
            return _constant(value if isinstance(value, int) else _exact(value))
        case Unary("-", x):
            return _scale(polynomial(x, expand), -1)
        case Binary("+", x, y):
            return add(polynomial(x, expand), polynomial(y, expand))
        case Binary("-", x, y):
            return add(polynomial(x, expand), _scale(polynomial(y, expand), -1))
        case Binary("*", x, y):
            return multiply(polynomial(x, expand), polynomial(y, expand), expand)
        case Binary("/", x, y):
            return multiply(polynomial(x, expand), power(polynomial(y, expand), -1, expand), expand)
        case Binary("**", x, y):
            exponent = polynomial(y, expand)
            if not exponent:
                return _constant(1)
            if set(exponent) == {()}:
                return power(polynomial(x, expand), exponent[()], expand)
            return _atom(Binary("**", simplify(x), expression(exponent)))
        case Call("exp", (x,)):
            return _exp(polynomial(x, expand))
        case Call("select", (c, x, y)):
            a, b = expression(polynomial(x, expand)), expression(polynomial(y, expand))
            if a == b:
                return polynomial(a, expand)
            return _atom(Call("select", (c, a, b)))
        case Call(f, args) if f in ("tanh", "sin", "sqrt") and not polynomial(args[0], expand):
            return {}
        case Call(f, args) if f in ("cos",) and not polynomial(args[0], expand):
            return _constant(1)
        case Call(f, args) if f not in ("random", "i32"):
            return _atom(Call(f, tuple(expression(polynomial(a, expand)) for a in args)))
        case _:
            return _atom(e)


def add(p: Polynomial, q: Polynomial) -> Polynomial:
    """The sum; terms that cancel to rounding are gone."""
    out = dict(p)
    for m, c in q.items():
        if m not in out:
            out[m] = c
            continue
        total = out[m] + c
        if total == 0 or (isinstance(total, float) and abs(total) <= 1e-14 * abs(float(c))):
            del out[m]
        else:
            out[m] = total
    return out


def multiply(p: Polynomial, q: Polynomial, expand: bool = False) -> Polynomial:
    """The product. Without `expand`, a sum times something not a number becomes a factor of its own."""
    if not p or not q:
        return {}
    if not expand:
        if set(p) == {()}:
            return _scale(q, p[()])
        if set(q) == {()}:
            return _scale(p, q[()])
        p, q = _factor(p), _factor(q)
    if len(p) * len(q) > MOST_TERMS:
        raise TooLong
    out: Polynomial = {}
    for m, a in p.items():
        for n, b in q.items():
            out = add(out, {_join(m, n): a * b})
    return out


def power(p: Polynomial, n: Number, expand: bool = False) -> Polynomial:
    """p ** n for a number n; (x * y) ** n is split only for whole n, which holds for all signs."""
    if n == 0:
        return _constant(1)
    if n == 1:
        return p
    if set(p) == {()}:
        return _constant(_number_power(p[()], n))
    whole = n == int(n)
    if expand and whole and 0 < n <= 6 and len(p) > 1:
        out = p
        for _ in range(int(n) - 1):
            out = multiply(out, p, True)
        return out
    if not p:
        return _atom(Binary("**", ZERO, _numeral(n)))
    p = _factor(p)
    ((m, c),) = p.items()
    if whole:
        return {tuple((a, e * n) for a, e in m): _number_power(c, n)}
    if c > 0 and len(m) == 1 and m[0][1] == 1:
        return {((m[0][0], n),): _number_power(c, n)}
    if c > 0 and c != 1:
        return {((expression({m: 1}), n),): _number_power(c, n)}
    return {((expression(p), n),): 1}


def _exp(p: Polynomial) -> Polynomial:
    """exp(a + n log b) = exp(a) * b ** n."""
    rest: Polynomial = {}
    out = _constant(1)
    for m, c in p.items():
        if len(m) == 1 and m[0][1] == 1 and isinstance(m[0][0], Call) and m[0][0].function == "log":
            out = multiply(out, power(polynomial(m[0][0].args[0]), c))
        else:
            rest[m] = c
    return multiply(out, _atom(Call("exp", (expression(rest),)))) if rest else out


def _constant(value: Number) -> Polynomial:
    return {(): value} if value != 0 else {}


def _atom(e: Expr) -> Polynomial:
    return {((e, 1),): 1}


def _scale(p: Polynomial, c: Number) -> Polynomial:
    return {m: v * c for m, v in p.items()} if c != 0 else {}


def _factor(p: Polynomial) -> Polynomial:
    """A sum as a single factor, its common factors pulled out; a monomial as it is."""
    if len(p) <= 1:
        return p
    common, rest = common_factors(p)
    c, rest = common_coefficient(rest)
    return {_join(common, ((_sum(rest), 1),)): c}


def common_coefficient(p: Polynomial) -> tuple[Number, Polynomial]:
    """2 * a - 2 * b is 2 times a - b: a coefficient that all terms share, but for its sign."""
    sizes: set[Number] = {-c if c < 0 else c for c in p.values()}
    c: Number = sizes.pop() if len(sizes) == 1 else 1
    if all(v < 0 for v in p.values()):
        c = -c
    if c == 1:
        return 1, p
    return c, {m: -1 if c * v < 0 else 1 for m, v in p.items()} if abs(c) != 1 else _scale(p, -1)


def common_factors(
    p: Polynomial, allowed: Callable[[Expr, Number], bool] = lambda atom, exponent: True
) -> tuple[Monomial, Polynomial]:
    """The monomial that divides every term (of allowed powers), and what is left of the sum."""
    terms = [dict(m) for m in p]
    common: list[tuple[Expr, Number]] = []
    for atom in terms[0]:
        exponents = [t[atom] for t in terms if atom in t]
        if len(exponents) < len(terms):
            continue
        if all(x > 0 for x in exponents):
            shared = min(exponents)
        elif all(x < 0 for x in exponents):
            shared = max(exponents)
        else:
            continue
        if allowed(atom, shared):
            common.append((atom, shared))
    if not common:
        return (), p
    inverse = tuple((a, -x) for a, x in common)
    return tuple(common), {_join(m, inverse): c for m, c in p.items()}


def factored(p: Polynomial, indices: set[str], guarded: bool) -> tuple[Expr, Expr]:
    """(what does not depend on the indices, what does), their product being the polynomial.

    Where a guard may leave no point at all, only what is finite then goes outside: no quotient, no call.
    """

    def outside(atom: Expr, x: Number) -> bool:
        finite = isinstance(atom, Name) or (isinstance(atom, Access) and x > 0)
        return not names_in(atom) & indices and (finite or not guarded)

    if len(p) == 1:
        ((m, c),) = p.items()
        inner = tuple((a, x) for a, x in m if not outside(a, x))
        return expression({tuple((a, x) for a, x in m if outside(a, x)): c}), expression({inner: 1})
    common, rest = common_factors(p, outside)
    sign = -1 if all(c < 0 for c in rest.values()) else 1
    return expression({common: sign}), expression({m: c * sign for m, c in rest.items()})


def _join(m: Monomial, n: Monomial) -> Monomial:
    exponents = dict(m)
    for atom, x in n:
        total = exponents.get(atom, 0) + x
        if total == 0:
            exponents.pop(atom, None)
        else:
            exponents[atom] = total
    return tuple(sorted(exponents.items(), key=_rank))


def _rank(part: tuple[Expr, Number]) -> tuple[int, str]:
    """Print order: incoming gradients, other tensors, calls and sums, names."""
    atom = part[0]
    text = print_expression(atom)
    if isinstance(atom, Access):
        return (0 if atom.tensor.startswith("d") else 1, text)
    return (3 if isinstance(atom, Name) else 2, text)


def _number_power(c: Number, n: Number) -> Number:
    if n == int(n) and isinstance(c, int | Fraction):
        value = Fraction(c) ** int(n)
        return int(value) if value.denominator == 1 else value
    return float(math.pow(c, n))


def _exact(value: float) -> Number:
    """Whole and half literals are exact; others stay floats."""
    if math.isfinite(value) and abs(value) < 1e9 and (value * 1024).is_integer():
        f = Fraction(value)
        return int(f) if f.denominator == 1 else f
    return value


# --------------------------------------------------------------------------------------- to expression


def expression(p: Polynomial) -> Expr:
    """The sum as an expression, common factors in front."""
    if not p:
        return ZERO
    if len(p) > 1:
        p = _factor(p)
        ((m, c),) = p.items()
        if c == 1 and len(m) == 1 and m[0][1] == 1:
            return m[0][0]
    return _sum(p)


def _sum(p: Polynomial) -> Expr:
    terms = sorted(p.items(), key=lambda t: t[1] < 0)  # stable: a positive term first where there is one
    m, c = terms[0]
    out = _term(m, c)
    for m, c in terms[1:]:
        out = Binary("-", out, _term(m, -c)) if c < 0 else Binary("+", out, _term(m, c))
    return out


def _term(m: Monomial, c: Number) -> Expr:
    if c < 0:
        positive = _term(m, -c)
        return Num(-positive.value) if isinstance(positive, Num) else Unary("-", positive)
    above = [f for a, x in m if x > 0 or x != int(x) for f in _raised(a, x)]
    below = [f for a, x in m if x < 0 and x == int(x) for f in _raised(a, -x)]
    if isinstance(c, Fraction) and c.denominator & (c.denominator - 1):
        below.insert(0, Num(float(c.denominator)))
        c = c.numerator
    if c != 1 or not above:
        above.insert(0, Num(float(c)))
    if not below:
        return _product(above)
    return Binary("/", _product(above), _product(below))


def _raised(atom: Expr, x: Number) -> list[Expr]:
    """The factors of atom ** x: small powers are written out."""
    return [atom] * int(x) if x in (1, 2, 3) else [Binary("**", atom, _numeral(x))]


def _numeral(x: Number) -> Num:
    return Num(int(x)) if x == int(x) else Num(float(x))


def _product(factors: Iterable[Expr]) -> Expr:
    first, *rest = factors
    for f in rest:
        first = Binary("*", first, f)
    return first


def rewrite(e: Expr, f: Callable[[Expr], Expr | None]) -> Expr:
    """Replace every sub-expression for which `f` gives one, outermost first; what it gives is final."""
    new = f(e)
    return map_children(e, lambda x: rewrite(x, f)) if new is None else new
