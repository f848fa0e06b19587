"""One tile of a monoid's reduction, as tile IR: one maximum and, per carried field, one sum of rescaled values.

m, l, o = expsum k by s: 1, V   -->   n = max(m, max k: s);  r = exp(m - n);  w[k] = exp(s - n)
                                      l = l * r + sum k: w;  o = o * r + sum k: w * V;  m = n
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Num, Reduction, conjuncts
from tcomp.dsl.errors import TcError
from tcomp.ir.tile import Statement
from tcomp.monoid import RescaledSum, rescaled_sum
from tcomp.schedule.fold import by_exp2, fold
from tcomp.schedule.tree.assignment import Assignment
from tcomp.schedule.tree.bounds import Env
from tcomp.schedule.tree.nest import Leaf
from tcomp.schedule.tree.storage import reduction_loops

if TYPE_CHECKING:
    from tcomp.schedule.tree.emit import Emitter


def lowest(form: RescaledSum, dtype: DType) -> Expr:
    """A monoid's starting key; finite, so that the difference of two of them is 0 and not NaN."""
    least = -1.0e308 if dtype is DType.F64 else -3.0e38
    return Num(least if form.extremum == "max" else -least)


def rescaled(emitter: Emitter, value: Reduction) -> RescaledSum:
    """The monoid as a rescaled sum; TcError where it is none."""
    found = rescaled_sum(emitter.monoids[value.reducer])
    if found is None:
        raise TcError(
            f"monoid '{value.reducer}' cannot be scheduled",
            value.span,
            "its carried field must combine as a.x * f(a.m, m) + b.x * f(b.m, m) with m = max or min",
        )
    return found


def rescaled_tile(emitter: Emitter, leaf: Leaf, value: Reduction, env: Env) -> list[Statement]:
    """One tile of a rescaled-sum monoid reduction."""
    form = rescaled(emitter, value)
    assert value.key is not None
    key_write, *field_writes = leaf.writes()
    rows = emitter.axes_of(key_write)
    tiled = bool(reduction_loops(leaf))
    dtype = DType.F64 if emitter.dtypes[key_write.tensor] is DType.F64 else DType.F32
    found: list[Assignment] = []
    best = Access(key_write.tensor, key_write.subscripts)
    if tiled:
        best = emitter.temporary(f"{key_write.tensor}.new", rows, env, dtype)
        found.append(Assignment(leaf, best, key_write, rows))
    found.append(Assignment(leaf, best, value.key, rows, leaf.reduced, form.extremum, tiled, value.guard))
    if tiled:
        factor = emitter.temporary(f"{key_write.tensor}.rescale", rows, env, dtype)
        found.append(Assignment(leaf, factor, _weight(emitter, form, key_write, best, dtype), rows))
        found.append(Assignment(leaf, key_write, best, rows))
    weight = _weight(emitter, form, value.key, best, dtype)
    if value.guard is not None:
        weight = Call("select", (value.guard, weight, Num(0.0)))
    if len(field_writes) > 1 or any(set(emitter.axes_of(w)) - set(rows) for w in field_writes):
        name = f"{key_write.tensor}.weight"
        tile = emitter.temporary(name, (*rows, *leaf.reduced), env, dtype)
        found.append(Assignment(leaf, tile, weight, (*rows, *leaf.reduced)))
        weight = tile
    for w, v in zip(field_writes, value.values, strict=True):
        axes = emitter.axes_of(w)
        if tiled:
            found.append(Assignment(leaf, w, fold(Binary("*", w, factor)), axes))
        cast = emitter.plan.casts.get(f"{w.tensor}.weight")
        factor_of = Call(cast.value, (weight,)) if cast is not None else weight
        product = weight if v in (Num(1), Num(1.0)) else Binary("*", factor_of, v)
        region = emitter.region(leaf, conjuncts(value.guard))
        found.append(Assignment(leaf, w, product, axes, leaf.reduced, "sum", tiled, region=region))
    return [emitter.compute(a, env) for a in found]


def _weight(emitter: Emitter, form: RescaledSum, key: Expr, joint: Expr, dtype: DType) -> Expr:
    """What a value or a partial sum of that key counts for. (On a GPU by exp2, in f32. Weights are at most 1: those
    whose large exponents lose bits count for little.)"""
    weight = form.weight(key, joint)
    return by_exp2(weight) if emitter.needs is None and dtype is DType.F32 else weight
