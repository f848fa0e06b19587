"""A model at fixed sizes as a graph of op instances over tensors: what `unroll.py` makes of its text.

Every dimension is a number, every operand a view (a tensor, an element offset, a shape), layers are nodes of their own.
Nodes are in program order, which is also the order of execution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from tcomp.dsl.ast import DType, Model, Op, ParamDecl, Span
from tcomp.dsl.dims import Number
from tcomp.dsl.recipes import Recipe


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A region of memory with a unique name. `kind` is one of `tcomp.model.step.KINDS`. Two tensors are equal
    only when they are the same object."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    kind: str
    owner: str = ""

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes

    def whole(self) -> View:
        """The view of all of it."""
        return View(self, 0, self.shape)


@dataclass(frozen=True, slots=True)
class View:
    """`shape` contiguous elements of a tensor from element `offset` on."""

    tensor: Tensor
    offset: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def covers(self) -> bool:
        """Whether the view is all of its tensor."""
        return self.offset == 0 and self.elements == self.tensor.elements

    def meets(self, other: View) -> bool:
        """Whether the two have an element in common."""
        apart = self.offset + self.elements <= other.offset or other.offset + other.elements <= self.offset
        return self.tensor is other.tensor and not apart

    def of(self, tensor: Tensor) -> View:
        """The same region of another tensor of the same size (a gradient)."""
        return View(tensor, self.offset, self.shape)


@dataclass(frozen=True, slots=True)
class Early:
    """`[early(dP, gpu)]`: the equation of a call's backward that is computed where the gradient comes from, on these
    targets (none: on all)."""

    equation: str
    on: tuple[str, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Quantised:
    """`quantised(MAKER, READER, sm_90a)`: the ops that take the places of the one which makes a call's first operand,
    and of the call's own, on these targets (none: on all). `quantised_gradient(..)`: of the op which adds to the
    call's incoming gradient last, and of the call's backward."""

    maker: Op
    reader: Op
    on: tuple[str, ...]
    span: Span


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One op instance. `operands` are its parameters and results by the op's own names; `recompute` names
    the results to be computed again for the backward pass instead of kept; `real` is what the op's `real` is
    bound to; `chunks` asks for its result in so many parts (chunks.py; 0: as many as suit, parts.py), and `part` says
    of which part a node is, from 1 (0: it is whole); `at_once` names the op that computes the call and its backward
    together (at_once.py). A backward node has the `early` of its call (early.py), `incoming`, its operands that are
    gradients, and `unwanted`, results of the call's backward that nobody wants: gradients of what is not trained.
    `quantised` names the ops of a call whose first operand may be made quantised (quantised.py), the first that fit,
    and `quantised_gradient` those of its backward, whose gradient may be (quantised_gradient.py)."""

    op: Op
    dims: dict[str, int]
    operands: dict[str, View]
    label: str
    span: Span
    recompute: frozenset[str] = frozenset()
    real: DType = DType.F32
    chunks: int = 1
    at_once: str = ""
    early: Early | None = None
    incoming: frozenset[str] = frozenset()
    unwanted: frozenset[str] = frozenset()
    part: int = 0
    quantised: tuple[Quantised, ...] = ()
    quantised_gradient: Quantised | None = None

    @property
    def reads(self) -> dict[str, View]:
        """Its parameters, those that it changes among them."""
        return {p.name: self.operands[p.name] for p in self.op.params}

    @property
    def results(self) -> dict[str, View]:
        return {o.name: self.operands[o.name] for o in self.op.outputs}

    @property
    def writes(self) -> dict[str, View]:
        """Its results, and the parameters that it changes."""
        return {o.name: self.operands[o.name] for o in self.op.written}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter's declaration, tensor, and the value of its initialiser's argument (0 when it has none).
    The tensor is what forward and backward read."""

    decl: ParamDecl
    tensor: Tensor
    value: float


@dataclass(frozen=True)
class Graph:
    """A model at fixed sizes. `scalars` are the constants of scalar operands: tensor -> value; `evaluation` has what
    some of them are in evaluation, of a graph that is to be trained."""

    model: Model
    config: str
    dims: dict[str, Number]
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]
    inputs: dict[str, Tensor]
    bounds: dict[str, int]
    """input -> exclusive bound of its values, 0 when unbounded"""
    loss: View | None
    """None in a decoding graph"""
    logits: View | None
    recipe: Recipe
    scalars: dict[Tensor, float] = field(default_factory=dict)
    evaluation: dict[Tensor, float] = field(default_factory=dict)
    states: dict[Tensor, str] = field(default_factory=dict)
    """the model's own states -> the op that gives their next value"""
    caches: tuple[Tensor, ...] = ()

    @property
    def trained(self) -> tuple[Parameter, ...]:
        """The parameters that are not frozen: they have gradients, and what the optimizer keeps for them."""
        return tuple(p for p in self.parameters if not p.decl.frozen)


def tensors_of(views: Mapping[str, View]) -> set[Tensor]:
    """What the views are of."""
    return {v.tensor for v in views.values()}


def makers(wanted: Iterable[Tensor], nodes: Iterable[Node]) -> dict[Tensor, list[Node]]:
    """All that tensors are made from, themselves included, each with those of the nodes that write it."""
    writers: dict[Tensor, list[Node]] = {}
    for n in nodes:
        for v in n.writes.values():
            writers.setdefault(v.tensor, []).append(n)
    found: dict[Tensor, list[Node]] = {}
    waiting = list(wanted)
    while waiting:
        if (t := waiting.pop()) not in found:
            found[t] = writers.get(t, [])
            waiting += [v.tensor for n in found[t] for v in n.reads.values()]
    return found
