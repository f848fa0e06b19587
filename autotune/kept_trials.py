"""What a storage file holds, judged as it is read: studies whose trials say things in the types they are written in.

A file may be damaged, or of another making; the search and the report trust what passes here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any

from tcomp.errors import UserError
from tcomp.runtime.documents import parse_json

if TYPE_CHECKING:
    import optuna


class Damage(Exception):
    """The storage file's content is not what tcomp writes; the message says what of it."""


@contextmanager
def reading() -> Iterator[None]:
    """Whatever Optuna makes of a damaged file (enum names, JSON, missing rows) becomes Damage; what SQLite says of
    the file itself stays."""
    import optuna
    import sqlalchemy

    try:
        yield
    except (UserError, Damage, optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
        raise
    except Exception as e:
        raise Damage(f"{type(e).__name__}: {e}") from e


def study_names(storage: optuna.storages.BaseStorage) -> list[str]:
    """The names of tcomp's studies, `machine basis | job | ...`. Damage where they cannot be read."""
    import optuna

    with reading():
        names = optuna.get_all_study_names(storage)
    return [n for n in names if n.count(" | ") > 1 and len(n.split(" | ")[0].split()) == 2]


def load_study(storage: optuna.storages.BaseStorage, name: str, **options: Any) -> optuna.Study:
    """A study that is there, its trials checked. Damage where it is not what tcomp writes."""
    import optuna

    with reading():
        return checked(optuna.load_study(study_name=name, storage=storage, **options))


def checked(study: optuna.Study) -> optuna.Study:
    """The study; Damage where it, or a trial of it, says something in another type than it is written in."""
    with reading():
        _check(study.user_attrs, f"study {study.study_name!r}")
        for t in study.get_trials(deepcopy=False):
            _check(t.user_attrs, f"trial {t.number} of {study.study_name!r}")
    return study


def values_of(trial: optuna.trial.FrozenTrial) -> dict[str, int | float] | None:
    """The values a trial stands for."""
    text = trial.user_attrs.get("values")
    return json.loads(text) if text else None


def _check(attributes: Mapping[str, Any], of: str) -> None:
    for name, right in _WRITTEN.items():
        if name in attributes and not right(attributes[name]):
            raise Damage(f"{name!r} of {of} is {str(attributes[name])[:40]!r}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _are_values(value: object) -> bool:
    try:
        found = parse_json(value) if isinstance(value, str) else None
        return isinstance(found, dict) and all(_is_number(v) and isfinite(v) for v in found.values())
    except (ValueError, OverflowError):
        return False


def _is_process(value: object) -> bool:
    """A host, a number and the time it started: `host 123 4567`."""
    parts = value.rsplit(" ", 2) if isinstance(value, str) else []
    return len(parts) == 3 and parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 10


_WRITTEN: dict[str, Callable[[object], bool]] = {
    "values": _are_values, "kind": _is_text, "reason": _is_text, "schedule": _is_text, "process": _is_process,
    "seconds": _is_number, "margin": _is_number, "model": _is_number, "violation": _is_number,
    "job": _is_text, "basis": _is_text, "default_seconds": _is_number, "count": _is_number,
}  # fmt: skip
"""Attribute of a trial or a study -> whether it is of the type that it is written in."""
