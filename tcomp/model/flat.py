"""Trained parameters side by side: group after group, each tensor padded to the arena's alignment.

Parameters, their master copies, gradients and every optimizer state use this same layout, counted in elements, so
that the norm sees all gradients as one vector and the update sees one vector per group. The padding between tensors
is zero from the start and stays zero: its gradient is zero, and an update of zeros by a zero gradient is zero.

Where parameters are of more than one type, those of a type are neighbours, narrow ones first, so that what has a vector
for some of them only (bf16 copies beside f32 masters) is one piece; a group with two types is two groups to the update:

    elements    0 ............................. n ................ end
    groups      matrices bf16 | vectors bf16    | vectors f32
    g, states   f32 ..................................................
    w, p        bf16 copies of p                | (none)              p: masters, f32 | the parameters themselves

Where several processes work on a step, each group is as long as so many equal shares: rank r has the r-th of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.recipes import kept
from tcomp.model.graph import Graph, Parameter, Tensor
from tcomp.model.placement import ALIGNMENT


@dataclass(frozen=True)
class FlatGroup:
    """A parameter group, or those of its parameters that have one type where others have another (`split`): where it
    starts and how long it is, in elements of the flat vectors, and the type that the model reads it in. `first` is
    where it would start without other processes: what random numbers of an update count from does not depend on those.
    """

    name: str
    start: int
    elements: int
    parameters: tuple[Parameter, ...]
    dtype: DType
    first: int
    split: bool = False

    @property
    def label(self) -> str:
        """The name, with the type where the name alone does not tell."""
        return f"{self.name} {self.dtype}".strip() if self.split else self.name


@dataclass(frozen=True)
class FlatLayout:
    """`offsets` are elements from the start of a flat vector: of each parameter, by its name. Tensors are padded to
    `unit`."""

    groups: tuple[FlatGroup, ...]
    offsets: dict[str, int]
    elements: int
    unit: int

    def padded(self, tensor: Tensor) -> int:
        """Elements that a tensor takes."""
        return -(-tensor.elements // self.unit) * self.unit


@dataclass(frozen=True)
class Region:
    """A flat vector as the update knows it: `parts` are the tensors in it by their parameters, `offsets` where these
    begin, by the parameters' names, `starts` where groups do, by their labels, and `elements` its length, all in
    elements."""

    parts: dict[Tensor, Tensor]
    offsets: dict[str, int]
    starts: dict[str, int]
    elements: int


def region(layout: FlatLayout, parts: dict[Tensor, Tensor]) -> Region:
    """The flat vector of the parts, in the layout's order; a group that has one has one for all its parameters. Parts
    in the parameters' shapes lie as these do."""
    offsets: dict[str, int] = {}
    starts: dict[str, int] = {}
    at = 0
    for group in layout.groups:
        members = [p.tensor for p in group.parameters if p.tensor in parts]
        start = at
        for t in members:
            starts.setdefault(group.label, at)
            offsets[t.name] = at
            at += layout.padded(parts[t])
        if members and all(parts[t].shape == t.shape for t in members):
            at = start + group.elements
    return Region(parts, offsets, starts, at)


def flat_layout(graph: Graph, ranks: int = 1) -> FlatLayout:
    """The layout of a model's trained parameters, for so many processes. TcError when what is kept of them is not of
    one type."""
    optimizer = graph.model.optimizer
    declared = [g.name for g in optimizer.groups] if optimizer is not None else []
    used = _unique(p.decl.group for p in graph.trained)
    _check_kept(graph)
    dtypes = sorted(dict.fromkeys(p.tensor.dtype for p in graph.trained), key=lambda d: d.bytes)
    unit = ALIGNMENT // min((d.bytes for d in dtypes), default=DType.F32.bytes)
    groups: list[FlatGroup] = []
    offsets: dict[str, int] = {}
    at = lost = 0
    names = [g for g in declared if g in used] + [g for g in used if g not in declared]
    for dtype, name in ((d, n) for d in dtypes for n in names):
        group = [p for p in graph.trained if p.decl.group == name]
        members = tuple(p for p in group if p.tensor.dtype is dtype)
        if not members:
            continue
        start = at
        for p in members:
            offsets[p.tensor.name] = at
            at += -(-p.tensor.elements // unit) * unit
        end, at = at, start + -(-(at - start) // (unit * ranks)) * unit * ranks
        groups.append(FlatGroup(name, start, at - start, members, dtype, start - lost, len(members) < len(group)))
        lost += at - end
    return FlatLayout(tuple(groups), offsets, at, unit)


def _check_kept(graph: Graph) -> None:
    """One norm and one optimizer see all gradients and states, so these have one type."""
    for p in graph.trained:
        first, ours = graph.trained[0], kept(p.tensor.dtype)
        if ours is not kept(first.tensor.dtype):
            raise TcError(
                f"parameter '{p.decl.name}' is {p.tensor.dtype}, '{first.decl.name}' is {first.tensor.dtype}: "
                f"gradients and optimizer state would be of two types, {ours} and {kept(first.tensor.dtype)}",
                p.decl.span,
                "parameters that a model trains are all f64, or none is; `frozen` ones may be of any type",
            )


def like_parameters(graph: Graph, prefix: str, kind: str) -> dict[Tensor, Tensor]:
    """A tensor for each trained parameter, in f32 where that is narrower: its gradient, a piece of optimizer state."""
    return {
        p.tensor: Tensor(f"{prefix}.{p.tensor.name}", kept(p.tensor.dtype), p.tensor.shape, kind, p.tensor.name)
        for p in graph.trained
    }


def master_copies(graph: Graph) -> dict[Tensor, Tensor]:
    """The f32 master copies that the recipe keeps, of parameters that are narrower: others are their own. TcError where
    these are of two types, since one vector has them all."""
    copies = like_parameters(graph, "master", "master") if graph.recipe.master else {}
    copies = {p: t for p, t in copies.items() if p.dtype is not t.dtype}
    first = next(iter(copies), None)
    for p in (p for p in graph.trained if p.tensor in copies):
        if first is not None and p.tensor.dtype is not first.dtype:
            raise TcError(
                f"parameter '{p.decl.name}' is {p.tensor.dtype}, '{first.name}' is {first.dtype}: of those with f32 "
                "master copies all are of one type",
                p.decl.span,
                "declare both `real`; `frozen` ones may be of any type, and f32 ones have no copies",
            )
    return copies


def own_regions(graph: Graph, masters: Mapping[Tensor, Tensor]) -> dict[str, dict[Tensor, Tensor]]:
    """The flat vectors of parameters by the names that the optimizer's op has for them: `p` is what the optimizer
    updates, `w` what the model reads where that is another copy; `p f32` and the like where `p` is of several types."""
    own = {p.tensor: p.tensor for p in graph.trained}
    if masters:
        return {"w": {p: p for p in masters}, "p": {**own, **masters}}
    dtypes = dict.fromkeys(t.dtype for t in own)
    if len(dtypes) < 2:
        return {"p": own}
    return {f"p {d}": {p: t for p, t in own.items() if t.dtype is d} for d in dtypes}


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
