"""Updates tensor by tensor: the calls of an `update`, or of an op that is not elementwise or has a `p` of several axes,
for each of a group's matrices, or of its tensors as vectors.

    group matrices by muon                 -->   qkv_w[0]: X = muon_momentum(g, m, scale, momentum)
    param qkv_w: real[L, 3 * C, C]                         A = matmul(X, X), ...
    linear(h, qkv_w[l], ...) in `forward`        qkv_w[1]: ...

What a matrix is the forward pass says: a parameter of which each call reads a slice, `w[l]`, is as many matrices as it
has slices, another one is one. So vectors of all layers side by side, `ln1_w[l]`, are not taken for a matrix. An op
whose `p` is a vector takes any tensor, a matrix with its rows one behind the other. Operands are views of the flat
vectors; what calls give each other are tensors of the matrix's own, which live from call to call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from tcomp.dsl.ast import DType, Module, Op, OpCall, Operand, Update
from tcomp.dsl.dims import bind, operand_shape, shape_text
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import count
from tcomp.dsl.infer import dimensions
from tcomp.dsl.updates import as_model, of_matrices
from tcomp.grad.accumulate import restricted
from tcomp.model.flat import Region
from tcomp.model.graph import Graph, Node, Parameter, Tensor, View
from tcomp.model.operands import Constants
from tcomp.model.unroll import Unrolling

Shape = tuple[int, ...]


class Matrices:
    """A parameter as the matrices that it is made of, as far as these have the axes that an op takes."""

    def __init__(self, parameter: Parameter, graph: Graph) -> None:
        self.parameter = parameter
        shape = parameter.tensor.shape
        views = {v for n in graph.nodes for v in n.operands.values() if v.tensor is parameter.tensor}
        self.depths = [d for d in range(len(shape) + 1) if all(_is_slice(v, shape, d) for v in views)] or [0]
        """of how many leading axes every call may be reading one slice"""

    def depth(self, op: Op) -> int:
        """How many leading axes count the matrices. TcError where these have other axes than `p` of the op."""
        tensor, wanted = self.parameter.tensor, op.operand("p")
        assert wanted is not None
        if len(wanted.shape) == 1:
            return self.depths[-1]
        for d in self.depths:
            if len(tensor.shape) - d == len(wanted.shape):
                return d
        read = tensor.shape[self.depths[-1] :]
        parts = f", of which calls read {shape_text(read)}" if self.depths[-1] else ""
        span = self.parameter.decl.span
        more = f"; or let '{op.name}' take `p` of {len(read)} axes" if len(read) > len(wanted.shape) else ""
        raise TcError(
            f"'{op.name}' trains tensors of {count(len(wanted.shape), 'axis', 'axes')}, but '{tensor.name}' is "
            f"{shape_text(tensor.shape)}{parts}",
            span,
            "put it in a group that an op of vectors trains: `in GROUP` here, or "
            f"`group GROUP of {tensor.name}: ...`{more}",
        )

    def count(self, op: Op) -> int:
        return prod(self.parameter.tensor.shape[: self.depth(op)])

    def shape(self, op: Op) -> Shape:
        """Of one matrix."""
        return self.flat(op, self.parameter.tensor.shape[self.depth(op) :])

    def flat(self, op: Op, shape: Shape) -> Shape:
        """A tensor's shape as an op of vectors has it."""
        return (prod(shape),) if not of_matrices(op) else shape

    def name(self, op: Op, number: int) -> str:
        """`qkv_w[3]`; the parameter's name where it is one matrix."""
        extents = self.parameter.tensor.shape[: self.depth(op)]
        places = []
        for n in reversed(extents):
            number, at = divmod(number, n)
            places.append(at)
        return self.parameter.tensor.name + (shape_text(places[::-1]) if places else "")

    def part(self, flat: Tensor, region: Region, op: Op, number: int) -> View:
        """What a flat vector has for one matrix."""
        own = self.parameter.tensor
        whole = region.parts[own].shape
        shape = whole[self.depth(op) :]
        if whole == own.shape:
            shape = self.flat(op, shape)
        return View(flat, region.offsets[own.name] + number * prod(shape), shape)

    def dims(self, op: Op) -> dict[str, int]:
        """The op's dimensions. TcError where it does not take such a matrix."""
        try:
            return bind(replace(op, dims=()), {"p": self.shape(op)}, {})
        except TcError as e:
            e.notes = (*e.notes, f"of parameter '{self.parameter.tensor.name}', {shape_text(self.shape(op))}")
            raise


def _is_slice(v: View, shape: Shape, depth: int) -> bool:
    """Is it one slice along so many leading axes (in whatever shape it is read)?"""
    if len(v.shape) <= len(shape) and v.shape == shape[len(shape) - len(v.shape) :]:
        return len(v.shape) == len(shape) - depth
    return v.elements == prod(shape[depth:])


def state_shape(state: Operand, op: Op, matrices: Matrices) -> Shape:
    """The shape of what an op keeps for all of a parameter's matrices."""
    own, shape = matrices.parameter.tensor.shape, operand_shape(state, matrices.dims(op))
    return own if shape == matrices.shape(op) else own[: matrices.depth(op)] + shape


class MatrixCalls:
    """The calls of an update, for one matrix after the other. `storage` is what `real` is where no operand says it;
    `constants` are the numbers that the text of the model and of other updates passes, to which these calls add their
    own, `scalars`."""

    def __init__(self, update: Update, graph: Graph, module: Module, storage: DType, constants: Constants) -> None:
        self.update = update
        recipe = replace(graph.recipe, storage=storage)
        self.unrolling = _Statements(module, as_model(update), graph.config, {}, recipe)
        self.unrolling.constants = constants
        self.forms: dict[int, tuple[Op, Op]] = {}

    @property
    def scalars(self) -> dict[Tensor, float]:
        return self.unrolling.scalars

    def of(self, op: Op, dims: Mapping[str, int], views: Mapping[str, View], name: str) -> list[Node]:
        """The nodes for the matrix `name`, whose operands are `views`. `op` has the operands and results that count:
        without its result `w`, what makes only that is left out."""
        unrolling = self.unrolling
        unrolling.dims = {**dims}
        unrolling.nodes = []
        unrolling.environment = {n: v for n, v in views.items() if n != "w"}
        unrolling.changing = {views[o.name].tensor for o in op.params if o.inout}
        unrolling.statements(self.update.body, {}, f"{name}.{self.update.name}.")
        nodes = [replace(n, label=f"{self.update.name} {name} {n.op.name}") for n in unrolling.nodes]
        made = unrolling.environment.get("w")
        if made is None:
            return nodes
        if "w" in views:
            return [_stored(n, made.tensor, views["w"]) for n in nodes]
        return [kept for n in nodes if (kept := self.without(n, made.tensor, nodes)) is not None]

    def without(self, node: Node, w: Tensor, nodes: list[Node]) -> Node | None:
        """The node without its result `w`, if nothing reads that; None where it gives nothing else."""
        dropped = {name for name, v in node.results.items() if v.tensor is w}
        read = any(v.tensor is w for n in nodes for v in n.reads.values())
        if not dropped or read:
            return node
        rest = frozenset(node.writes) - dropped
        if not rest:
            return None
        if id(node.op) not in self.forms:
            self.forms[id(node.op)] = node.op, restricted(node.op, rest)  # keeps the op, so its id stays its own
        op = self.forms[id(node.op)][1]
        operands = {o.name: node.operands[o.name] for o in op.operands}
        return replace(node, op=op, operands=operands, dims={d: node.dims[d] for d in dimensions(op)})


def _stored(node: Node, w: Tensor, place: View) -> Node:
    """The node with the tensor `w` where the model reads it."""
    if all(v.tensor is not w for v in node.operands.values()):
        return node

    def at(v: View) -> View:
        return View(place.tensor, place.offset + v.offset, v.shape) if v.tensor is w else v

    return replace(node, operands={n: at(v) for n, v in node.operands.items()})


class _Statements(Unrolling):
    """An update's statements; `changing` are the tensors that its calls may write."""

    made = "workspace"
    changing: set[Tensor]

    def call(self, c: OpCall, index: dict[str, int], prefix: str) -> None:
        if c.where is None or self.evaluate(c.where, index):
            super().call(c, index, prefix)

    def may_change(self, tensor: Tensor) -> bool:
        return tensor in self.changing

    def extend_cache(self, part: View, operand: str, c: OpCall) -> None:
        """Calls run one behind the other, so one may write what another has written."""
