"""The derivative of a rescaled sum: m = max of keys, x = sum k: w[k] * value[k] with w[k] = f(key[k], m).

    dvalue[k] = dx * w[k]
    dkey[k]   = sum over fields of dx * value[k] * w[k]  +  D / ties where key[k] is the maximum
    D         = dm - sum over fields of dx * x              (for f = exp(key - m))

D, the whole derivative by the maximum, is zero wherever results do not depend on which maximum was
subtracted (softmax, log-sum-exp); it is left out when that is proved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.dsl.ast import Access, Binary, Equation, Expr, Name, Num, Reduction, accesses_in
from tcomp.grad.contribution import guarded
from tcomp.grad.parts import both, fresh, plain
from tcomp.grad.rules import partial, reached
from tcomp.grad.simplify import ONE, ZERO, polynomial, simplify
from tcomp.monoid import RescaledSum, rescaled_sum

if TYPE_CHECKING:
    from tcomp.grad.derive import Derivation


def differentiate_monoid(d: Derivation, eq: Equation, r: Reduction) -> None:
    """Contributions of a monoid reduction to the gradients of what its key and values read."""
    forward = d.forward
    live = [d.live(t.name) for t in eq.targets]
    assert r.key is not None
    reads = [a for v in (r.key, *r.values) for a in forward.differentiable(v)]
    if not any(live) or not reads:
        return
    form = rescaled_sum(forward.module.monoids[r.reducer])
    slopes = None if form is None else _slopes(form)
    if form is None or slopes is None:
        raise forward.error(
            f"the monoid '{r.reducer}' is no sum weighted by exp(key - extremum), so its derivative is not known",
            eq,
            "write the op's `backward` by hand",
        )
    by_key, by_extremum = slopes
    target, *field_targets = eq.targets
    order = forward.indices(eq)
    known = set(forward.info.ranges) - set(r.indices)
    if not all(plain(t.subscripts, known) for t in eq.targets):
        raise forward.error("a monoid reduction writes to plain indices only, to have a derivative", eq, "")
    outer = {s.id for s in target.subscripts if isinstance(s, Name)}
    inner = tuple(i for i in order if i in outer or i in r.indices)

    maximum = Access(target.name, target.subscripts)
    in_key: Expr = ZERO
    weight: Expr | None = None
    through_maximum = d.incoming(target, 0, False) if live[0] else ZERO
    sums: list[tuple[tuple[str, ...], Expr]] = []
    for t, v, alive in zip(field_targets, r.values, live[1:], strict=True):
        if not alive:
            continue
        g = d.incoming(t, 0, False)
        if g == ZERO:
            continue
        if weight is None:
            weight = _weight(d, form, r, maximum, inner, eq)
        extra = tuple(s.id for s in t.subscripts if isinstance(s, Name) and s.id not in outer)
        points = tuple(i for i in order if i in inner or i in extra)
        for a in forward.differentiable(v):
            value = Binary("*", Binary("*", g, weight), partial(v, a))
            d.contribute(a, points, _needed_guard(d, r, a, points), value, _where(r, v, a), eq.span)
        part = d.value(Binary("*", g, v))
        unsafe = r.guard if not _inside(d, v) else None
        in_key = Binary("+", in_key, d.total(extra, unsafe, part, points, eq.span) if extra else part)
        field = Access(t.name, t.subscripts)
        sums.append((extra, Binary("*", Num(by_extremum), Binary("*", g, field))))
    key_gradient: Expr = ZERO
    if weight is not None:
        key_gradient = d.value(Binary("*", Num(by_key), Binary("*", weight, in_key)))
    if not d.prover.cancel([((), through_maximum), *sums]):
        total = through_maximum
        for extra, e in sums:
            part = d.value(e)
            part = d.total(extra, None, part, order, eq.span) if extra else part
            total = Binary("+", total, part)
        total = d.value(total)
        if total != ZERO:
            again = _maximum_again(d, eq, r, form, maximum)
            chosen = Binary("==", r.key, again)
            shared = d.shared(chosen, r.indices, r.guard, order, total, eq.span)
            key_gradient = Binary("+", key_gradient, guarded(shared, r.guard))
    if key_gradient == ZERO:
        return
    for a in forward.differentiable(r.key):
        value = Binary("*", key_gradient, partial(r.key, a))
        d.contribute(a, inner, _needed_guard(d, r, a, inner), value, _where(r, r.key, a), eq.span)


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


def _weight(d: Derivation, form: RescaledSum, r: Reduction, m: Access, order: tuple[str, ...], eq: Equation) -> Expr:
    """The weight of an element; what depends on the reduced index is the temporary `p`, zero off the guard."""
    assert r.key is not None
    outer, inner = d.split(polynomial(d.value(form.weight(r.key, m))), set(r.indices), r.guard)
    if inner == ONE and r.guard is None:
        return outer
    return Binary("*", outer, d.temporary("p", inner, r.guard, order, eq.span))


def _maximum_again(d: Derivation, eq: Equation, r: Reduction, form: RescaledSum, m: Access) -> Expr:
    """The extremum computed in backward itself, so that a key equal to it is found whatever the rounding."""
    name = fresh(f"{m.tensor}_again", d.taken)
    assert r.key is not None
    value = Reduction(form.extremum, r.indices, r.guard, None, (r.key,), r.span)
    d.equations.append(Equation((replace(eq.target, name=name, dtype=None),), False, value, eq.span))
    return Access(name, m.subscripts)


def _inside(d: Derivation, e: Expr) -> bool:
    return all(d.forward.inside(a.subscripts) for a in accesses_in(e))


def _needed_guard(d: Derivation, r: Reduction, a: Access, points: tuple[str, ...]) -> Expr | None:
    """The guard, where the zero weight off it is not enough: to bound a reduction, or reads beyond a tensor."""
    assert r.key is not None
    everything = all(_inside(d, e) for e in (r.key, *r.values))
    reduces = not set(points) <= {s.id for s in a.subscripts if isinstance(s, Name)}
    return r.guard if reduces or not everything else None


def _where(r: Reduction, e: Expr, a: Access) -> Expr | None:
    return both(r.guard, reached(e, a))
