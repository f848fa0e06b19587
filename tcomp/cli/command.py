"""A command's options as records: dataclasses whose fields are the options, checked when they are made.

    @command
    def plan(step: StepOptions, where: DeviceOptions, own: PlanOptions) -> None: ...

has the options of all three records. A field of a record is an option if its type says so (`Annotated[int,
typer.Option(...), Range(1, 8)]`); others keep their defaults. A parameter of type `Given[Record]` gets, by name, only
the values that the command line has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, fields
from functools import cache
from inspect import Parameter, Signature
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from typer.models import ParameterInfo

from tcomp.cli.limits import Range
from tcomp.cli.voice import all_speak

Record = TypeVar("Record")


class Given(dict[str, Any], Generic[Record]):
    """The options of a record that a command line has."""


@dataclass(frozen=True)
class Options:
    """A record of options. UserError for numbers out of range."""

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(record: object) -> None:
    """UserError for the first number of a record that is out of its option's range."""
    kind: Any = type(record)
    for name, hint in _hints(kind).items():
        value = getattr(record, name)
        for limits in (x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Range)):
            if value is not None:
                limits.check(name, value)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A function of records as a function of their options, which is what typer takes."""
    records = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}

    def run(**values: Any) -> None:
        given = {name: value for name, value in values.items() if value is not None and value != []}
        made = {name: _made(record, given) for name, record in records.items()}
        all_speak()
        function(**made)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    parameters = [p for record in records.values() for p in _parameters(record)]
    vars(run)["__signature__"] = Signature(parameters)
    return run


def _made(record: Any, given: Mapping[str, Any]) -> Any:
    kind = _record(record)
    own = {name: given[name] for name, _, _ in _options(kind) if name in given}
    return Given(own) if kind is not record else record(**own)


def _parameters(record: Any) -> Iterator[Parameter]:
    kind = _record(record)
    for name, hint, default in _options(kind):
        if kind is not record:
            base, info, *_ = get_args(hint)
            info = copy(info)
            info.show_default = str(default) if default and default is not True else False
            hint, default = Annotated[base | None, info], None
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _record(hint: Any) -> type:
    found: type = get_args(hint)[0] if get_origin(hint) is Given else hint
    return found


@cache
def _options(record: type) -> tuple[tuple[str, Any, Any], ...]:
    """Name, annotated type and default (None: the record makes one) of each option."""
    hints = _hints(record)
    found = []
    for f in fields(record):
        if any(isinstance(x, ParameterInfo) for x in getattr(hints[f.name], "__metadata__", ())):
            default = Parameter.empty if f.default is MISSING and f.default_factory is MISSING else f.default
            found.append((f.name, hints[f.name], None if default is MISSING else default))
    return tuple(found)


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)
