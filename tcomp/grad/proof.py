"""Proves that an expression of an op's tensors is zero, by replacing every tensor by what defines it.

Sums become atoms: `sum c: X[m, c] * w[m]` is w[m] times the atom (sum c: X[m, c]); a sum of nothing that
depends on its index is the index's extent. So (sum c: X[m, c] - s[m] / C) - (s[m] - s[m]) with
`s[m] = sum c: X[m, c]` is found to be zero, and so is the derivative of softmax by its own maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count, permutations

from tcomp.dsl.ast import Access, Call, Expr, Name, Reduction, names_in, substitute, walk
from tcomp.dsl.printer import print_expression
from tcomp.grad.simplify import Polynomial, TooLong, add, expression, multiply, polynomial, rewrite

MOST_NODES = 4000
"""Size of expanded expressions beyond which nothing is claimed."""


@dataclass
class Prover:
    """`definitions`: tensor -> (its indices, its value). `ranges`: index -> extent."""

    definitions: dict[str, tuple[tuple[str, ...], Expr | Reduction]]
    ranges: Mapping[str, Expr]
    bound: dict[str, str] = field(default_factory=dict)
    """renamed bound index -> the index it stands for"""
    fresh: count[int] = field(default_factory=count)
    left: int = MOST_NODES

    def is_zero(self, e: Expr, over: tuple[str, ...] = ()) -> bool:
        """Is the expression, summed over these indices, zero for all values of the inputs?

        False when that cannot be shown with moderate effort.
        """
        return self.cancel([(over, e)])

    def cancel(self, parts: Iterable[tuple[tuple[str, ...], Expr]]) -> bool:
        """Do these (indices, summand) add up to zero?"""
        self.left = MOST_NODES
        try:
            total: Polynomial = {}
            for over, e in parts:
                total = add(total, self.polynomial(self.sum(over, e)))
            return not total
        except TooLong:
            return False

    def polynomial(self, e: Expr) -> Polynomial:
        """The expression multiplied out over the tensors that have no definition."""
        expanded = self.expand(e)
        self.spend(expanded)
        return polynomial(expanded, expand=True)

    def spend(self, e: Expr) -> None:
        self.left -= sum(1 for _ in walk(e))
        if self.left < 0:
            raise TooLong

    def expand(self, e: Expr) -> Expr:
        """Defined tensors replaced, down to inputs."""

        def definition(x: Expr) -> Expr | None:
            if not isinstance(x, Access) or x.tensor not in self.definitions:
                return None
            indices, value = self.definitions[x.tensor]
            self.spend(x)
            names = dict(zip(indices, x.subscripts, strict=True))
            if not isinstance(value, Reduction):
                return self.expand(substitute(value, names))
            for i in value.indices:
                names[i] = Name(self._bind(i))
            reduced = tuple(str(n.id) for n in (names[i] for i in value.indices) if isinstance(n, Name))
            guard = None if value.guard is None else substitute(value.guard, names)
            return self.total(reduced, guard, substitute(value.values[0], names))

        return rewrite(e, definition)

    def sum(self, indices: tuple[str, ...], e: Expr) -> Expr:
        """The sum of an expression over indices, as an expression with atoms for sums. May raise TooLong."""
        if not indices:
            return e
        names: dict[str, Expr] = {i: Name(self._bind(i)) for i in indices}
        return self.total(tuple(n.id for n in names.values() if isinstance(n, Name)), None, substitute(e, names))

    def _bind(self, index: str) -> str:
        name = f"#{next(self.fresh)}"
        self.bound[name] = self.bound.get(index, index)
        return name

    def total(self, indices: tuple[str, ...], guard: Expr | None, body: Expr) -> Expr:
        """A sum as a polynomial of sum atoms, everything independent of the indices pulled out."""
        out: list[Expr] = []
        for m, c in self.polynomial(body).items():
            inner = tuple((a, x) for a, x in m if names_in(a) & set(indices))
            outer = tuple((a, x) for a, x in m if not names_in(a) & set(indices))
            used = tuple(i for i in indices if guard is not None or any(i in names_in(a) for a, _ in inner))
            term: Polynomial = {outer: c}
            for i in indices:
                if i not in used:
                    term = multiply(term, polynomial(self.ranges[self.bound[i]]), True)
            if used:
                atom = self._atom(used, guard, expression({inner: 1}))
                term = multiply(term, {((atom, 1),): 1}, True)
            out.append(expression(term))
        result: Polynomial = {}
        for t in out:
            result = add(result, polynomial(t, True))
        return expression(result)

    def _atom(self, indices: tuple[str, ...], guard: Expr | None, body: Expr) -> Expr:
        """One name for equal sums, whatever their bound indices are called."""
        choices = []
        for order in permutations(indices[:4]):
            names: dict[str, Expr] = {i: Name(f"#{n}.") for n, i in enumerate((*order, *indices[4:]))}
            extents = [print_expression(self.ranges[self.bound[i]]) for i in (*order, *indices[4:])]
            where = "" if guard is None else print_expression(substitute(guard, names))
            renamed = expression(polynomial(substitute(body, names), True))
            choices.append((f"sum {' '.join(extents)} where {where}", print_expression(renamed), renamed))
        label, _, renamed = min(choices, key=lambda c: c[:2])
        return Call(label, (renamed,))
