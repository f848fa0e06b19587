"""The derivative of a rescaled sum: m = max of keys, x = sum k: w[k] * value[k] with w[k] = f(key[k], m).

    dvalue[k] = dx * w[k]
    dkey[k]   = sum over fields of dx * value[k] * w[k]  +  D / ties where key[k] is the maximum
    D         = dm - sum over fields of dx * x              (for f = exp(key - m))

D, the whole derivative by the maximum, is zero wherever results do not depend on which maximum was
subtracted (softmax, log-sum-exp); it is left out when that is proved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.dsl.ast import Access, Binary, Equation, Expr, Name, Num, Reduction, Target, accesses_in
from tcomp.grad.contribution import guarded
from tcomp.grad.parts import both, fresh, plain
from tcomp.grad.rules import partial, reached
from tcomp.grad.simplify import ONE, ZERO, factored, polynomial, simplify
from tcomp.monoid import RescaledSum, rescaled_sum

if TYPE_CHECKING:
    from tcomp.grad.derive import Derivation


def differentiate_monoid(d: Derivation, eq: Equation, r: Reduction) -> None:
    """Contributions of a monoid reduction to the gradients of what its key and values read."""
    forward = d.forward
    live = [d.live(t.name) for t in eq.targets]
    assert r.key is not None
    if not any(live) or not any(forward.differentiable(v) for v in (r.key, *r.values)):
        return
    form = rescaled_sum(forward.module.monoids[r.reducer])
    slopes = None if form is None else _slopes(form)
    if form is None or slopes is None:
        raise forward.error(
            f"the monoid '{r.reducer}' is no sum weighted by exp(key - extremum), so its derivative is not known",
            eq,
            "write the op's `backward` by hand",
        )
    known = set(forward.info.ranges) - set(r.indices)
    if not all(plain(t.subscripts, known) for t in eq.targets):
        raise forward.error("a monoid reduction writes to plain indices only, to have a derivative", eq, "")
    _Differentiation(d, eq, r, r.key, form, *slopes).run(live)


class _Differentiation:
    """That of one equation. `by_key` and `by_extremum` are the derivatives of a weight, over the weight."""

    def __init__(
        self,
        d: Derivation,
        eq: Equation,
        r: Reduction,
        key: Expr,
        form: RescaledSum,
        by_key: int | float,
        by_extremum: int | float,
    ) -> None:
        self.d, self.eq, self.r, self.key, self.form = d, eq, r, key, form
        self.by_key, self.by_extremum = by_key, by_extremum
        self.order = d.forward.indices(eq)
        self.outer = {s.id for s in eq.target.subscripts if isinstance(s, Name)}
        self.inner = tuple(i for i in self.order if i in self.outer or i in r.indices)
        self.maximum = Access(eq.target.name, eq.target.subscripts)
        self.weight: Expr | None = None
        """of an element; made when something first needs it"""
        self.in_key: Expr = ZERO
        """sum over the fields of dx * value[k]"""
        self.sums: list[tuple[tuple[str, ...], Expr]] = []
        """of each field dx * x, up to its sign, with the field's own indices"""

    def run(self, live: Sequence[bool]) -> None:
        d = self.d
        target, *fields = self.eq.targets
        through_maximum = d.incoming(target, 0, False) if live[0] else ZERO
        for t, v, alive in zip(fields, self.r.values, live[1:], strict=True):
            g = d.incoming(t, 0, False) if alive else ZERO
            if g != ZERO:
                self._field(t, v, g)
        gradient: Expr = ZERO
        if self.weight is not None:
            gradient = d.value(Binary("*", Num(self.by_key), Binary("*", self.weight, self.in_key)))
        if not d.prover.cancel([((), through_maximum), *self.sums]):
            total = through_maximum
            for extra, e in self.sums:
                part = d.value(e)
                part = d.total(extra, None, part, self.order, self.eq.span) if extra else part
                total = Binary("+", total, part)
            total = d.value(total)
            if total != ZERO:
                gradient = Binary("+", gradient, self._shared(total))
        if gradient != ZERO:
            self._contribute(self.key, self.inner, gradient)

    def _field(self, t: Target, v: Expr, g: Expr) -> None:
        """Contributions by a field's value; what it adds to the gradients of the key and of the maximum."""
        d = self.d
        if self.weight is None:
            self.weight = self._weight()
        extra = tuple(s.id for s in t.subscripts if isinstance(s, Name) and s.id not in self.outer)
        points = tuple(i for i in self.order if i in self.inner or i in extra)
        self._contribute(v, points, Binary("*", g, self.weight))
        part = d.value(Binary("*", g, v))
        unsafe = self.r.guard if not self._inside(v) else None
        if extra:
            part = d.total(extra, unsafe, part, points, self.eq.span)
        self.in_key = Binary("+", self.in_key, part)
        field = Access(t.name, t.subscripts)
        self.sums.append((extra, Binary("*", Num(self.by_extremum), Binary("*", g, field))))

    def _contribute(self, e: Expr, points: tuple[str, ...], gradient: Expr) -> None:
        """To all that the expression reads, with its own gradient."""
        for a in self.d.forward.differentiable(e):
            value = Binary("*", gradient, partial(e, a))
            where = both(self.r.guard, reached(e, a))
            self.d.contribute(a, points, self._needed_guard(a, points), value, where, self.eq.span)

    def _weight(self) -> Expr:
        """What depends on the reduced index is the temporary `p`, zero off the guard."""
        d, r = self.d, self.r
        weight = polynomial(d.value(self.form.weight(self.key, self.maximum)))
        outer, inner = factored(weight, set(r.indices), r.guard is not None)
        if inner == ONE and r.guard is None:
            return outer
        return Binary("*", outer, d.temporary("p", inner, r.guard, self.inner, self.eq.span))

    def _shared(self, total: Expr) -> Expr:
        """The derivative by the maximum, shared by the keys that are it. (The extremum is computed again in backward
        itself, so that a key equal to it is found whatever the rounding.)"""
        d, eq, r = self.d, self.eq, self.r
        name = fresh(f"{self.maximum.tensor}_again", d.taken)
        value = Reduction(self.form.extremum, r.indices, r.guard, None, (self.key,), r.span)
        d.equations.append(Equation((replace(eq.target, name=name, dtype=None),), False, value, eq.span))
        chosen = Binary("==", self.key, Access(name, self.maximum.subscripts))
        return guarded(d.shared(chosen, r.indices, r.guard, self.order, total, eq.span), r.guard)

    def _inside(self, e: Expr) -> bool:
        return all(self.d.forward.inside(a.subscripts) for a in accesses_in(e))

    def _needed_guard(self, a: Access, points: tuple[str, ...]) -> Expr | None:
        """The guard, where the zero weight off it is not enough: to bound a reduction, or reads beyond a tensor."""
        everything = all(self._inside(e) for e in (self.key, *self.r.values))
        reduces = not set(points) <= {s.id for s in a.subscripts if isinstance(s, Name)}
        return self.r.guard if reduces or not everything else None


def _slopes(form: RescaledSum) -> tuple[int | float, int | float] | None:
    """(f_u / f, f_v / f) when both are numbers: 1 and -1 for f(u, v) = exp(u - v)."""
    u, v = Access("u.", ()), Access("v.", ())
    f = form.weight(u, v)
    out = []
    for x in (u, v):
        ratio = simplify(Binary("/", partial(f, x), f))
        p = polynomial(ratio)
        if p and set(p) != {()}:
            return None
        out.append(ratio.value if isinstance(ratio, Num) else 0)
    return out[0], out[1]
