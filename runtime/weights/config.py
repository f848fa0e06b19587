"""config.json of a Hugging Face folder: to a model's numbers, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcomp.dsl.ast import Config, Model
from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.errors import UserError
from tcomp.runtime.documents import parse_json, read_small
from tcomp.runtime.weights.layout import Key, Layout

CONFIG = "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table of modest size; UserError for anything else."""
    try:
        found = parse_json(read_small(path))
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}", "name a folder that transformers saved") from e
    except ValueError as e:
        raise UserError(
            f"{path}: not JSON: {e}", "name a folder that transformers saved, or download the file again"
        ) from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON table", "name a folder that transformers saved")
    return found


def look_up(config: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted path, None where there is none."""
    found: Any = config
    for name in dotted.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def numbers_of(config: Mapping[str, Any], layout: Layout, where: Path) -> dict[str, Number]:
    """The model's numbers that config.json gives; UserError for what the model cannot be."""
    for path, accepted in {**{n: [v] for n, v in layout.fixed.items()}, **layout.allowed}.items():
        value = look_up(config, path)
        if value is not None and value not in accepted:
            wanted = " or ".join(json.dumps(v) for v in accepted) or "absent"
            raise UserError(
                f"{where}: {path} is {json.dumps(value)}, this model needs {wanted}",
                f"the layout {layout.path.name} says what the model computes; other variants need another .tc text",
            )
    numbers: dict[str, Number] = {}
    waiting: dict[str, Key] = {}
    for name, key in layout.config.items():
        given = [v for v in (look_up(config, p) for p in key.paths) if v is not None]
        if given:
            numbers[name] = _number(given[0], key, where)
        elif key.default is None:
            raise UserError(f"{where}: it has no {' or '.join(key.paths)}", "name a folder that transformers saved")
        else:
            waiting[name] = key
    for name, key in waiting.items():
        assert key.default is not None
        value = evaluate_dim(key.default, numbers)
        numbers[name] = float(value) if key.kind == "real" else int(value)
    return numbers


def _number(value: Any, key: Key, where: Path) -> Number:
    wrong = UserError(
        f"{where}: {key.paths[0]} is {json.dumps(value)}, not {_WANTED[key.kind]}",
        "name a folder that transformers saved, or correct its config.json",
    )
    if key.kind == "switch":
        if not isinstance(value, bool):
            raise wrong
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 31:
        raise wrong
    if key.kind == "real":
        return float(value)
    if value != int(value):
        raise wrong
    return int(value)


_WANTED = {"switch": "true or false", "real": "a number", "whole": "a whole number"}


def fitting_config(model: Model, numbers: Mapping[str, Number]) -> tuple[str, dict[str, Number]]:
    """The model's configuration with these numbers, and what must be overridden in it: nothing where one fits."""
    best: tuple[Config, dict[str, Number]] | None = None
    for c in model.configs:
        values = {n: evaluate_dim(e, {}) for n, e in c.values}
        differing = {n: v for n, v in numbers.items() if values.get(n) != v}
        unknown = sorted(set(differing) - set(values))
        if unknown:
            raise UserError(
                f"the model {model.name} has no number {unknown[0]!r}, which its weights layout gives",
                "add it to the model's configurations, or take it out of the layout's [config]",
            )
        if best is None or len(differing) < len(best[1]):
            best = c, differing
    if best is None:
        raise UserError(
            f"the model {model.name} declares no configuration", "add one to the model, such as `config small: L = 2`"
        )
    chosen, differing = best
    return chosen.name, differing


def config_of(layout: Layout, dims: Mapping[str, Number], kept: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for a model with these numbers: `kept` (that of the folder it once came from), else a new one."""
    if kept:
        return dict(kept)
    config: dict[str, Any] = {}
    omitted = {path for path, condition in layout.omitted.items() if evaluate_dim(condition, dims)}
    values = dict(layout.fixed)
    for name, key in layout.config.items():
        values[key.paths[0]] = bool(dims[name]) if key.kind == "switch" else dims[name]
    for path, value in values.items():
        *outer, last = path.split(".")
        if any(".".join(path.split(".")[: n + 1]) in omitted for n in range(len(outer) + 1)):
            continue
        table = config
        for name in outer:
            table = table.setdefault(name, {})
        table[last] = value
    return config
