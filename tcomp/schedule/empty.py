"""Reductions that have no point, because an index that they sum over or write along has no value.

    acc[m, n] = sum k: X[m, k] * W[n, k]      at K = 0   -->   acc[m, n] = 0.0
    y[m] += sum k: X[m, k]                    at K = 0   -->   y[m] += 0.0

What is left are pointwise equations, which may be of no elements.
"""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.dsl.ast import DType, Equation, Expr, Monoid, Num, Reduction, names_in
from tcomp.ir.reducers import IDENTITY, identity
from tcomp.monoid import rescaled_sum
from tcomp.schedule.tree.rescaled_sums import lowest


def without_empty_sums(
    equations: tuple[Equation, ...],
    extents: Mapping[str, int],
    dtypes: Mapping[str, DType],
    monoids: Mapping[str, Monoid],
) -> tuple[Equation, ...]:
    """The equations, those without a point replaced by what a result of theirs begins with."""
    out: list[Equation] = []
    for eq in equations:
        left = {n for t in eq.targets for s in t.subscripts for n in names_in(s)}
        value = eq.value
        if not isinstance(value, Reduction) or all(extents.get(i, 1) > 0 for i in (*left, *value.indices)):
            out.append(eq)
        else:
            out += [
                Equation((t,), eq.accumulate, _beginning(value, field, dtypes[t.name], monoids), eq.span)
                for field, t in enumerate(eq.targets)
            ]
    return tuple(out)


def _beginning(value: Reduction, field: int, dtype: DType, monoids: Mapping[str, Monoid]) -> Expr:
    if value.reducer in IDENTITY:
        return Num(identity(value.reducer, dtype is DType.I32))
    form = rescaled_sum(monoids[value.reducer])
    return lowest(form, dtype) if field == 0 and form is not None else Num(0.0)
