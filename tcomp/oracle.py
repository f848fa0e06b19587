"""The meaning of the language: an op's equations evaluated in order, each over whole arrays, in float64 NumPy.

Takes an op, its inputs and its dimensions; gives its outputs and changed inout operands (float64, integers
int64). Knows nothing of schedules; everything else is compared with it. Every index of an equation is an
axis of broadcast arrays; a sum of products goes to einsum, so layer-sized contractions are feasible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tcomp.dsl.ast import Access, Binary, Call, DType, Equation, Expr, Module, Name, Op, Reduction, Target, Unary
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError, quoting
from tcomp.dsl.inline import inline_functions, inline_value
from tcomp.dsl.storage import bound
from tcomp.monoid import rescaled_sum
from tcomp.numeric import NARROW, round_to
from tcomp.points import Array, Points, WholeArrays


def evaluate(
    op: Op, module: Module, inputs: Mapping[str, Any], dims: Mapping[str, int], fold_monoids: bool = False
) -> dict[str, Array]:
    """The op's outputs and inout operands after its equations, as float64 (int64 where the dtype is i32).

    What is assigned to a tensor of a narrow type is rounded to it, as the language says; f32 stands for exact reals.
    `inputs` has an array for every parameter; they are not changed. With `fold_monoids` a monoid reduction
    is folded element by element even where a closed form is known. A generic op means its f32 form. TcError for a
    wrong shape or an access outside its tensor.
    """
    op = bound(op, DType.F32)
    info = infer(op, module)
    arrays: dict[str, Array] = {}
    for p in op.params:
        value = np.array(inputs[p.name], dtype=_storage(p.dtype))
        if value.shape != operand_shape(p, dims):
            raise TcError(f"'{p.name}' has shape {value.shape}, not {operand_shape(p, dims)}", p.span)
        arrays[p.name] = value
    for o in op.outputs:
        arrays[o.name] = np.zeros(operand_shape(o, dims), _storage(o.dtype))
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    for t in info.temporaries.values():
        arrays[t.name] = np.zeros(tuple(extents[i] for i in t.indices), _storage(t.dtype))
    narrow = {o.name: o.dtype for o in op.operands if o.dtype in NARROW}
    narrow |= {t.name: t.dtype for t in info.temporaries.values() if t.dtype in NARROW}
    for equation, parallel in zip(op.equations, info.equation_indices, strict=True):
        with quoting(module.sources), np.errstate(all="ignore"):
            _run(equation, parallel, module, arrays, extents, dims, fold_monoids)
            for name in {t.name for t in equation.targets} & narrow.keys():
                arrays[name] = round_to(arrays[name], narrow[name])
    return {o.name: arrays[o.name] for o in op.written}


def _storage(dtype: DType) -> type[np.float64] | type[np.int64]:
    return np.float64 if dtype.is_float else np.int64


def _run(
    equation: Equation,
    parallel: tuple[str, ...],
    module: Module,
    arrays: dict[str, Array],
    extents: Mapping[str, int],
    dims: Mapping[str, int],
    fold: bool,
) -> None:
    if not all(extents[i] for i in parallel):  # (it has no element)
        return
    value = inline_value(equation.value, module)
    reduced = value.indices if isinstance(value, Reduction) else ()
    points = Points((*parallel, *reduced), {i: (0, extents[i]) for i in (*parallel, *reduced)}, arrays, dims)
    outer = points.over(parallel)
    if not isinstance(value, Reduction):
        results = [outer.value(value)]
    elif value.key is None:
        results = [_reduce(value, points, outer)]
    else:
        results = _monoid(value, points, outer, module, fold)
    for target, result in zip(equation.targets, results, strict=True):
        subscripts = tuple(inline_functions(s, module) for s in target.subscripts)
        _write(target, subscripts, result, equation.accumulate, outer)


def _write(target: Target, subscripts: tuple[Expr, ...], result: Array, add: bool, points: Points) -> None:
    array = points.arrays[target.name]
    value = np.broadcast_to(np.asarray(result).astype(array.dtype), points.shape)
    at = points.positions(target.name, subscripts, target.span, True)
    at = tuple(np.broadcast_to(x, points.shape) for x in at)
    if not at:
        array[()] = array[()] + value.reshape(-1).sum() if add else value.reshape(())
    elif add:
        np.add.at(array, at, value)
    else:
        array[at] = value


# ------------------------------------------------------------------------------------------ reductions


def _reduce(r: Reduction, points: Points, outer: Points) -> Array:
    """sum, max or min over the reduced axes (the last ones); without any point: 0, -inf or inf."""
    guard: Array | bool = True if r.guard is None else points.truth(r.guard)
    count = len(outer.indices)
    if r.reducer == "sum":
        factors = _factors(r.values[0])
        parts = [points.number(f, guard) for f in factors]
        if any(p.dtype.kind == "f" for p in parts):
            return _sum_of_product(parts, guard, points.shape, count)
    full = np.broadcast_to(points.number(r.values[0], guard), points.shape)
    axes = tuple(range(count, len(points.shape)))
    if r.reducer == "sum":
        return np.asarray(np.sum(np.where(guard, full, 0), axis=axes))
    real = full.dtype.kind == "f"
    low, high = (-np.inf, np.inf) if real else (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    identity, function = (low, np.max) if r.reducer == "max" else (high, np.min)
    return np.asarray(function(np.where(guard, full, identity), axis=axes, initial=identity))


def _factors(e: Expr) -> list[Expr]:
    if isinstance(e, Binary) and e.op == "*":
        return _factors(e.left) + _factors(e.right)
    return [e]


def _sum_of_product(parts: list[Array], guard: Array | bool, shape: tuple[int, ...], count: int) -> Array:
    """The product of broadcast factors, summed over the axes from `count` on where the guard holds."""
    if guard is not True:
        if all(np.isfinite(p).all() for p in parts):
            parts = [*parts, np.asarray(guard, dtype=np.float64)]
        else:
            whole = np.ones(shape)
            for p in parts:
                whole = whole * p
            parts = [np.where(guard, whole, 0.0)]
    operands: list[Any] = []
    repeated, seen = 1.0, set()
    for p in parts:
        p = p.astype(np.float64).reshape((1,) * (len(shape) - p.ndim) + p.shape)
        axes = [a for a in range(len(shape)) if p.shape[a] != 1]
        seen.update(axes)
        operands += [p.reshape([p.shape[a] for a in axes]), axes]
    kept = [a for a in range(count) if a in seen]
    for a in range(count, len(shape)):
        if a not in seen:
            repeated *= shape[a]
    total = np.einsum(*operands, kept, optimize=True) * repeated
    return np.asarray(total).reshape([shape[a] if a in seen else 1 for a in range(count)])


def _monoid(r: Reduction, points: Points, outer: Points, module: Module, fold: bool) -> list[Array]:
    monoid = module.monoids[r.reducer]
    form = None if fold else rescaled_sum(monoid)
    if form is None:
        return _fold(r, points, outer, module)
    assert r.key is not None
    guard: Array | bool = True if r.guard is None else points.truth(r.guard)
    axes = tuple(range(len(outer.indices), len(points.indices)))
    lowest, best = (-np.inf, np.max) if form.extremum == "max" else (np.inf, np.min)
    key = np.broadcast_to(points.number(r.key, guard), points.shape).astype(np.float64)
    joint = best(np.where(guard, key, lowest), axis=axes, initial=lowest, keepdims=True)
    scalars = Points((), {}, {"u": key, "v": np.where(np.isfinite(joint), joint, 0.0)}, points.dims)
    weight = np.where(guard, _apply(form.weight(Name("u"), Name("v")), scalars), 0.0)
    results = [joint.reshape(outer.shape)]
    for v in r.values:
        parts = [points.number(f, guard) for f in _factors(v)]
        results.append(_sum_of_product([weight, *parts], guard, points.shape, len(outer.indices)))
    return results


def _fold(r: Reduction, points: Points, outer: Points, module: Module) -> list[Array]:
    """The plain meaning: elements combined one after another in the order of the indices.

    The first element stands for itself; a point without any element gives the least key and zeros.
    """
    monoid = module.monoids[r.reducer]
    assert r.key is not None
    minimum = isinstance(monoid.key, Call) and monoid.key.function == "min"
    shape = (*outer.shape, *(1 for _ in r.indices))
    some = np.zeros(shape, bool)
    key = np.full(shape, np.inf if minimum else -np.inf)
    fields = [np.zeros(shape) for _ in r.values]
    key_name, x = monoid.key_name, monoid.carried_name
    for place in np.ndindex(*(points.ranges[i][1] for i in r.indices)):
        here = points.at(dict(zip(r.indices, place, strict=True)))
        guard = np.asarray(True) if r.guard is None else here.truth(r.guard)
        new_key = here.number(r.key, guard).astype(np.float64)
        new_fields = [here.number(v, guard).astype(np.float64) for v in r.values]
        scalars: dict[str, Array] = {f"a.{key_name}": key, f"b.{key_name}": new_key}
        joint = _apply(monoid.key, Points((), {}, scalars, points.dims))
        scalars[key_name] = joint
        for i, v in enumerate(new_fields):
            both = {**scalars, f"a.{x}": fields[i], f"b.{x}": v}
            combined = _apply(monoid.carried, Points((), {}, both, points.dims))
            fields[i] = np.where(guard, np.where(some, combined, v), fields[i])
        key = np.where(guard, np.where(some, joint, new_key), key)
        some = some | guard
    return [np.broadcast_to(v, shape).reshape(outer.shape) for v in (key, *fields)]


def _apply(e: Expr, scalars: Points) -> Array:
    """A monoid's expression, whose names stand for whole arrays."""

    def named(e: Expr) -> Expr:
        if isinstance(e, Name) and e.id in scalars.arrays:
            return Access(e.id, ())
        match e:
            case Unary(op, a):
                return Unary(op, named(a), e.span)
            case Binary(op, a, b):
                return Binary(op, named(a), named(b), e.span)
            case Call(f, args):
                return Call(f, tuple(map(named, args)), e.span)
        return e

    return WholeArrays((), {}, scalars.arrays, scalars.dims).value(named(e))
