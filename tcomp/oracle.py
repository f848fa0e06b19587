"""The meaning of the language: an op's equations evaluated in order, each over whole arrays, in float64 NumPy.

Takes an op, its inputs and its dimensions; gives its outputs and changed inout operands (float64, integers
int64). Knows nothing of schedules; everything else is compared with it. Every index of an equation is an
axis of broadcast arrays; a sum of products goes to einsum, so layer-sized contractions are feasible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import (
    Access,
    Binary,
    Call,
    DType,
    Equation,
    Expr,
    Module,
    Name,
    Num,
    Op,
    Reduction,
    Span,
    Target,
    Unary,
)
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.inline import inline_functions, inline_value
from tcomp.numeric import random_uniform, round_to
from tcomp.schedule.monoid import rescaled_sum

Array = NDArray[Any]
CASTS = {d.value: d for d in DType}

_BINARY = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "//": np.floor_divide, "%": np.mod,
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal,
    "!=": np.not_equal,
}  # fmt: skip
_CALLS = {
    "exp": np.exp, "log": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "abs": np.abs, "sin": np.sin,
    "cos": np.cos, "floor": np.floor, "min": np.minimum, "max": np.maximum,
}  # fmt: skip


def evaluate(
    op: Op, module: Module, inputs: Mapping[str, Any], dims: Mapping[str, int], fold_monoids: bool = False
) -> dict[str, Array]:
    """The op's outputs and inout operands after its equations, as float64 (int64 where the dtype is i32).

    `inputs` has an array for every parameter; they are not changed. With `fold_monoids` a monoid reduction
    is folded element by element even where a closed form is known. TcError for a wrong shape or an access
    outside its tensor.
    """
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
    for equation, parallel in zip(op.equations, info.equation_indices, strict=True):
        try:
            with np.errstate(all="ignore"):
                _run(equation, parallel, module, arrays, extents, dims, fold_monoids)
        except TcError as error:
            error.text = error.text or module.sources.get(error.span.file, "")
            raise
    return {o.name: arrays[o.name] for o in op.operands if o.inout or o in op.outputs}


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
    value = inline_value(equation.value, module)
    reduced = value.indices if isinstance(value, Reduction) else ()
    points = _Points((*parallel, *reduced), {i: (0, extents[i]) for i in (*parallel, *reduced)}, arrays, dims)
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


def _write(target: Target, subscripts: tuple[Expr, ...], result: Array, add: bool, points: _Points) -> None:
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


# ----------------------------------------------------------------------------------------- expressions


@dataclass(frozen=True)
class _Points:
    """The points of an equation: `indices` in order of axes, each over ranges[i] = (start, stop).

    Values of expressions are arrays that broadcast to `shape`, one axis per index.
    """

    indices: tuple[str, ...]
    ranges: Mapping[str, tuple[int, int]]
    arrays: dict[str, Array]
    dims: Mapping[str, int]
    axis: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.axis.update({n: a for a, n in enumerate(self.indices)})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.ranges[i][1] - self.ranges[i][0] for i in self.indices)

    def over(self, indices: tuple[str, ...]) -> _Points:
        """The same ranges, only over these indices."""
        return _Points(indices, self.ranges, self.arrays, self.dims)

    def at(self, values: Mapping[str, int]) -> _Points:
        """Some indices held at one value; their axes remain, of length 1."""
        held = {i: (v, v + 1) for i, v in values.items()}
        return _Points(self.indices, {**self.ranges, **held}, self.arrays, self.dims)

    def value(self, e: Expr, active: Array | bool = True) -> Array:
        """The expression at every point. Accesses are checked only where `active` holds."""
        match e:
            case Num(v):
                return np.asarray(v)
            case Name(id) if id in self.axis:
                start, stop = self.ranges[id]
                shape = [1] * len(self.indices)
                shape[self.axis[id]] = stop - start
                return np.arange(start, stop).reshape(shape)
            case Name(id):
                if id not in self.dims:
                    raise TcError(f"'{id}' is neither an index of this equation nor a dimension", e.span)
                return np.asarray(self.dims[id])
            case Access(tensor, subscripts):
                return self._read(tensor, subscripts, e.span, active)
            case Unary("-", operand):
                return -self._number(operand, active)
            case Unary(_, operand):
                return np.logical_not(self.value(operand, active))
            case Binary("and", left, right):
                a = self.value(left, active).astype(bool)
                return a & self.value(right, active & a).astype(bool)
            case Binary("or", left, right):
                a = self.value(left, active).astype(bool)
                return a | self.value(right, active & ~a).astype(bool)
            case Binary("**", left, right):
                return _power(self._number(left, active), self._number(right, active))
            case Binary(op, left, right):
                return np.asarray(_BINARY[op](self._number(left, active), self._number(right, active)))
            case Call("select", (condition, left, right)):
                c = self.value(condition, active).astype(bool)
                return np.where(c, self._number(left, active & c), self._number(right, active & ~c))
            case Call("random", (seed, counter)):
                return random_uniform(self.value(seed, active), self.value(counter, active))
            case Call("rsqrt", (x,)):
                return np.asarray(1.0 / np.sqrt(self.value(x, active)))
            case Call(function, (x,)) if function in CASTS:
                return round_to(self.value(x, active), CASTS[function])
            case Call("floor", (x,)):
                v = self._number(x, active)
                return v if v.dtype.kind == "i" else np.floor(v)
            case Call(function, args) if function in _CALLS:
                return np.asarray(_CALLS[function](*(self._number(a, active) for a in args)))
        raise TcError("this expression has no value here", e.span)

    def _number(self, e: Expr, active: Array | bool) -> Array:
        """A value for arithmetic: truth is 0 or 1."""
        v = self.value(e, active)
        return v.astype(np.int64) if v.dtype.kind == "b" else v

    def _read(self, tensor: str, subscripts: tuple[Expr, ...], span: Span, active: Array | bool) -> Array:
        array = self.arrays[tensor]
        names = [s.id for s in subscripts if isinstance(s, Name) and s.id in self.axis]
        simple = len(set(names)) == len(names) and all(
            self._whole(s, n) for s, n in zip(subscripts, array.shape, strict=True)
        )
        if not simple:
            return np.asarray(array[self.positions(tensor, subscripts, span, active)])
        part = array[tuple(self._basic(s) for s in subscripts)]
        order = sorted(range(len(names)), key=lambda i: self.axis[names[i]])
        part = part.transpose(order)
        shape = [1] * len(self.indices)
        for i in order:
            shape[self.axis[names[i]]] = self.ranges[names[i]][1] - self.ranges[names[i]][0]
        return part.reshape(shape)

    def _whole(self, s: Expr, extent: int) -> bool:
        """A plain index within the axis, or a constant of the axis."""
        if isinstance(s, Num):
            return isinstance(s.value, int) and 0 <= s.value < extent
        return isinstance(s, Name) and s.id in self.axis and self.ranges[s.id][1] <= extent

    def _basic(self, s: Expr) -> Any:
        return slice(*self.ranges[s.id]) if isinstance(s, Name) else s.value if isinstance(s, Num) else None

    def positions(
        self, tensor: str, subscripts: tuple[Expr, ...], span: Span, active: Array | bool
    ) -> tuple[Array, ...]:
        """The subscripts at every point, those of inactive points moved inside the tensor."""
        shape = self.arrays[tensor].shape
        if len(shape) != len(subscripts):
            raise TcError(f"'{tensor}' has {len(shape)} axes, not {len(subscripts)}", span)
        at: list[Array] = []
        for axis, (s, extent) in enumerate(zip(subscripts, shape, strict=True)):
            x = self.value(s, active)
            if x.dtype.kind not in "iub":
                raise TcError(f"subscript {axis} of '{tensor}' is not an integer", s.span)
            x = x.astype(np.int64)
            outside = (x < 0) | (x >= extent)
            if np.any(outside & active):
                raise TcError(
                    f"'{tensor}' is accessed outside its extent {extent} on axis {axis}",
                    span,
                    notes=(self._where(outside & active, x),),
                )
            at.append(np.clip(x, 0, max(extent - 1, 0)))
        if at and 0 in shape:
            at = [np.zeros((0,), np.int64)] * len(at) if 0 in self.shape else at
        return tuple(at)

    def _where(self, wrong: Array, subscript: Array) -> str:
        full = np.broadcast_to(wrong, np.broadcast_shapes(wrong.shape, (1,) * len(self.indices)))
        first = np.argwhere(full)[0]
        point = {
            i: int(v) + self.ranges[i][0]
            for i, v in zip(self.indices, first, strict=True)
            if full.shape[self.axis[i]] > 1
        }
        worst = int(np.broadcast_to(subscript, full.shape)[tuple(first)])
        place = ", ".join(f"{i} = {v}" for i, v in point.items())
        return f"the subscript is {worst}" + (f" at {place}" if place else "")


def _power(x: Array, y: Array) -> Array:
    """x ** y in reals; whole exponents of a negative base keep their sign."""
    return np.asarray(np.power(x.astype(np.float64), y.astype(np.float64)))


# ------------------------------------------------------------------------------------------ reductions


def _reduce(r: Reduction, points: _Points, outer: _Points) -> Array:
    """sum, max or min over the reduced axes (the last ones); without any point: 0, -inf or inf."""
    guard: Array | bool = True if r.guard is None else points.value(r.guard).astype(bool)
    count = len(outer.indices)
    if r.reducer == "sum":
        factors = _factors(r.values[0])
        parts = [points._number(f, guard) for f in factors]
        if any(p.dtype.kind == "f" for p in parts):
            return _sum_of_product(parts, guard, points.shape, count)
    full = np.broadcast_to(points._number(r.values[0], guard), points.shape)
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


def _monoid(r: Reduction, points: _Points, outer: _Points, module: Module, fold: bool) -> list[Array]:
    monoid = module.monoids[r.reducer]
    form = None if fold else rescaled_sum(monoid)
    if form is None:
        return _fold(r, points, outer, module)
    assert r.key is not None
    guard: Array | bool = True if r.guard is None else points.value(r.guard).astype(bool)
    axes = tuple(range(len(outer.indices), len(points.indices)))
    lowest, best = (-np.inf, np.max) if form.extremum == "max" else (np.inf, np.min)
    key = np.broadcast_to(points._number(r.key, guard), points.shape).astype(np.float64)
    joint = best(np.where(guard, key, lowest), axis=axes, initial=lowest, keepdims=True)
    scalars = _Points((), {}, {"u": key, "v": np.where(np.isfinite(joint), joint, 0.0)}, points.dims)
    weight = np.where(guard, _apply(form.weight(Name("u"), Name("v")), scalars), 0.0)
    results = [joint.reshape(outer.shape)]
    for v in r.values:
        parts = [points._number(f, guard) for f in _factors(v)]
        results.append(_sum_of_product([weight, *parts], guard, points.shape, len(outer.indices)))
    return results


def _fold(r: Reduction, points: _Points, outer: _Points, module: Module) -> list[Array]:
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
        guard = np.asarray(True) if r.guard is None else here.value(r.guard).astype(bool)
        new_key = here._number(r.key, guard).astype(np.float64)
        new_fields = [here._number(v, guard).astype(np.float64) for v in r.values]
        scalars: dict[str, Array] = {f"a.{key_name}": key, f"b.{key_name}": new_key}
        joint = _apply(monoid.key, _Points((), {}, scalars, points.dims))
        scalars[key_name] = joint
        for i, v in enumerate(new_fields):
            both = {**scalars, f"a.{x}": fields[i], f"b.{x}": v}
            combined = _apply(monoid.carried, _Points((), {}, both, points.dims))
            fields[i] = np.where(guard, np.where(some, combined, v), fields[i])
        key = np.where(guard, np.where(some, joint, new_key), key)
        some = some | guard
    return [np.broadcast_to(v, shape).reshape(outer.shape) for v in (key, *fields)]


def _apply(e: Expr, scalars: _Points) -> Array:
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

    return _Whole((), {}, scalars.arrays, scalars.dims).value(named(e))


class _Whole(_Points):
    """Points at which a tensor's name stands for its whole array."""

    def _read(self, tensor: str, subscripts: tuple[Expr, ...], span: Span, active: Array | bool) -> Array:
        return self.arrays[tensor]
