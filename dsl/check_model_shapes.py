"""Checks of a model's shapes, with numbers: the forward pass is walked at every configuration.

Sizes given at build time (B, T) take small different values that satisfy the model's `require` lines, so a
shape that fits only by chance is found. Each layer loop is walked twice: what the body leaves behind must
fit where the next turn takes it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import permutations, product
from math import prod

from tcomp.dsl.ast import (
    Alias,
    Cache,
    Config,
    Expr,
    ForLayers,
    InputDecl,
    Model,
    ModelStatement,
    Module,
    OpCall,
    StateDecl,
    TensorRef,
    names_in,
)
from tcomp.dsl.check_numbers import BATCH_NUMBER
from tcomp.dsl.dims import Number, bind, evaluate_dim, operand_shape, shape_text
from tcomp.dsl.errors import TcError
from tcomp.dsl.expressions import place
from tcomp.dsl.hints import count

Shape = tuple[int, ...]
_SIZES = (7, 5, 3, 11, 13, 2)


def check_model_shapes(model: Model, module: Module) -> None:
    """TcError where a shape does not fit at some configuration."""
    for config in model.configs or (Config("default", ()),):
        _check_requires(model, config)
        free = _sizes(model, _config_values(config))
        if free is None:
            raise TcError(
                f"config '{config.name}' satisfies the model's `require` lines at no small sizes",
                config.span if config.span.line else model.span,
                hint="check the values against each `require`",
            )
        values = _values(model, _config_values(config), free)
        try:
            _walk(model, module, values)
        except TcError as error:
            sizes = ", ".join(f"{n} = {v}" for n, v in free.items())
            error.notes = (*error.notes, f"at config '{config.name}'" + (f" with {sizes}" if sizes else ""))
            raise


def check_update_shapes(update: Model, module: Module, results: Mapping[str, tuple[Expr, ...]]) -> None:
    """TcError where shapes do not fit in an update (as a model, updates.py) at some sizes that it takes: of a wide
    matrix, a tall one, and others. `results` are shapes that it has to give."""
    n = len(update.dims)
    for sizes in (*permutations(_SIZES[:4], n), *product((1, 4), repeat=n)) if n <= 3 else [(_SIZES * n)[:n]]:
        values: dict[str, Number] = dict(zip(update.dims, sizes, strict=True))
        if not all(evaluate_dim(e, values) for e in update.requires):
            continue
        declared: tuple[InputDecl | Cache, ...] = (*update.inputs, *update.caches)
        env = {d.name: _shape(d.shape, values, f"'{d.name}'") for d in declared}
        try:
            _block(module, update.forward, env, values)
            for name, shape in results.items():
                wanted = _shape(shape, values, f"'{name}'")
                if _argument(TensorRef(name, span=update.span), env, values) != wanted:
                    message = (
                        f"'{name}' of '{update.name}' has the shape {shape_text(env[name])}, not {shape_text(wanted)}"
                    )
                    raise TcError(message, update.span, hint=f"let the call that gives '{name}' have this shape")
        except TcError as error:
            error.notes = (*error.notes, "with " + ", ".join(f"{n} = {v}" for n, v in values.items()))
            raise


def _check_requires(model: Model, config: Config) -> None:
    """The requires that the configuration alone decides."""
    given = _config_values(config)
    known = set(given)
    values: dict[str, Number] = {**given}
    for n, e in model.lets:
        if names_in(e) <= known:
            values[n] = evaluate_dim(e, values)
            known.add(n)
    for e in model.requires:
        if names_in(e) <= known and not evaluate_dim(e, values):
            shown = ", ".join(f"{n} = {values[n]}" for n in sorted(names_in(e)))
            raise TcError(
                f"config '{config.name}' breaks a `require` line",
                e.span,
                notes=(f"with {shown}",),
                hint="change the configuration's values, or the condition",
            )


def _config_values(config: Config) -> dict[str, Number]:
    return {n: evaluate_dim(e, {}) for n, e in config.values}


def _values(model: Model, config: Mapping[str, Number], free: Mapping[str, int]) -> dict[str, Number]:
    values: dict[str, Number] = {**config, **free}
    for n, e in model.lets:
        values[n] = evaluate_dim(e, values)
    return values


def _sizes(model: Model, config: Mapping[str, Number]) -> dict[str, int] | None:
    """Values of the model's free sizes that satisfy its requires; different ones if possible."""
    n = len(model.dims)
    choices: Iterable[tuple[int, ...]] = (
        (
            *permutations(_SIZES, n),
            *product((1, 2, 4, 8, 16, 64, 128), repeat=min(n, 3)),
        )
        if n <= 3
        else [(_SIZES * n)[:n]]
    )
    for sizes in choices:
        free = dict(zip(model.dims, sizes, strict=False))
        values = _values(model, config, free)
        if all(evaluate_dim(e, values) for e in model.requires):
            return free
    return None


def _shape(shape: Iterable[Expr], values: Mapping[str, Number], where: str) -> Shape:
    out = []
    for e in shape:
        v = evaluate_dim(e, values)
        if v != int(v) or v < 1:
            raise TcError(f"an extent of {where} would be {v}", e.span, hint="extents are whole numbers from 1 on")
        out.append(int(v))
    return tuple(out)


def _walk(model: Model, module: Module, values: Mapping[str, Number]) -> None:
    env = {p.name: _shape(p.shape, values, f"'{p.name}'") for p in model.params}
    declared: tuple[InputDecl | StateDecl | Cache, ...] = (*model.inputs, *model.states, *model.caches)
    env |= {d.name: _shape(d.shape, values, f"'{d.name}'") for d in declared}
    env[BATCH_NUMBER] = ()
    _block(module, model.forward, env, dict(values))
    if env[model.loss]:
        hint = "reduce it to one number: `op mean(X: f32[M]) -> y: f32[]`"
        span = place(model.places, "loss", model.span)
        raise TcError(f"the loss '{model.loss}' has shape {shape_text(env[model.loss])}", span, hint=hint)


def _block(module: Module, body: Iterable[ModelStatement], env: dict[str, Shape], values: dict[str, Number]) -> None:
    for s in body:
        if isinstance(s, ForLayers):
            extent = evaluate_dim(s.extent, values)
            for turn in range(min(2, int(extent))):
                _block(module, s.body, env, {**values, s.index: turn})
        elif isinstance(s, Alias):
            env[s.name] = _argument(s.value, env, values)
        else:
            _call(module, s, env, values)


def _call(module: Module, s: OpCall, env: dict[str, Shape], values: Mapping[str, Number]) -> None:
    if s.where is not None and not evaluate_dim(s.where, values):
        return
    op = module.ops[s.op]
    shapes: dict[str, Shape] = {}
    for p, a in zip(op.params, s.args, strict=True):
        if not isinstance(a, TensorRef):
            continue
        shape = _argument(a, env, values)
        if len(shape) != len(p.shape):
            axes = count(len(p.shape), "axis", "axes")
            hint = f"view it in {axes}: {a.name} as [...]"
            if len(shape) == len(p.shape) + 1:
                hint += f", or take a slice along the first one: {a.name}[l]"
            raise TcError(
                f"operand '{p.name}' of op '{op.name}' has {axes}, but '{a.name}' is {shape_text(shape)}",
                a.span,
                hint=hint,
            )
        shapes[p.name] = shape
    given = {n: int(evaluate_dim(e, values)) for n, e in s.keywords}
    try:
        dims = bind(op, shapes, given)
        outputs = [operand_shape(o, dims) for o in op.outputs]
    except TcError as error:
        at = str(error.span)
        raise TcError(error.message, s.span, error.hint, (*error.notes, f"declared at {at}")) from None
    for r, shape in zip(s.results, outputs, strict=True):
        if r.name != "_":
            env[r.name] = _viewed(r, shape, values)


def _argument(a: TensorRef, env: Mapping[str, Shape], values: Mapping[str, Number]) -> Shape:
    if a.name not in env:
        hint = "bind it above the loop, too, or `require` dimensions for which there is a turn"
        raise TcError(f"'{a.name}' has no value: the loop that binds it has no turns", a.span, hint=hint)
    shape = env[a.name]
    if len(a.subscripts) > len(shape):
        raise TcError(f"'{a.name}' is {shape_text(shape)} and has no such slice", a.span, hint="remove a subscript")
    for axis, e in enumerate(a.subscripts):
        v = evaluate_dim(e, values)
        if not 0 <= v < shape[axis]:
            raise TcError(
                f"slice {v} of '{a.name}', whose axis {axis} has extent {shape[axis]}",
                a.span,
                hint="slices count from 0",
            )
    return _viewed(a, shape[len(a.subscripts) :], values)


def _viewed(r: TensorRef, shape: Shape, values: Mapping[str, Number]) -> Shape:
    if r.shape is None:
        return shape
    view = _shape(r.shape, values, f"the view of '{r.name}'")
    if prod(view) != prod(shape):
        hint = "a view keeps the elements and their order, so the products of the extents must agree"
        raise TcError(
            f"'{r.name}' is {shape_text(shape)} and cannot be viewed as {shape_text(view)}", r.span, hint=hint
        )
    return view
