"""What is known of integer expressions while code is generated: affine forms, bounds and congruences.

A subscript such as `n - n.0` becomes an `Affine` sum of symbols, which address generation turns into strides: the
polynomial of `dsl/extents.py`, of degree one and with whole coefficients, in a form that can be hashed and compared.
`Known` bounds a value and says what it is a multiple of, which decides whether a loop needs a tail at all:
`min(n.0 + 192, N) - n.0` is 192 exactly when n.0 is a multiple of 192 and N too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import Binary, Call, Expr, Name, Num, Unary
from tcomp.dsl.extents import polynomial
from tcomp.ir.tile import Axis


@dataclass(frozen=True, slots=True)
class Affine:
    """constant + sum of coefficient * symbol."""

    terms: tuple[tuple[str, int], ...] = ()
    constant: int = 0

    def coefficient(self, name: str) -> int:
        return dict(self.terms).get(name, 0)

    def __add__(self, other: Affine) -> Affine:
        sums = dict(self.terms)
        for name, c in other.terms:
            sums[name] = sums.get(name, 0) + c
        return Affine(tuple(sorted((n, c) for n, c in sums.items() if c)), self.constant + other.constant)

    def scaled(self, factor: int) -> Affine:
        if factor == 0:
            return Affine()
        return Affine(tuple((n, c * factor) for n, c in self.terms), self.constant * factor)

    def __sub__(self, other: Affine) -> Affine:
        return self + other.scaled(-1)


@dataclass(frozen=True, slots=True)
class Known:
    """lo <= value <= hi (None: unbounded) and value = residue (mod modulus); modulus 0 is one exact value."""

    lo: int | None = None
    hi: int | None = None
    modulus: int = 1
    residue: int = 0

    @staticmethod
    def exact(value: int) -> Known:
        return Known(value, value, 0, value)

    @property
    def value(self) -> int | None:
        """The value where only one is possible."""
        return self.lo if self.lo is not None and self.lo == self.hi else None

    def multiple_of(self, n: int) -> bool:
        if self.modulus == 0:
            return self.residue % n == 0
        return self.modulus % n == 0 and self.residue % n == 0

    def tightened(self) -> Known:
        """Bounds moved inward to the nearest values that the congruence allows."""
        if self.modulus <= 1:
            return self
        lo = None if self.lo is None else self.lo + (self.residue - self.lo) % self.modulus
        hi = None if self.hi is None else self.hi - (self.hi - self.residue) % self.modulus
        return Known(lo, hi, self.modulus, self.residue)

    def __add__(self, other: Known) -> Known:
        return Known(
            None if self.lo is None or other.lo is None else self.lo + other.lo,
            None if self.hi is None or other.hi is None else self.hi + other.hi,
            *_congruence(math.gcd(self.modulus, other.modulus), self.residue + other.residue),
        )

    def scaled(self, factor: int) -> Known:
        if factor == 0:
            return Known.exact(0)
        lo = None if self.lo is None else self.lo * factor
        hi = None if self.hi is None else self.hi * factor
        if factor < 0:
            lo, hi = hi, lo
        return Known(lo, hi, *_congruence(self.modulus * abs(factor), self.residue * factor))

    def meet_smaller(self, other: Known) -> Known:
        """What is known of min(self, other)."""
        if self.hi is not None and other.lo is not None and self.hi <= other.lo:
            return self
        if other.hi is not None and self.lo is not None and other.hi <= self.lo:
            return other
        his = [h for h in (self.hi, other.hi) if h is not None]
        lo = None if self.lo is None or other.lo is None else min(self.lo, other.lo)
        return Known(lo, min(his) if his else None, *_joined(self, other))

    def negated(self) -> Known:
        return self.scaled(-1)


def _congruence(modulus: int, residue: int) -> tuple[int, int]:
    return (modulus, residue % modulus) if modulus else (0, residue)


def _joined(a: Known, b: Known) -> tuple[int, int]:
    modulus = math.gcd(math.gcd(a.modulus, b.modulus), a.residue - b.residue)
    return _congruence(modulus, a.residue) if modulus else (0, a.residue)


@dataclass
class Facts:
    """Known values of the symbols in scope (loop variables, axes)."""

    symbols: dict[str, Known] = field(default_factory=dict)

    def of_affine(self, a: Affine) -> Known:
        total = Known.exact(a.constant)
        for name, c in a.terms:
            total = total + self.symbols.get(name, Known()).scaled(c)
        return total.tightened()

    def of(self, e: Expr) -> Known:
        """What is known of an integer expression; nothing where it is not understood."""
        affine = affine_form(e)
        if affine is not None:
            return self.of_affine(affine)
        match e:
            case Unary("-", x):
                return self.of(x).negated()
            case Binary("+", a, b):
                return self.of(a) + self.of(b)
            case Binary("-", a, b):
                return self.of(a) + self.of(b).negated()
            case Binary("*", a, Num(int(c))) | Binary("*", Num(int(c)), a):
                return self.of(a).scaled(c)
            case Binary("//", a, Num(int(c))) if c > 0:
                k = self.of(a)
                exact = k.modulus % c == 0 and k.modulus > 0
                congruence = _congruence(k.modulus // c, k.residue // c) if exact else (1, 0)
                lo, hi = (None if x is None else x // c for x in (k.lo, k.hi))
                return Known.exact(lo) if lo is not None and lo == hi else Known(lo, hi, *congruence).tightened()
            case Binary("%", a, Num(int(c))) if c > 0:
                k = self.of(a)
                if k.lo is not None and k.hi is not None and k.lo // c == k.hi // c:
                    return Known(k.lo % c, k.hi % c, *_congruence(math.gcd(k.modulus, c), k.residue))
                return Known(0, c - 1, *_congruence(math.gcd(k.modulus, c), k.residue))
            case Call("min", (a, b)):
                return self.of(a).meet_smaller(self.of(b))
            case Call("max", (a, b)):
                return self.of(a).negated().meet_smaller(self.of(b).negated()).negated()
        return Known()

    def loop(self, start: Expr, stop: Expr, step: int) -> Known:
        """A loop variable's values in range(start, stop, step)."""
        first, last = self.of(start), self.of(stop)
        hi = None if last.hi is None else last.hi - 1
        modulus, residue = _congruence(math.gcd(first.modulus, step), first.residue)
        return Known(first.lo, hi, modulus, residue).tightened()

    def chunk(self, start: Expr, stop: Expr, step: int) -> tuple[Known, Known]:
        """A chunked core loop's share: its start and its stop (a boundary, or the range's own end)."""
        first, last = self.of(start), self.of(stop)
        begin = self.loop(start, stop, step)
        boundary = Known(first.lo, last.hi, *_congruence(math.gcd(first.modulus, step), first.residue))
        return begin, Known(first.lo, last.hi, *_joined(boundary, last)).tightened()


def affine_form(e: Expr, define: Mapping[str, Affine] | None = None) -> Affine | None:
    """The expression as an affine sum of names, names in `define` replaced by their forms; None if it is not."""
    terms: list[tuple[str, int]] = []
    defined = Affine()
    for monomial, c in polynomial(e).items():
        match monomial, c:
            case (), int():
                defined += Affine((), c)
            case (str(name),), int():
                if define is not None and name in define:
                    defined += define[name].scaled(c)
                else:
                    terms.append((name, c))
            case _:
                return None
    return defined + Affine(tuple(terms))


def expression(a: Affine) -> Expr:
    """The sum written out."""
    e: Expr = Num(a.constant)
    for name, c in a.terms:
        e = Binary("+", e, Name(name) if c == 1 else Binary("*", Num(c), Name(name)))
    return e


def length(axis: Axis) -> Expr:
    """stop - start, terms that occur in both cancelled."""
    start = affine_form(axis.start)
    found: Expr | None = None
    for stop in smaller_of(axis.stop):
        form = affine_form(stop)
        one = Binary("-", stop, axis.start) if start is None or form is None else expression(form - start)
        found = one if found is None else Call("min", (found, one))
    assert found is not None
    return found


def smaller_of(e: Expr) -> tuple[Expr, ...]:
    """The expressions of which `e` is the least: `min(a, min(b, c))` gives a, b, c."""
    if isinstance(e, Call) and e.function == "min":
        return smaller_of(e.args[0]) + smaller_of(e.args[1])
    return (e,)


def extent(axis: Axis, facts: Facts) -> Known:
    """What is known of stop - start, terms that occur in both cancelled; never more than the axis's block."""
    start = affine_form(axis.start)
    best: Known | None = None
    for stop in smaller_of(axis.stop):
        form = affine_form(stop)
        if start is not None and form is not None:
            length = facts.of_affine(form - start)
        else:
            length = facts.of(stop) + facts.of(axis.start).negated()
        best = length if best is None else best.meet_smaller(length)
    assert best is not None
    hi = axis.block if best.hi is None else min(best.hi, axis.block)
    return Known(best.lo, hi, best.modulus, best.residue).tightened()
