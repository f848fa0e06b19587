"""The dimensions of a model as numbers: sizes, a configuration's values, what overrides them, and `let`s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tcomp.dsl.ast import Call, Expr, Model, names_in
from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_expression
from tcomp.errors import UserError


def model_dims(
    model: Model, config: str, sizes: Mapping[str, int], overrides: Mapping[str, Number]
) -> dict[str, Number]:
    """All dimensions of a model, its requirements checked.

    UserError for a config, size or override that does not exist or cannot be; TcError for a requirement that fails.
    """
    chosen = next((c for c in model.configs if c.name == config), None)
    if chosen is None:
        raise UserError(
            f"model '{model.name}' has no config '{config}'",
            one_of("configs", [c.name for c in model.configs]),
        )
    settable = [n for n, _ in chosen.values]
    for name in overrides:
        if name not in settable:
            raise UserError(f"config '{config}' has no value '{name}' to override", one_of("values", settable))
    dims: dict[str, Number] = {}
    for name in model.dims:
        if name not in sizes:
            raise UserError(f"model '{model.name}' needs a size for '{name}'", f"give one: --dim {name}=8")
        dims[name] = int(sizes[name])
        if dims[name] < 1:
            raise UserError(
                f"size {name} = {dims[name]} of model '{model.name}' must be at least 1", "give a larger one"
            )
    for name in sizes:
        if name not in model.dims:
            raise UserError(f"model '{model.name}' has no size '{name}'", one_of("sizes", model.dims))
    for name, value in chosen.values:
        dims[name] = overrides[name] if name in overrides else evaluate_dim(value, {})
        wrong = _wrong(model, name, dims[name])
        if wrong:
            hint = f"choose another, such as --dim {name}={print_expression(value)}"
            raise UserError(f"{name} = {dims[name]} of model '{model.name}' {wrong}", hint)
    for name, value in model.lets:
        dims[name] = evaluate_dim(value, dims)
    for condition in model.requires:
        if not evaluate_dim(condition, {**dims}):
            text = print_expression(condition)
            used = {n: v for n, v in dims.items() if mentions(condition, n)}
            raise TcError(
                f"model '{model.name}' requires {text}",
                condition.span,
                "choose sizes or config values for which it holds",
                (", ".join(f"{n} = {v}" for n, v in used.items()),),
            )
    return dims


def failing(model: Model, config: str, sizes: Mapping[str, int], overrides: Mapping[str, Number]) -> set[str]:
    """The numbers on which the first requirement that fails depends, `let`s followed; none where all hold."""
    try:
        model_dims(model, config, sizes, overrides)
    except TcError as e:
        used = {n for r in model.requires if r.span == e.span for n in names_in(r)}
        for name, value in reversed(model.lets):
            used |= names_in(value) if name in used else set()
        return used
    return set()


def of_no_size(model: Model, dims: Mapping[str, Number]) -> dict[str, Number]:
    """Those of a model's numbers that follow from none of its sizes: a run and what is done with its weights have them
    alike, whatever their batches are."""
    varying = set(model.dims)
    for name, value in model.lets:
        if names_in(value) & varying:
            varying.add(name)
    return {name: value for name, value in dims.items() if name not in varying}


def _wrong(model: Model, name: str, given: Number) -> str:
    """What is wrong with a configuration value, or nothing: one that the model's configurations write as a real number
    may be any; a size must be whole and at least 1, or 0 where some configuration has 0."""
    values = [evaluate_dim(e, {}) for c in model.configs for n, e in c.values if n == name]
    if any(isinstance(v, float) for v in values):
        return ""
    if given != int(given):
        return "must be a whole number"
    least = min(1, *values)
    return f"must be at least {least}" if given < least else ""


def mentions(e: Expr, name: str) -> bool:
    """Whether the name stands in the expression, the arguments of calls included."""
    return name in names_in(e) or (isinstance(e, Call) and any(mentions(a, name) for a in e.args))


def one_of(what: str, names: Iterable[str]) -> str:
    """`configs: tiny, 124M`"""
    return f"{what}: " + ", ".join(names)
