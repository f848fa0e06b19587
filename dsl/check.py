"""All checks of parsed sources: names, types, shapes and ranges, schedules, models. Gives the Module.

`check` raises the first error; `diagnose` returns one error per faulty item, in the order of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.dsl.ast import Function, Import, Item, Model, Module, Monoid, Op, Optimizer, Schedule, Source, Update
from tcomp.dsl.check_effects import without_effect
from tcomp.dsl.check_functions import check_function, check_monoid
from tcomp.dsl.check_models import check_model
from tcomp.dsl.check_ops import check_op
from tcomp.dsl.check_schedules import check_schedule
from tcomp.dsl.compose import compose
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import listing
from tcomp.dsl.infer import infer
from tcomp.dsl.info import OpInfo
from tcomp.dsl.recipes import RECIPES
from tcomp.dsl.shared_schedules import fit_shared
from tcomp.dsl.updates import check_update, with_optimizers

__all__ = ["check", "diagnose", "infer"]


def check(sources: Sequence[Source], precision: str | None = None) -> Module:
    """The module of all items, every check passed (of models, under that precision only where one is given). TcError
    otherwise."""
    module, errors = _examine(sources, precision)
    if errors:
        raise errors[0]
    return module


def diagnose(sources: Sequence[Source]) -> list[TcError]:
    """Every error found, at most one per item."""
    return _examine(sources)[1]


def _examine(sources: Sequence[Source], precision: str | None = None) -> tuple[Module, list[TcError]]:
    errors: list[TcError] = []
    texts = {s.file: s.text for s in sources}
    module = Module({}, {}, {}, {}, {}, texts, precision)
    for source in sources:
        for item in source.items:
            try:
                _add(module, item)
            except TcError as error:
                errors.append(error)
    items = [item for source in sources for item in source.items]
    try:
        with_optimizers(module, items)
    except TcError as error:
        errors.append(error)
    scalar = [item for item in items if isinstance(item, Function | Monoid)]
    for group in (scalar, [item for item in items if item not in scalar]):
        if not errors:  # types of expressions are looked up through functions, so those must be right
            errors += _compose_ops(module) if group is not scalar else []
            errors += _check_items(group, module)
    if not errors:
        errors += without_effect(module.schedules.values())
    for e in errors:
        e.text = e.text or texts.get(e.span.file, "")
    return module, errors


def _check_items(items: Sequence[Item], module: Module) -> list[TcError]:
    errors = []
    infos: dict[str, OpInfo] = {}
    for item in items:
        try:
            _check_item(item, module, infos)
        except TcError as error:
            errors.append(error)
    return errors


def _compose_ops(module: Module) -> list[TcError]:
    """Calls of ops written out, and schedules of several ops cut to each."""
    errors = []
    composed = {}
    for name, op in module.ops.items():
        try:
            composed[name] = compose(op, module)
        except TcError as error:
            errors.append(error)
    module.ops.update(composed)
    if not errors:
        fit_shared(module)
    return errors


def _add(module: Module, item: Item) -> None:
    match item:
        case Op():
            _insert(module.ops, item.name, item, "op")
        case Function():
            _insert(module.functions, item.name, item, "fn")
        case Monoid():
            _insert(module.monoids, item.name, item, "monoid")
        case Schedule():
            _insert(module.schedules, (item.op, item.target), item, "schedule")
        case Update():
            _insert(module.updates, item.name, item, "update")
        case Model():
            _insert(module.models, item.name, item, "model")
        case Optimizer():
            pass  # (with_optimizers, when all models are there)
        case Import():
            if item.precision and item.precision not in RECIPES:
                hint = f"known are {listing(RECIPES)}"
                raise TcError(f"precision '{item.precision}' is not supported", item.span, hint=hint)


def _insert(table: dict, key: object, item: Item, kind: str) -> None:  # type: ignore[type-arg]
    if key in table:
        name = f"{key[0]} on {key[1]}" if isinstance(key, tuple) else str(key)
        first = table[key].span
        hint = "keep one of the two" if kind == "schedule" else "rename one of them"
        raise TcError(f"{kind} '{name}' is declared twice", item.span, notes=(f"first at {first}",), hint=hint)
    table[key] = item


def _check_item(item: Item, module: Module, infos: dict[str, OpInfo]) -> None:
    match item:
        case Op():
            check_op(module.ops.get(item.name, item), module)
        case Function():
            check_function(item, module)
        case Monoid():
            check_monoid(item, module)
        case Schedule():
            check_schedule(module.schedules.get((item.op, item.target), item), module, infos)
        case Update():
            check_update(item, module)
        case Model():
            check_model(module.models.get(item.name, item), module)
