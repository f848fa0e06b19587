"""Facts about extents that hold for every value of the dimensions: equal, and at most.

An extent is brought to a polynomial over dimensions (dimensions are whole numbers of at least 1; anything
that is not + - * is an atom of its own). `at_most` holds when the difference has no negative term, or by a
chain of the op's `require` lines. It never claims what it cannot show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import Binary, Call, Expr, Name, Num, Unary, accesses_in, names_in

Monomial = tuple[str | Expr, ...]
Polynomial = dict[Monomial, int | float]


def polynomial(e: Expr) -> Polynomial:
    """The expression as a sum of monomials: 2 * C + 1 is {("C",): 2, (): 1}."""
    match e:
        case Num(value):
            return {(): value} if value else {}
        case Name(id):
            return {(id,): 1}
        case Unary("-", operand):
            return {m: -c for m, c in polynomial(operand).items()}
        case Binary("+", left, right):
            return _add(polynomial(left), polynomial(right), 1)
        case Binary("-", left, right):
            return _add(polynomial(left), polynomial(right), -1)
        case Binary("*", left, right):
            return _multiply(polynomial(left), polynomial(right))
        case _:
            return {(e,): 1}


def difference(a: Expr, b: Expr) -> Polynomial:
    """a - b as a polynomial; empty when they are equal."""
    return _add(polynomial(a), polynomial(b), -1)


def same(a: Expr, b: Expr) -> bool:
    """Are the two extents equal for all dimensions?"""
    return a == b or not difference(a, b)


def never_negative(p: Polynomial) -> bool:
    """Is the polynomial >= 0 whenever every dimension is >= 1? False when it cannot be shown.

    Negative constants may be paid for by positive terms (each at least its coefficient).
    """
    if any(c < 0 for m, c in p.items() if m):
        return False
    others = [atom for m in p for atom in m if isinstance(atom, Expr)]
    if others:
        return p.get((), 0) >= 0 and all(map(_atom_never_negative, others))
    return sum(p.values()) >= 0


def _atom_never_negative(e: Expr) -> bool:
    """Of what is not + - *: quotients and remainders of such as are not. A scalar operand may have any sign."""
    match e:
        case Binary("//" | "%", left, right):
            return never_negative(polynomial(left)) and never_negative(polynomial(right))
        case Call("min" | "max", args):
            return all(never_negative(polynomial(a)) for a in args)
    return False


@dataclass(frozen=True)
class Facts:
    """Known `smaller <= larger` pairs, from `require` lines."""

    pairs: tuple[tuple[Expr, Expr], ...] = ()

    @staticmethod
    def of(requires: Iterable[Expr]) -> Facts:
        pairs: list[tuple[Expr, Expr]] = []

        def add(e: Expr) -> None:
            match e:
                case Binary("and", a, b):
                    add(a)
                    add(b)
                case Binary("<" | "<=", a, b):
                    pairs.append((a, b))
                case Binary(">" | ">=", a, b):
                    pairs.append((b, a))
                case Binary("==", a, b):
                    pairs.extend(((a, b), (b, a)))

        for r in requires:
            add(r)
        return Facts(tuple(pairs))

    def at_most(self, a: Expr, b: Expr) -> bool:
        """Is a <= b for all dimensions that satisfy the requires?"""
        seen: list[Expr] = []
        frontier = [a]
        while frontier:
            x = frontier.pop()
            if never_negative(difference(b, x)) or never_negative(_least(difference(b, x))):
                return True
            seen.append(x)
            for low, high in self.pairs:
                if never_negative(difference(low, x)) and not any(same(high, s) for s in seen):
                    frontier.append(high)
        return False


def _least(p: Polynomial) -> Polynomial:
    """At most the polynomial: c * (n // c) is n - (c - 1) at least, so `(M + 127) // 128 * 128` is at least M."""
    out: Polynomial = {}
    for monomial, coefficient in p.items():
        match monomial:
            case (Binary("//", n, Num(int(c))),) if c > 0 and coefficient > 0 and coefficient % c == 0:
                least = _add(polynomial(n), {(): c - 1}, -1)
                out = _add(out, {m: x * (coefficient // c) for m, x in least.items()}, 1)
            case _:
                out = _add(out, {monomial: coefficient}, 1)
    return {m: x for m, x in out.items() if x}


def _add(a: Polynomial, b: Polynomial, sign: int) -> Polynomial:
    out = dict(a)
    for m, c in b.items():
        value = out.get(m, 0) + sign * c
        if value:
            out[m] = value
        else:
            out.pop(m, None)
    return out


@dataclass(frozen=True)
class Affine:
    """constant + sum of coefficient * index, all coefficients polynomials over dimensions."""

    terms: dict[str, Polynomial]
    constant: Polynomial


def affine(e: Expr, indices: Iterable[str]) -> Affine | None:
    """The expression as an affine function of the indices, or None where it is none. A scalar operand is a constant."""
    known = set(indices)
    terms: dict[str, Polynomial] = {}
    constant: Polynomial = {}
    for monomial, coefficient in polynomial(e).items():
        found = [a for a in monomial if isinstance(a, str) and a in known]
        if len(found) > 1 or any(isinstance(a, Expr) and not known.isdisjoint(names_in(a)) for a in monomial):
            return None
        if any(isinstance(a, Expr) and any(x.subscripts for x in accesses_in(a)) for a in monomial):
            return None
        if not found:
            constant = _add(constant, {monomial: coefficient}, 1)
        else:
            rest = list(monomial)
            rest.remove(found[0])
            name = str(found[0])
            terms[name] = _add(terms.get(name, {}), {tuple(rest): coefficient}, 1)
    return Affine({n: p for n, p in terms.items() if p}, constant)


def bounds(a: Affine, ranges: Mapping[str, Expr]) -> tuple[Polynomial, Polynomial] | None:
    """The least and greatest value while each index runs over its range; None when a sign is unknown."""
    low = high = a.constant
    for name, coefficient in a.terms.items():
        if name not in ranges:
            return None
        last = _add(polynomial(ranges[name]), {(): 1}, -1)
        reach = _multiply(coefficient, last)
        if never_negative(coefficient):
            high = _add(high, reach, 1)
        elif never_negative({m: -c for m, c in coefficient.items()}):
            low = _add(low, reach, 1)
        else:
            return None
    return low, high


def injective(a: Affine, ranges: Mapping[str, Expr]) -> bool:
    """Do different index values give different results? `t * H + h` with h < H does, `i + j` does not."""
    if len(a.terms) == 1:
        (only,) = a.terms.values()
        negated = {m: -c for m, c in only.items()}
        return any(never_negative(_add(p, {(): 1}, -1)) for p in (only, negated))
    rest = dict(a.terms)
    reach: Polynomial = {(): 1}  # one more than what the indices so far can add up to
    while rest:
        smallest = next(
            (n for n in rest if all(never_negative(_add(rest[o], rest[n], -1)) for o in rest if o != n)), None
        )
        if smallest is None or smallest not in ranges or not never_negative(_add(rest[smallest], reach, -1)):
            return False
        last = _add(polynomial(ranges[smallest]), {(): 1}, -1)
        reach = _add(reach, _multiply(rest.pop(smallest), last), 1)
    return True


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    out: Polynomial = {}
    for m, x in a.items():
        for n, y in b.items():
            out = _add(out, {tuple(sorted((*m, *n), key=repr)): x * y}, 1)
    return out
