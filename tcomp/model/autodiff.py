"""Reverse-mode differentiation of a graph: forward nodes -> backward nodes and the parameters' gradients.

Each node's backward op comes from `tcomp.grad`; here its operands are bound. The first contribution to a
gradient writes the buffer, later ones add into it through the accumulating variant of the op. A result that
is a plain copy of the incoming gradient (the residual branch, `dR[m, n] = dY[m, n]`) launches nothing: the
buffer is handed over, since nothing reads the incoming gradient after its own node's backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tcomp.dsl.ast import Access, DType, Equation, Module, Name, Op
from tcomp.dsl.dims import bind
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import dimensions
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating, held, largest, restricted
from tcomp.model.again import again
from tcomp.model.chunks import backward_order
from tcomp.model.graph import Graph, Node, Tensor, View
from tcomp.model.zeros import gaps, zeros


@dataclass
class Variants:
    """Backward ops and their restricted and accumulating forms, each derived once per build."""

    module: Module
    backward: dict[tuple[str, frozenset[str], DType], Op | None] = field(default_factory=dict)
    forms: dict[tuple[object, ...], Op] = field(default_factory=dict)
    bound: dict[tuple[object, ...], dict[str, int]] = field(default_factory=dict)
    recomputing: dict[tuple[int, frozenset[str]], tuple[Op, Op | None]] = field(default_factory=dict)

    def again(self, op: Op, results: frozenset[str]) -> Op | None:
        """The form of a forward `op` that computes `results` again (`tcomp.model.again`)."""
        key = id(op), results
        if key not in self.recomputing:
            self.recomputing[key] = op, again(op, results, self.module)  # keeps `op`, so its id stays its own
        return self.recomputing[key][1]

    def backward_of(self, op: Op, given: frozenset[str], real: DType) -> Op | None:
        """The backward of `op` when only its outputs in `given` have a gradient, bound as the op is."""
        key = op.name, given, real
        if key not in self.backward:
            found = backward_of(op.name, self.module, given)
            self.backward[key] = None if found is None else bound(found, real)
        return self.backward[key]

    def form(self, op: Op, dtypes: Mapping[str, DType], adding: frozenset[str], news: frozenset[str]) -> Op:
        """`op` giving only the outputs in `dtypes`, held in those types, those in `adding` added into their buffers;
        with news of a state the larger value stays."""
        key = (id(op), adding, news, *dtypes.items())
        if key not in self.forms:
            outputs = frozenset(dtypes)
            if outputs != {o.name for o in op.outputs}:
                op = restricted(op, outputs)
            op = accumulating(op, adding - news) if adding - news else op
            op = largest(op, adding & news) if adding & news else op
            self.forms[key] = held(op, dtypes)
        return self.forms[key]


@dataclass
class _Gradient:
    """The gradient buffer of a tensor and the parts of it (in elements) that have been written."""

    tensor: Tensor
    fixed: bool
    """may not be handed over to another tensor (parameters, the seed)"""
    written: list[tuple[int, int]] = field(default_factory=list)

    def state(self, v: View) -> str:
        """Whether the region of the view is "new", "written", or of both kinds ("mixed")."""
        missing = sum(stop - start for start, stop in gaps(v, self.written))
        return "written" if not missing else "new" if missing == v.elements else "mixed"


def differentiate(
    graph: Graph, variants: Variants, gradients: Mapping[Tensor, Tensor], seed: Tensor, accumulate: bool = False
) -> tuple[Node, ...]:
    """The backward nodes of a graph in order of execution.

    `gradients` gives the gradient tensor of each parameter; with `accumulate` everything is added into them
    (a later micro-batch), else first contributions write. `seed` holds the gradient of the loss. TcError for
    an op that has no backward.
    """
    return _Differentiation(graph, variants, gradients, seed, accumulate).run()


class _Differentiation:
    def __init__(
        self, graph: Graph, variants: Variants, gradients: Mapping[Tensor, Tensor], seed: Tensor, accumulate: bool
    ) -> None:
        self.graph, self.variants, self.seed = graph, variants, seed
        self.gradients: dict[Tensor, _Gradient] = {}
        for parameter, tensor in gradients.items():
            whole = [(0, tensor.elements)] if accumulate else []
            self.gradients[parameter] = _Gradient(tensor, True, whole)
        self.active = _depending(graph.nodes, gradients)
        self.nodes: list[Node] = []
        self.names: dict[str, int] = {}
        self.producers = {v.tensor: n for n in graph.nodes for v in n.results.values()}
        self.recomputed: dict[Tensor, Tensor] = {}

    def run(self) -> tuple[Node, ...]:
        loss = self.graph.loss
        assert loss is not None
        self.gradients[loss.tensor] = _Gradient(self.seed, True, [(0, 1)])
        for node in backward_order(self.graph.nodes):
            self.node(node)
        return tuple(self.nodes)

    def node(self, node: Node) -> None:
        """Append the backward of one forward node."""
        given = {o.name for o in node.op.outputs if self.has_gradient(node.operands[o.name])}
        wanted = [p.name for p in node.op.params if p.dtype.is_float and node.operands[p.name].tensor in self.active]
        if not given or not wanted:
            return
        op = self.variants.backward_of(node.op, frozenset(given), node.real)
        if op is None:
            raise self.error(
                node,
                f"op '{node.op.name}' has no backward and none can be derived",
                f"write one: backward {node.op.name}(...)",
            )
        results = {o.name for o in op.outputs}
        outputs = [f"d{p}" for p in wanted if f"d{p}" in results]
        missing = [f"d{p}" for p in wanted if f"d{p}" not in results]
        states = {f"d{p.name}" for p in node.op.params if p.state}
        if missing and (op.name in self.variants.module.ops or states & set(missing)):
            raise self.error(
                node,
                f"'backward {node.op.name}' does not give {', '.join(missing)}",
                "let it give them, or leave it out, so that one is derived",
            )
        for name in sorted(given):
            self.complete(node.operands[name], node)
        unwanted = frozenset(results.difference(outputs))
        outputs = self.hand_over(node, op, outputs)
        for group in self.sequential(node, outputs):
            self.launch(node, op, group, unwanted)

    def has_gradient(self, output: View) -> bool:
        """Whether anything contributed to the gradient of a node's result."""
        g = self.gradients.get(output.tensor)
        return g is not None and g.state(output) != "new"

    def complete(self, view: View, node: Node) -> None:
        """Append what makes zero the parts of a view's gradient that nothing has contributed to, before the backward
        of `node`."""
        g = self.gradients[view.tensor]
        for start, stop in list(gaps(view, g.written)):
            self.nodes.append(zeros(g.tensor, start, stop, node))
            g.written.append((start, stop))

    def gradient(self, tensor: Tensor) -> _Gradient:
        if tensor not in self.gradients:
            buffer = Tensor(self.unique(f"grad.{tensor.name}"), tensor.dtype, tensor.shape, "activation", tensor.owner)
            self.gradients[tensor] = _Gradient(buffer, False)
        return self.gradients[tensor]

    def unique(self, name: str) -> str:
        n = self.names[name] = self.names.get(name, 0) + 1
        return name if n == 1 else f"{name}.{n}"

    # -------------------------------------------------------------------------------------- handing over

    def hand_over(self, node: Node, op: Op, outputs: list[str]) -> list[str]:
        """Give the buffer of an incoming gradient to the first input whose gradient is a copy of it; returns
        the outputs that are still to be computed.

        Nothing reads the incoming gradient after this node's own backward, and whatever is added into the
        buffer under its new name is added by an earlier node's backward, which runs later.
        """
        taken: set[str] = set()
        handed: list[tuple[Tensor, _Gradient]] = []
        for name in outputs:
            source = copied_gradient(op, name)
            if source is None or source in taken:
                continue
            x, y = node.operands[name[1:]], node.operands[source[1:]]
            incoming = self.gradients.get(y.tensor)
            if incoming is None or incoming.fixed or not y.covers or not x.covers:
                continue
            if x.tensor in self.gradients or x.tensor.dtype is not incoming.tensor.dtype:
                continue
            if sum(node.operands[o[1:]].tensor is x.tensor for o in outputs) > 1:
                continue  # another result of this same node is added to it
            taken.add(source)
            handed.append((x.tensor, incoming))
            outputs = [o for o in outputs if o != name]
        for tensor, incoming in handed:
            self.gradients[tensor] = _Gradient(incoming.tensor, False, [(0, tensor.elements)])
        return outputs

    # ----------------------------------------------------------------------------------------- launching

    def sequential(self, node: Node, outputs: list[str]) -> Iterable[list[str]]:
        """Split a node's results so that no two of one launch go to the same part of a gradient."""
        groups: list[tuple[list[str], list[View]]] = []
        for name in outputs:
            view = node.operands[name[1:]]
            group = next((g for g in groups if not any(view.meets(v) for v in g[1])), None)
            if group is None:
                groups.append(group := ([], []))
            group[0].append(name)
            group[1].append(view)
        return [g[0] for g in groups]

    def launch(self, node: Node, op: Op, outputs: list[str], unwanted: frozenset[str]) -> None:
        """Append a backward node that computes `outputs`."""
        views, adding = self.targets(node, outputs)
        dtypes = {n: views[n].tensor.dtype for n in outputs}
        news = frozenset(n for n in outputs if node.operands[n[1:]].tensor in self.graph.states)
        form = self.variants.form(op, dtypes, adding, news)
        given = [p.name for p in form.operands if p.name not in views]
        operands = {p.name: views[p.name] if p.name in views else self.given(node, form, p.name) for p in form.operands}
        label = node.label.replace(node.op.name, form.name, 1)
        incoming = frozenset(n for n in given if n not in node.operands)
        backward = Node(
            form, self.bind(op, form, node), operands, label, node.span, incoming=incoming, unwanted=unwanted
        )
        self.nodes.append(replace(backward, early=node.early, quantised_gradient=node.quantised_gradient))

    def targets(self, node: Node, outputs: list[str]) -> tuple[dict[str, View], frozenset[str]]:
        """The gradients that a backward node computes, and which of them it adds to."""
        adding = set()
        views: dict[str, View] = {}
        for name in outputs:
            x = node.operands[name[1:]]
            g = self.gradient(x.tensor)
            state = g.state(x)
            if state == "mixed":
                self.complete(x, node)
            if state != "new":
                adding.add(name)
            else:
                g.written.append((x.offset, x.offset + x.elements))
            views[name] = x.of(g.tensor)
        return views, frozenset(adding)

    def given(self, node: Node, form: Op, name: str) -> View:
        """What a backward form of a node's op reads as `name`: an operand or a result of the op, or a gradient of one
        (`dY` of `Y`)."""
        if name in node.operands:
            return self.value(node.operands[name])
        if name[:1] != "d" or name[1:] not in node.operands:
            raise self.error(
                node,
                f"'{form.name}' reads '{name}', which '{node.op.name}' does not have",
                "read operands and results of the op, and gradients of its results",
            )
        y = node.operands[name[1:]]
        if not self.has_gradient(y):
            raise self.error(
                node,
                f"'backward {node.op.name}' reads '{name}', but the loss does not depend on '{name[1:]}'",
                "use it, or leave the written backward out, so that one is derived for what is used",
            )
        return y.of(self.gradients[y.tensor].tensor)

    def bind(self, op: Op, form: Op, node: Node) -> dict[str, int]:
        """The dimensions of a form of the backward op `op`, from the shapes of all of the op's own operands: a
        form may have lost the operand whose shape gave one."""
        key = (id(form), *(v.shape for v in node.operands.values()), *node.dims.items())
        if key not in self.variants.bound:
            shapes = {}
            for o in op.operands:
                source = o.name if o.name in node.operands else o.name[1:]
                if source in node.operands:
                    shapes[o.name] = node.operands[source].shape
            dims = bind(op, shapes, {d: node.dims[d] for d in op.dims if d in node.dims})
            self.variants.bound[key] = {d: dims[d] for d in dimensions(form) if d in dims}
        return self.variants.bound[key]

    def value(self, v: View) -> View:
        """A forward value as the backward pass reads it: kept, or computed again where the node says so."""
        node = self.producers.get(v.tensor)
        if node is None or not any(node.operands[name].tensor is v.tensor for name in node.recompute):
            return v
        if v.tensor not in self.recomputed:
            form = self.variants.again(node.op, node.recompute)
            if form is None:
                names = ", ".join(sorted(node.recompute))
                raise self.error(
                    node, f"{names} of '{node.op.name}' cannot be computed again alone", "leave out its `recompute`"
                )
            operands = {p.name: self.value(node.operands[p.name]) for p in form.params}
            for o in form.outputs:
                old = node.operands[o.name].tensor
                new = Tensor(self.unique(f"again.{old.name}"), old.dtype, old.shape, "activation", old.owner)
                self.recomputed[old] = new
                operands[o.name] = node.operands[o.name].of(new)
            dims = {d: node.dims[d] for d in dimensions(form)}
            label = f"{node.label.replace(node.op.name, form.name, 1)} (again)"
            self.nodes.append(Node(form, dims, operands, label, node.span, real=node.real))
        return v.of(self.recomputed[v.tensor])

    def error(self, node: Node, message: str, hint: str) -> TcError:
        notes = (f"in the backward of {node.label}",)
        return TcError(message, node.span, hint, notes)


def copied_gradient(op: Op, output: str) -> str | None:
    """The parameter of which a result of `op` is a plain copy: "dY" for `dR[m, n] = dY[m, n]`, else None."""
    defining = [e for e in op.equations if any(t.name == output for t in e.targets)]
    if len(defining) != 1 or len(defining[0].targets) != 1:
        return None
    e: Equation = defining[0]
    if e.accumulate or not isinstance(e.value, Access) or e.value.subscripts != e.target.subscripts:
        return None
    ids = [s.id for s in e.target.subscripts if isinstance(s, Name)]
    if len(ids) != len(e.target.subscripts) or len(set(ids)) != len(ids):
        return None
    source = next((p for p in op.params if p.name == e.value.tensor), None)
    result = op.operand(output)
    if source is None or source.inout or result is None or not source.name.startswith("d"):
        return None
    same = source.shape == result.shape and source.dtype is result.dtype and result.dtype is not DType.I32
    return source.name if same else None


def _depending(nodes: Iterable[Node], parameters: Iterable[Tensor]) -> set[Tensor]:
    """The tensors whose value depends on a parameter through floating-point operands."""
    active = set(parameters)
    for n in nodes:
        if any(p.dtype.is_float and n.operands[p.name].tensor in active for p in n.op.params):
            active.update(n.operands[o.name].tensor for o in n.op.outputs if o.dtype.is_float)
    return active
