"""Conditions that hold at every point of their indices' ranges fall away.

V[t, r] = select(128 * t + r < 16384, X[128 * t + r], 0.0)    -->    V[t, r] = X[128 * t + r]

for t below 128 and r below 128.

Blocks of a size that divides the tensor then need no test: their values are loaded as vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Binary, Call, Equation, Expr, Name, Reduction, bottom_up
from tcomp.dsl.expressions import conjunction, conjuncts, walk
from tcomp.dsl.extents import difference
from tcomp.grad.parts import map_equation, map_value
from tcomp.schedule.tree.bounds import linear


def without_certain_conditions(equations: tuple[Equation, ...], extents: Mapping[str, int]) -> tuple[Equation, ...]:
    """The equations (their dimensions are numbers) with each `select` and sum by what is uncertain in its condition.
    Targets stay as they are, whose indices are loops, and so does an equation that would lose an index."""

    def select(e: Expr) -> Expr:
        match e:
            case Call("select", (condition, value, other)):
                rest = conjunction(c for c in conjuncts(condition) if not certain(c, extents))
                return value if rest is None else Call("select", (rest, value, other), e.span)
        return e

    def without(eq: Equation) -> Equation:
        changed = replace(eq, value=map_value(eq.value, lambda e: bottom_up(e, select)))
        if isinstance(changed.value, Reduction) and changed.value.guard is not None:
            guard = conjunction(c for c in conjuncts(changed.value.guard) if not certain(c, extents))
            changed = replace(changed, value=replace(changed.value, guard=guard))
        return changed if _names(changed) == _names(eq) else eq

    return tuple(map(without, equations))


def _names(eq: Equation) -> set[str]:
    """What an equation names: an index that only a condition has is a loop all the same."""
    found = set(eq.value.indices) if isinstance(eq.value, Reduction) else set()

    def note(e: Expr) -> Expr:
        found.update(x.id for x in walk(e) if isinstance(x, Name))
        return e

    map_equation(eq, note)
    return found


def certain(condition: Expr, extents: Mapping[str, int]) -> bool:
    """Is it a comparison of linear forms of indices that holds wherever they are in their ranges?"""
    match condition:
        case Binary("<" | "<=" as op, smaller, larger) | Binary(">" | ">=" as op, larger, smaller):
            form = linear(difference(smaller, larger))
            if form is None or any(n not in extents for n in form[0]):
                return False
            largest = form[1] + sum(c * (extents[str(n)] - 1) for n, c in form[0].items() if c > 0)
            return largest < 0 if op in ("<", ">") else largest <= 0
    return False
