"""Ranges of indices inside tiles, and how a guard such as `k <= q` shortens a loop over tiles.

    for k.0 in range(0, T, BK)    -->    for k.0 in range(0, min(T, q.0 + BQ), BK)

when everything in the loop counts only where k <= q: causal attention skips the blocks above the diagonal. An integer
scalar that a kernel only reads may stand in the guard: with `w <= start + t` decoding walks what its caches hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import Access, Binary, Call, Expr, Num, Reduction, children, conjuncts, product_factors
from tcomp.dsl.extents import Polynomial, difference
from tcomp.schedule.fold import add, fold, minimum, sub
from tcomp.schedule.tree.nest import Leaf, LoopNode, ancestors, leaves_of
from tcomp.schedule.tree.storage import reduction_loops


@dataclass(frozen=True)
class Range:
    """start <= index < stop, with stop - start <= block."""

    start: Expr
    stop: Expr
    block: int


Env = Mapping[str, Range]
Linear = tuple[dict[str | Access, int], int]
"""Coefficients of names and of scalar tensors, and the constant."""


def linear(p: Polynomial) -> Linear | None:
    """A polynomial that is a sum of whole multiples of names and scalar tensors; None when it is not one."""
    names: dict[str | Access, int] = {}
    constant = 0
    for monomial, coefficient in p.items():
        match monomial, coefficient:
            case (), int(c):
                constant = c
            case (str() | Access(_, ()) as name,), int(c):
                names[name] = c
            case _:
                return None
    return names, constant


def _at_most(comparison: Expr) -> Linear | None:
    """A comparison as `linear <= 0`."""
    match comparison:
        case Binary("<" | "<=", smaller, larger) | Binary(">" | ">=", larger, smaller):
            form = linear(difference(smaller, larger))
            return form and (form[0], form[1] + (comparison.op in ("<", ">")))
    return None


def _extreme(names: Mapping[str | Access, int], constant: int, env: Env, largest: bool) -> Expr:
    """The largest or smallest value of a linear form over the tiles' ranges."""
    total: Expr = Num(constant)
    for n, c in names.items():
        high = (c > 0) == largest
        at: Expr = n if isinstance(n, Access) else sub(env[n].stop, Num(1)) if high else env[n].start
        total = add(total, fold(Binary("*", Num(c), at)) if c != 1 else at)
    return total


def limits(index: str, guards: list[Expr], env: Env, scalars: Collection[str] = ()) -> tuple[list[Expr], list[Expr]]:
    """Bounds that guards put on an index, given the ranges of the others: (lower bounds, exclusive stops). `scalars`
    are the integer scalars whose values may stand in them."""

    def known(n: str | Access) -> bool:
        return n.tensor in scalars if isinstance(n, Access) else n in env

    lower: list[Expr] = []
    stops: list[Expr] = []
    for g in guards:
        form = _at_most(g)
        if form is None:
            continue
        names, constant = dict(form[0]), form[1]
        c = names.pop(index, 0)
        if abs(c) != 1 or not all(map(known, names)):
            continue
        if c == 1:  # index <= -(rest)
            negated = {n: -k for n, k in names.items()}
            stops.append(add(_extreme(negated, -constant, env, True), Num(1)))
        else:  # index >= rest
            lower.append(_extreme(names, constant, env, False))
    return lower, stops


def guarding(loop: LoopNode) -> list[Expr]:
    """The conditions outside which nothing in the loop counts.

    A reduction that accumulates around this loop, or adds to what is there, counts only where its guard holds; a
    temporary only where all its readers do, and those must all be in this loop.
    """
    leaves = list(leaves_of(loop))
    inside = {id(x) for x in leaves}
    memo: dict[int, list[Expr] | None] = {}

    def counts(leaf: Leaf) -> list[Expr]:
        if id(leaf) in memo:
            return memo[id(leaf)] or []
        memo[id(leaf)] = []
        v = leaf.equation.value
        own = []
        if isinstance(v, Reduction):
            outer = reduction_loops(leaf)[:1]
            adds = leaf.equation.accumulate and v.reducer == "sum"
            if adds or (outer and (outer[0] is loop or outer[0] in ancestors(loop))):
                own = conjuncts(v.guard)
        if not own and leaf.readers and all(id(r) in inside for r in leaf.readers):
            parts = [counts(r) for r in leaf.readers]
            own = [g for g in parts[0] if all(g in p for p in parts[1:])]
        memo[id(leaf)] = own
        return own

    if not leaves:
        return []
    first, *others = [counts(x) for x in leaves]
    return [g for g in first if all(g in o for o in others)]


def zero_outside(e: Expr, guard: Expr, definitions: Mapping[str, Expr]) -> bool:
    """Whether a product is zero wherever the guard is false, because one of its factors is.

    A factor is when it is `select(guard, x, 0)` or a temporary defined by an expression that is. The other
    factors must not divide or call functions: 0 * (1 / 0) would be NaN where the guard leaves the point out.
    """
    factors = product_factors(e)
    zeros = [f for f in factors if _is_zero_outside(f, guard, definitions)]
    return bool(zeros) and _finite(e, zeros)


def _is_zero_outside(f: Expr, guard: Expr, definitions: Mapping[str, Expr]) -> bool:
    match f:
        case Call("select", (c, _, Num(z))):
            return z == 0 and guard in conjuncts(c)
        case Access(tensor, _):
            return tensor in definitions and zero_outside(definitions[tensor], guard, definitions)
    return False


def _finite(e: Expr, except_for: list[Expr]) -> bool:
    """Only sums and products of stored values and numbers, leaving out the given factors."""
    if e in except_for or isinstance(e, Access):
        return True
    if isinstance(e, Call) or (isinstance(e, Binary) and e.op not in "+-*"):
        return False
    return all(_finite(c, except_for) for c in children(e))


def tile_stop(start: Expr, block: int, stop: Expr, extent: int) -> Expr:
    """min(start + block, stop), without the min when tiles are perfect or there is only one."""
    if isinstance(stop, Num) and extent < block:
        return stop
    if isinstance(stop, Num) and extent % block == 0:
        return add(start, Num(block))
    return minimum(add(start, Num(block)), stop)
