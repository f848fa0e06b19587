"""Small questions about ops and equations that derivation, restriction and accumulation share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from tcomp.dsl.ast import (
    Access,
    Binary,
    Equation,
    Expr,
    Name,
    Num,
    Op,
    Reduction,
    Target,
    accesses_in,
    bottom_up,
    names_in,
)
from tcomp.dsl.extents import Affine, Polynomial, affine, bounds, never_negative


def expressions(value: Expr | Reduction) -> list[Expr]:
    """The expressions of a right-hand side: the value, or a reduction's guard, key and values."""
    if not isinstance(value, Reduction):
        return [value]
    return [e for e in (value.guard, value.key, *value.values) if e is not None]


def reads(eq: Equation) -> set[str]:
    """The tensors an equation reads, those inside its targets' subscripts included."""
    es = [*expressions(eq.value), *(s for t in eq.targets for s in t.subscripts)]
    return {a.tensor for e in es for a in accesses_in(e)}


def names(eq: Equation) -> set[str]:
    """All index and dimension names of an equation."""
    es = [*expressions(eq.value), *(s for t in eq.targets for s in t.subscripts)]
    return {n for e in es for n in names_in(e)}


def writes(eq: Equation) -> set[str]:
    """The tensors an equation writes."""
    return {t.name for t in eq.targets}


def map_value(value: Expr | Reduction, f: Callable[[Expr], Expr]) -> Expr | Reduction:
    """Apply `f` to each expression of a right-hand side."""
    if not isinstance(value, Reduction):
        return f(value)
    return replace(
        value,
        guard=None if value.guard is None else f(value.guard),
        key=None if value.key is None else f(value.key),
        values=tuple(map(f, value.values)),
    )


def map_equation(eq: Equation, f: Callable[[Expr], Expr]) -> Equation:
    """Apply `f` to each expression of an equation, its targets' subscripts included."""
    targets = tuple(replace(t, subscripts=tuple(map(f, t.subscripts))) for t in eq.targets)
    return replace(eq, targets=targets, value=map_value(eq.value, f))


def both(a: Expr | None, b: Expr | None) -> Expr | None:
    """The conjunction of two conditions; None is the condition that always holds."""
    if a is None or a == b:
        return b
    return a if b is None else Binary("and", a, b)


def plain(subscripts: Iterable[Expr], indices: Iterable[str]) -> bool:
    """Are the subscripts distinct bare indices?"""
    known, seen = set(indices), set()
    for s in subscripts:
        if not isinstance(s, Name) or s.id not in known or s.id in seen:
            return False
        seen.add(s.id)
    return True


def injective(subscripts: Iterable[Expr], indices: Iterable[str]) -> bool:
    """Do different points of the indices name different elements: bare indices, each once, and constants?"""
    rest = [s for s in subscripts if not (isinstance(s, Num) and isinstance(s.value, int))]
    return plain(rest, indices) and {s.id for s in rest if isinstance(s, Name)} == set(indices)


def disjoint(
    a: tuple[Expr, ...], b: tuple[Expr, ...], ranges: Mapping[str, Expr] | None = None, dims: Iterable[str] = ()
) -> bool:
    """Do two targets of one tensor surely name different elements? On some axis one must stay below the other: 0
    below 1, or `e` below `e + E` where `ranges` says that the index e runs to E, one of the `dims`; or they must differ
    whatever the indices are: `2 * i` and `2 * i + 1`. (A scalar operand may have any sign: `e` and `s + e + E` may
    meet.)"""
    ranges = ranges or {}
    known = {*ranges, *dims}
    for s, t in zip(a, b, strict=True):
        if not names_in(s) | names_in(t) <= known:
            continue
        x, y = affine(s, ranges), affine(t, ranges)
        if x is None or y is None:
            continue
        if _apart(x, y):
            return True
        p, q = bounds(x, ranges), bounds(y, ranges)
        if p is not None and q is not None and (_below(p[1], q[0]) or _below(q[1], p[0])):
            return True
    return False


def _apart(x: Affine, y: Affine) -> bool:
    """Do the constants differ by no multiple of what divides all else? Each side has index values of its own."""
    rest = {m: x.constant.get(m, 0) - y.constant.get(m, 0) for m in (*x.constant, *y.constant)}
    gap = rest.pop((), 0)
    steps = [c for p in (*x.terms.values(), *y.terms.values(), rest) for c in p.values()]
    whole = [c for c in (gap, *steps) if isinstance(c, int)]
    if len(whole) < 1 + len(steps):  # a fraction among them
        return False
    distance, *strides = whole
    divisor = math.gcd(*strides)
    return divisor > 0 and distance % divisor != 0


def _below(high: Polynomial, low: Polynomial) -> bool:
    """high < low for all dimensions."""
    gap = {(): -1, **low}
    gap[()] = low.get((), 0) - 1
    for monomial, c in high.items():
        gap[monomial] = gap.get(monomial, 0) - c
    return never_negative({m: c for m, c in gap.items() if c})


def rename_tensor(e: Expr, old: str, new: str) -> Expr:
    """The expression with accesses of one tensor made accesses of another."""
    return bottom_up(e, lambda x: replace(x, tensor=new) if isinstance(x, Access) and x.tensor == old else x)


def plain_target(name: str, indices: Iterable[str]) -> Target:
    """`name[indices]`."""
    return Target(name, tuple(Name(i) for i in indices))


def fresh(name: str, taken: set[str]) -> str:
    """A name that is not taken, which it then is: `name`, or with a number."""
    candidate, n = name, 1
    while candidate in taken:
        n += 1
        candidate = f"{name}_{n}"
    taken.add(candidate)
    return candidate


def all_names(op: Op) -> set[str]:
    """Every name that means something in an op: operands, temporaries, indices, dimensions."""
    out = {o.name for o in op.operands} | set(op.dims) | {n for n, _ in op.ranges}
    out |= {n for o in op.operands for e in o.shape for n in names_in(e)}
    for eq in op.equations:
        out |= names(eq) | writes(eq)
        if isinstance(eq.value, Reduction):
            out |= set(eq.value.indices)
    return out
