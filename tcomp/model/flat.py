"""Trained parameters side by side: group after group, each tensor padded to the arena's alignment.

Parameters, their master copies, gradients and every optimizer state use this same layout, counted in elements, so
that the norm sees all gradients as one vector and the update sees one vector per group. The padding between tensors
is zero from the start and stays zero: its gradient is zero, and an update of zeros by a zero gradient is zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.recipes import kept
from tcomp.model.graph import Graph, Parameter, Tensor
from tcomp.model.placement import ALIGNMENT


@dataclass(frozen=True)
class FlatGroup:
    """A parameter group: where it starts and how long it is, in elements of the flat vectors."""

    name: str
    start: int
    elements: int
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class FlatLayout:
    """`offsets` are elements from the start of a flat vector: of each parameter, by its name. `dtype` is that of the
    parameters as the model reads them."""

    groups: tuple[FlatGroup, ...]
    offsets: dict[str, int]
    elements: int
    dtype: DType


def flat_layout(graph: Graph, module: Module) -> FlatLayout:
    """The layout of a model's trained parameters. TcError when their dtypes differ."""
    optimizer = graph.model.optimizer
    declared = [g.name for g in optimizer.groups] if optimizer is not None else []
    used = _unique(p.decl.group for p in graph.trained)
    dtype = graph.trained[0].tensor.dtype if graph.trained else DType.F32
    unit = ALIGNMENT // dtype.bytes
    groups: list[FlatGroup] = []
    offsets: dict[str, int] = {}
    at = 0
    for name in [g for g in declared if g in used] + [g for g in used if g not in declared]:
        members = tuple(p for p in graph.trained if p.decl.group == name)
        start = at
        for p in members:
            if p.tensor.dtype is not dtype:
                raise TcError(
                    f"parameter '{p.decl.name}' is {p.tensor.dtype}, the others are {dtype}",
                    p.decl.span,
                    module.sources.get(p.decl.span.file, ""),
                    "all parameters that a model trains have one dtype",
                )
            offsets[p.tensor.name] = at
            at += -(-p.tensor.elements // unit) * unit
        groups.append(FlatGroup(name, start, at - start, members))
    return FlatLayout(tuple(groups), offsets, at, dtype)


def like_parameters(graph: Graph, prefix: str, kind: str) -> dict[Tensor, Tensor]:
    """A tensor for each trained parameter, in f32 where that is narrower: its gradient, its master copy, a piece of
    optimizer state."""
    return {
        p.tensor: Tensor(f"{prefix}.{p.tensor.name}", kept(p.tensor.dtype), p.tensor.shape, kind, p.tensor.name)
        for p in graph.trained
    }


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
