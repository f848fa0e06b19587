"""A checked model, a configuration and sizes -> a graph of op instances over tensors.

Loops over layers are unrolled, `w[l]` and `x as [...]` become views (a tensor, an element offset, a shape),
every dimension is a number, and every name of the text stands for one view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import (
    Alias,
    Call,
    DType,
    Expr,
    ForLayers,
    Model,
    ModelStatement,
    Module,
    Name,
    Op,
    OpCall,
    ParamDecl,
    TensorRef,
)
from tcomp.dsl.check_numbers import BATCH_NUMBER
from tcomp.dsl.decode import decoding
from tcomp.dsl.dims import Number, bind, evaluate_dim, operand_shape, shape_text
from tcomp.dsl.errors import TcError, quoting
from tcomp.dsl.expressions import place
from tcomp.dsl.recipes import RECIPES, Recipe
from tcomp.dsl.storage import binding, bound
from tcomp.dsl.variants import QUANTISED, mentioned, under
from tcomp.errors import UserError
from tcomp.model.dimensions import model_dims, one_of
from tcomp.model.graph import Early, Graph, Node, Parameter, Quantised, Tensor, View
from tcomp.model.identities import without_identities
from tcomp.model.operands import Operands
from tcomp.model.reach import check_reach
from tcomp.model.request import StepRequest

_MOST_LAYERS = 10_000


def graph_of(module: Module, request: StepRequest) -> Graph:
    """The graph of the step that is asked for (of its model's decoding form, if that is its program)."""
    training = "train" in request.programs
    graph = build_graph(
        module, request.model, request.config, request.sizes, request.dims, request.precision or None,
        "decode" in request.programs, training,
    )  # fmt: skip
    return graph if training else without_identities(graph, module)


def build_graph(
    module: Module,
    model_name: str,
    config: str,
    sizes: Mapping[str, int],
    overrides: Mapping[str, Number] | None = None,
    precision: str | None = None,
    decode: bool = False,
    training: bool = True,
) -> Graph:
    """The graph of `model_name` with the values of `config`, some of them overridden, at the given sizes.

    `precision` names a recipe (None: that of the model's text); with `decode` it is the model's decoding form. Numbers
    of the text that differ in evaluation are those of evaluation unless it is for `training`.
    UserError for a model, config, size, override or recipe that does not exist; TcError for what the model's own text
    gets wrong at these sizes (a requirement, a shape).
    """
    with quoting(module.sources):
        model = module.models.get(model_name)
        if model is None:
            raise UserError(f"there is no model '{model_name}'", one_of("models", module.models))
        if decode:
            if model.decode is None:
                raise UserError(f"model '{model_name}' has no `decode` block", "docs/models.md says how to write one")
            model = decoding(model, module)
        dims = model_dims(model, config, sizes, overrides or {})
        recipe = recipe_of(model, precision)
        assert module.precision in (None, recipe.name), f"the module was read for precision {module.precision} only"
        if recipe.annotated and recipe.name not in mentioned(model):
            raise UserError(
                f"model '{model.name}' says nothing about precision {recipe.name}",
                f"annotate the calls that it changes: y = linear(x, w, b) [{recipe.name}(OP)]",
            )
        graph = Unrolling(module, under(model, recipe.name, module), config, dims, recipe, training).build()
        check_reach(graph, module)
        return graph


def recipe_of(model: Model, precision: str | None = None) -> Recipe:
    """The recipe named `precision`, else that of the model's text."""
    name = precision or model.precision
    if name not in RECIPES:
        raise UserError(f"there is no precision '{name}'", one_of("precisions", RECIPES))
    return RECIPES[name]


class Unrolling(Operands):
    """The state of one walk over the statements of a model, or an update (matrices.py)."""

    made = "activation"
    """the kind of what calls give"""

    def __init__(
        self, module: Module, model: Model, config: str, dims: dict[str, Number], recipe: Recipe, training: bool = True
    ) -> None:
        super().__init__(model, dims, training)
        self.module, self.config, self.recipe = module, config, recipe
        self.ops: dict[tuple[str, DType], Op] = {}
        self.nodes: list[Node] = []
        self.names: dict[str, int] = {}
        self.written: list[tuple[OpCall, int, View]] = []
        self.bound: dict[tuple[object, ...], tuple[dict[str, int], dict[str, tuple[int, ...]]]] = {}

    def build(self) -> Graph:
        tied = {t.name: t.to for t in self.model.ties if t.where is None or evaluate_dim(t.where, self.dims)}
        parameters = tuple(self.parameter(p) for p in self.model.params if p.name not in tied)
        for name, to in tied.items():
            self.environment[name] = self.environment[to]
        inputs: dict[str, Tensor] = {}
        bounds: dict[str, int] = {}
        for i in self.model.inputs:
            inputs[i.name] = self.declare(i.name, i.dtype, self.shape(i.shape, f"'{i.name}'"), "input")
            bounds[i.name] = 0 if i.below is None else self.integer(i.below, {})
            if i.below is not None and bounds[i.name] < 1:
                hint = "bound it by how many there are, such as the rows of the table that it picks"
                raise TcError(f"no value of '{i.name}' is from 0 on and below {bounds[i.name]}", i.span, hint)
        states = {}
        for x in self.model.states:
            states[self.declare(x.name, x.dtype, self.shape(x.shape, f"'{x.name}'"), "state")] = x.op
        caches = tuple(
            self.declare(c.name, c.dtype, self.shape(c.shape, f"'{c.name}'"), "cache") for c in self.model.caches
        )
        number = Tensor(BATCH_NUMBER, DType.I32, (), "scalar", "model")
        self.environment[BATCH_NUMBER] = number.whole()
        self.statements(self.model.forward, {}, "")
        if any(v.tensor is number for n in self.nodes for v in n.operands.values()):
            self.scalars[number] = 0
        loss = self.result(self.model.loss, "loss")
        if loss.elements != 1:
            span = place(self.model.places, "loss", self.model.span)
            raise TcError(f"the loss '{self.model.loss}' has shape {shape_text(loss.shape)}", span,
                             "a loss is a scalar; reduce it, for example with 'mean'")  # fmt: skip
        if loss.tensor.dtype not in (DType.F32, DType.F64):
            raise TcError(f"the loss '{self.model.loss}' is {loss.tensor.dtype}", self.model.span,
                             "let the op that gives it say `-> y: f32[]`")  # fmt: skip
        logits = None if self.model.logits is None else self.result(self.model.logits, "logits")
        return Graph(
            self.model, self.config, self.dims, tuple(self.nodes), parameters, inputs, bounds, loss, logits,
            self.recipe, self.scalars, self.evaluation, states, caches,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------ declarations

    def parameter(self, p: ParamDecl) -> Parameter:
        tensor = self.declare(p.name, p.dtype, self.shape(p.shape, f"'{p.name}'"), "parameter")
        value = float(evaluate_dim(p.init.args[0], {**self.dims})) if p.init.args else 0.0
        return Parameter(p, tensor, value)

    def declare(self, name: str, dtype: DType, shape: tuple[int, ...], kind: str) -> Tensor:
        tensor = Tensor(self.unique(name), self.recipe.stored(dtype), shape, kind, name)
        self.environment[name] = tensor.whole()
        return tensor

    def unique(self, name: str) -> str:
        """`l0.x`, then `l0.x.2`, ..."""
        n = self.names[name] = self.names.get(name, 0) + 1
        return name if n == 1 else f"{name}.{n}"

    def result(self, name: str, what: str) -> View:
        if name not in self.environment or self.environment[name].tensor.kind != self.made:
            raise TcError(
                f"the model's {what} '{name}' is never computed",
                place(self.model.places, what, self.model.span),
                "compute it in `forward`, or name another result",
            )
        return self.environment[name]

    # -------------------------------------------------------------------------------------- statements

    def statements(self, body: tuple[ModelStatement, ...], index: dict[str, int], prefix: str) -> None:
        for s in body:
            if isinstance(s, ForLayers):
                extent = self.integer(s.extent, index)
                if extent > _MOST_LAYERS:
                    raise TcError(
                        f"{extent} layers are more than the {_MOST_LAYERS} that can be planned",
                        s.span,
                        "give the model fewer",
                    )
                for i in range(extent):
                    self.statements(s.body, {**index, s.index: i}, f"{prefix}{s.index}{i}.")
            elif isinstance(s, Alias):
                self.environment[s.name] = self.view(s.value, index)
            else:
                self.call(s, index, prefix)

    def call(self, c: OpCall, index: dict[str, int], prefix: str) -> None:
        op = self.module.ops.get(c.op)
        if op is None:
            raise TcError(f"there is no op '{c.op}'", c.span, "declare it, or import the file that does")
        keywords = dict(c.keywords)
        given: dict[str, TensorRef | Expr] = dict(zip([p.name for p in op.params], c.args, strict=False))
        for p in op.params[len(c.args) :]:
            if p.name not in keywords:
                raise TcError(f"'{op.name}' gets no operand '{p.name}'", c.span, "pass it by position or by name")
            given[p.name] = keywords.pop(p.name)
        real = self.real(op, given, c)
        op = self.at(op, real)
        operands: dict[str, View] = {}
        for p in op.params:
            operands[p.name] = self.operand(given[p.name], p.dtype, p.shape == (), index, c)
        if any(p.inout and not self.may_change(operands[p.name].tensor) for p in op.params):
            raise TcError(
                f"op '{op.name}' changes its operands, so a forward pass cannot call it",
                c.span,
                "write an op with a result in place of the inout operand",
            )
        for p in op.params:
            if p.inout:
                self.extend_cache(operands[p.name], p.name, c)
        if len(c.args) > len(op.params) or len(c.results) != len(op.outputs):
            raise TcError(
                f"'{op.name}' takes {len(op.params)} operands and gives {len(op.outputs)} results, "
                f"here {len(c.args)} and {len(c.results)}",
                c.span,
                "pass each operand and name each result",
            )
        static = {n: self.integer(e, index) for n, e in keywords.items()}
        dims, shapes = self.bind(op, operands, static, c, prefix)
        operands |= self.results(op, shapes, c, index, prefix)
        parameters = [v.tensor.name for v in operands.values() if v.tensor.kind == "parameter"]
        label = " ".join([f"{prefix}{op.name}", *parameters])
        self.nodes.append(self.annotated(Node(op, dims, operands, label, c.span, real=real), c.annotations, index))

    def results(
        self, op: Op, shapes: Mapping[str, tuple[int, ...]], c: OpCall, index: dict[str, int], prefix: str
    ) -> dict[str, View]:
        """The tensors that a call gives, under the names of the op; those of the text now stand for them."""
        found = {}
        for o, r in zip(op.outputs, c.results, strict=True):
            dropped = r.name == "_"
            name = prefix + (f"{op.name}.{o.name}" if dropped else r.name)
            tensor = Tensor(self.unique(name), o.dtype, shapes[o.name], self.made, f"{prefix}{op.name}")
            found[o.name] = tensor.whole()
            if not dropped:
                self.environment[r.name] = self.reshaped(tensor.whole(), r, index)
        return found

    def annotated(self, node: Node, annotations: tuple[Call, ...], index: dict[str, int]) -> Node:
        """The node with what is asked for behind its call."""
        marked = any(a.function == "recompute" for a in annotations)
        asked = [max(0, self.integer(a.args[0], index)) for a in annotations if a.function == "chunks"]
        together = next((a.args[0] for a in annotations if a.function == "at_once"), None)
        first, gradients = (
            tuple(self.quantised(a, node.real) for a in annotations if a.function == name) for name in QUANTISED
        )
        return replace(
            node,
            recompute=frozenset(o.name for o in node.op.outputs) if marked else frozenset(),
            chunks=max(asked, default=1),
            at_once=together.id if isinstance(together, Name) else "",
            early=next((_early(a) for a in annotations if a.function == "early"), None),
            quantised=first,
            quantised_gradient=gradients[0] if gradients else None,
        )

    def may_change(self, tensor: Tensor) -> bool:
        """May a call write the tensor?"""
        return tensor.kind == "cache"

    def extend_cache(self, part: View, operand: str, c: OpCall) -> None:
        """Note that a call writes a part of a cache. TcError where another call writes there as well: what one wrote
        at its positions the other would read as its own."""
        turn = len(self.nodes)
        for call, at, other in self.written:
            if part.meets(other):
                if at == turn:
                    who, hint = "another operand of the call", "give each operand a part of its own"
                else:
                    who = "an earlier turn" if call is c else f"the call of '{call.op}' in line {call.span.line}"
                    hint = (
                        "each call needs a part of its own: give the cache an axis for both, and the ops two names, so "
                        "that `decode` can tell them apart"
                    )
                raise TcError(
                    f"'{operand}' of '{c.op}' is here a part of cache '{part.tensor.name}' that {who} writes too",
                    c.span,
                    hint,
                )
        self.written.append((c, turn, part))

    def quantised(self, a: Call, real: DType) -> Quantised:
        maker, reader, *targets = [e.id for e in a.args if isinstance(e, Name)]
        first, second = (self.at(self.module.ops[n], real) for n in (maker, reader))
        return Quantised(first, second, tuple(targets), a.span)

    def real(self, op: Op, given: Mapping[str, TensorRef | Expr], c: OpCall) -> DType:
        """What this call binds `real` to: the type of the tensors it passes, else the model's."""
        names = {
            n: a.name if isinstance(a, TensorRef) else a.id for n, a in given.items() if isinstance(a, TensorRef | Name)
        }
        tensors = {n: self.environment[t].tensor.dtype for n, t in names.items() if t in self.environment}
        try:
            return binding(op, tensors, self.recipe.storage)
        except TcError as e:
            raise TcError(e.message, c.span, e.hint) from None

    def at(self, op: Op, real: DType) -> Op:
        """The op with `real` bound: one object per op and type."""
        key = op.name, real
        if key not in self.ops:
            self.ops[key] = bound(op, real)
        return self.ops[key]

    def bind(
        self, op: Op, operands: dict[str, View], static: dict[str, int], c: OpCall, prefix: str
    ) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
        """The op's dimensions and its results' shapes; the same for every layer, so remembered."""
        shapes = {n: v.shape for n, v in operands.items()}
        key = (id(op), *shapes.values(), *static.items())
        if key not in self.bound:
            try:
                dims = bind(op, shapes, static)
                self.bound[key] = dims, {o.name: operand_shape(o, dims) for o in op.outputs}
            except TcError as e:
                e.notes = (*e.notes, f"in the call '{prefix}{op.name}' at {c.span}")
                raise
        return self.bound[key]


def _early(a: Call) -> Early:
    equation, *targets = [e.id for e in a.args if isinstance(e, Name)]
    return Early(equation, tuple(targets), a.span)
