"""How a model's parameters are named and laid out elsewhere: the tables of `MODEL.hf.toml`, beside the model's text.

    [config]     the model's numbers by keys of config.json (dotted where nested; the first is what export writes).
                 kind: whole (the default), real, or switch (true and false for 1 and 0). default: an expression.
    [fixed]      what config.json must say where it says anything; export writes it
    [allowed]    all values that a key may have, where that is not only the fixed one; null counts as absent
    [omitted]    keys that export leaves out where the condition holds
    [tensors]    parameter = tensor, or a list of tensors whose rows stand one after the other. `{l}` in a name is the
                 layer, the parameter's first axis. rows: how many (all, if not said); rows of the parameter beyond
                 them are zero. transposed: stored with its two axes exchanged.
    [copies]     tensors that are equal to a parameter's only tensor, if they are there at all
    [ignored]    names of tensors that nothing needs
    prefixes     what all tensors' names may begin with; export writes the first
    [llmc]       for llm.c's files: header word of each number, and the parameters in order

Expressions are dimension arithmetic of the language (`H * D`), over the model's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcomp.dsl.ast import Expr
from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.parse import parse_expression
from tcomp.errors import UserError
from tcomp.model.graph import Graph
from tcomp.runtime.documents import parse_toml, read_small

_TABLES = ("config", "fixed", "allowed", "omitted", "tensors", "copies", "ignored", "prefixes", "llmc")
_KINDS = ("whole", "real", "switch")


@dataclass(frozen=True)
class Key:
    """Where config.json has one of the model's numbers."""

    paths: tuple[str, ...]
    kind: str
    default: Expr | None


@dataclass(frozen=True)
class Part:
    """A tensor that gives `rows` rows of a parameter (all of them when None)."""

    name: str
    rows: Expr | None = None
    transposed: bool = False


@dataclass(frozen=True)
class LlmcLayout:
    header: dict[str, int]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The tables of one file; see the module's own description."""

    path: Path
    config: dict[str, Key]
    fixed: dict[str, Any]
    allowed: dict[str, list[Any]]
    omitted: dict[str, Expr]
    tensors: dict[str, tuple[Part, ...]]
    copies: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    llmc: LlmcLayout | None = None


@dataclass(frozen=True)
class Place:
    """A tensor elsewhere and its part of a parameter: rows `start` to `start + rows` of layer `layer` (None: of the
    whole parameter). `shape` is the tensor's own."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    layer: int | None
    start: int
    rows: int
    transposed: bool


def read_layout(path: Path) -> Layout:
    """UserError for what is not such a file."""
    try:
        tables = parse_toml(read_small(path))
        unknown = sorted(set(tables) - set(_TABLES))
        if unknown:
            raise ValueError(f"unknown table {unknown[0]!r}; known are {', '.join(_TABLES)}")
        llmc = tables.get("llmc")
        return Layout(
            path,
            {n: _key(n, v) for n, v in tables.get("config", {}).items()},
            tables.get("fixed", {}),
            tables.get("allowed", {}),
            {n: _expression(v) for n, v in tables.get("omitted", {}).items()},
            {n: tuple(_part(p) for p in (v if isinstance(v, list) else [v])) for n, v in tables["tensors"].items()},
            tables.get("copies", {}),
            tuple(tables.get("ignored", {}).get("names", ())),
            tuple(tables.get("prefixes", ("",))),
            LlmcLayout(llmc["header"], tuple(llmc["tensors"])) if llmc else None,
        )
    except OSError as e:
        raise UserError(
            f"{path}: no weights layout: {e.strerror or e}", "it belongs beside the model's .tc file (docs/models.md)"
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError, TcError) as e:
        reason = e.message if isinstance(e, TcError) else f"{type(e).__name__} {e}" if isinstance(e, KeyError) else e
        raise UserError(f"{path}: not a weights layout: {reason}", "see docs/models.md") from e


def _expression(text: Any) -> Expr:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} must be an expression in quotes")
    return parse_expression(text)


def _key(name: str, value: Any) -> Key:
    paths = value["key"]
    kind = value.get("kind", "whole")
    if kind not in _KINDS:
        raise ValueError(f"config.{name}: kind {kind!r} is none of {', '.join(_KINDS)}")
    default = _expression(value["default"]) if "default" in value else None
    return Key(tuple([paths] if isinstance(paths, str) else paths), kind, default)


def _part(value: Any) -> Part:
    if isinstance(value, str):
        return Part(value)
    rows = _expression(value["rows"]) if "rows" in value else None
    return Part(value["name"], rows, bool(value.get("transposed", False)))


def places(layout: Layout, graph: Graph) -> list[Place]:
    """Every tensor that the parameters of a model at fixed sizes are made of. UserError where layout and model do not
    fit each other."""
    declared = {p.name for p in graph.model.params}
    unknown = sorted(set(layout.tensors) - declared)
    if unknown:
        raise UserError(
            f"{layout.path}: the model {graph.model.name} has no parameter {unknown[0]!r}",
            "name a parameter of the model's text in [tensors]",
        )
    found: list[Place] = []
    for p in graph.parameters:
        if p.decl.name not in layout.tensors:
            raise UserError(
                f"{layout.path}: no tensor is named for the parameter {p.decl.name!r}",
                "add it to the layout's [tensors]",
            )
        found += _places(layout, p.decl.name, p.tensor.shape, graph.dims)
    return found


def tied_names(layout: Layout, graph: Graph) -> dict[str, str]:
    """Tensors that may be there and then equal another one: their names -> those of the others."""
    found: dict[str, str] = {}
    shapes = {p.decl.name: p.tensor.shape for p in graph.parameters}
    for t in graph.model.ties:
        if t.name in layout.tensors and t.name not in shapes:
            ours = _places(layout, t.name, shapes[t.to], graph.dims)
            theirs = _places(layout, t.to, shapes[t.to], graph.dims)
            found |= {a.name: b.name for a, b in zip(ours, theirs, strict=True)}
    for name, parameter in layout.copies.items():
        found[name] = layout.tensors[parameter][0].name
    return found


def _places(layout: Layout, parameter: str, shape: tuple[int, ...], dims: Mapping[str, Number]) -> list[Place]:
    parts = layout.tensors[parameter]
    layered = "{l}" in parts[0].name
    inner = shape[1:] if layered else shape
    found = []
    for layer in range(shape[0]) if layered else (None,):
        start = 0
        for part in parts:
            rows = inner[0] if part.rows is None else int(evaluate_dim(part.rows, dims))
            own = (rows, *inner[1:])
            name = part.name.replace("{l}", str(layer))
            found.append(
                Place(name, own[::-1] if part.transposed else own, parameter, layer, start, rows, part.transposed)
            )
            start += rows
        if start > inner[0] or (len(parts) > 1 and start != inner[0]):
            raise UserError(
                f"{layout.path}: {parameter!r} has {inner[0]} rows, its tensors have {start}",
                "correct the rows in the layout's [tensors]",
            )
    return found
