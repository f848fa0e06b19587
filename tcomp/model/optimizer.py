"""The update program: learning rate, gradient norm, then the optimizer's op once per parameter group.

Operands are bound by name. `p`, `g` and the op's other inout operands (its state: m, v) are flat vectors over
a parameter group (over all parameters for the norm). So is the result `w`, the parameters as the model reads them,
where `p` are f32 master copies of them; without master copies the op is run without `w`. `step` is the step counter;
other scalars are the group's values, then results of the learning-rate and norm ops, then the optimizer's
hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import DType, Expr, Module, Op, Operand, Optimizer
from tcomp.dsl.dims import bind, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.recipes import kept
from tcomp.dsl.storage import bound
from tcomp.grad.accumulate import restricted
from tcomp.model.flat import FlatLayout
from tcomp.model.graph import Graph, Node, Tensor, View


@dataclass(frozen=True)
class Update:
    """The nodes of the update. `flats` are the flat vectors ("p", "g", state names) over all parameters.

    `results` are the scalars that the learning-rate and norm ops give; `hyper` the scalars read, with their
    default values; `scalars` further constants.
    """

    nodes: tuple[Node, ...]
    flats: dict[str, Tensor]
    results: dict[str, Tensor]
    hyper: dict[Tensor, float]
    scalars: dict[Tensor, float]


def build_update(
    graph: Graph, module: Module, layout: FlatLayout, step: Tensor, news: Mapping[Tensor, Tensor]
) -> Update:
    """The update program of a model with an optimizer. `step` is the tensor of the step counter; `news` has what the
    backward pass says of each state of the model."""
    optimizer = graph.model.optimizer
    assert optimizer is not None
    builder = _Builder(graph, module, layout, step, optimizer)
    for state, new in news.items():
        builder.state(state, new)
    return builder.build()


def state_names(op: Op) -> tuple[str, ...]:
    """The optimizer state of an update op: its inout operands other than the parameters."""
    return tuple(o.name for o in op.params if o.inout and o.name != "p")


class _Builder:
    def __init__(self, graph: Graph, module: Module, layout: FlatLayout, step: Tensor, optimizer: Optimizer) -> None:
        self.graph, self.module, self.layout, self.step, self.optimizer = (
            graph,
            module,
            layout,
            step,
            optimizer,
        )
        self.hyper: dict[Tensor, float] = {}
        self.slots: dict[str, Tensor] = {}
        self.results: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.flats: dict[str, Tensor] = {}
        self.scalars: dict[Tensor, float] = {}
        self.first: Tensor | None = None

    def build(self) -> Update:
        o = self.optimizer
        update = self.op(o.op)
        shape = (self.layout.elements,)
        own, wide = self.layout.dtype, kept(self.layout.dtype)
        dtypes = {"p": wide, "w": own} if self.graph.recipe.master else {"p": own}
        dtypes |= dict.fromkeys(("g", *state_names(update)), wide)
        self.flats = {n: Tensor(f"flat.{n}", d, shape, "parameter", o.op) for n, d in dtypes.items()}
        update = self.copying(update)
        if o.schedule is not None:
            self.node(self.op(o.schedule), {}, self.whole, o.schedule)
        if o.norm is not None:
            self.node(self.op(o.norm), {}, self.whole, o.norm)
        given = {g.name: g for g in o.groups}
        for group in self.layout.groups:
            values = dict(given[group.name].values) if group.name in given else {}
            named = {n: (f"hyper.{group.name}.{n}", e) for n, e in values.items()}

            def flat(name: str, start: int = group.start, n: int = group.elements) -> View:
                return View(self.flats[name], start, (n,))

            self.first = Tensor(f"first.{group.name}", DType.I32, (), "scalar", "optimizer")
            self.node(update, named, flat, f"{o.op} {group.name}".strip())
            if self.nodes[-1].operands.get("first") is not None:
                self.scalars[self.first] = group.start & 0x7FFFFFFF
        return Update(tuple(self.nodes), self.flats, self.results, self.hyper, self.scalars)

    def state(self, state: Tensor, new: Tensor) -> None:
        """Give a state of the model its next value."""
        op = self.op(self.graph.states[state])
        flat = (state.elements,)
        operands = {"p": View(state, 0, flat), "g": View(new, 0, flat)}
        dims = bind(op, {n: v.shape for n, v in operands.items()}, {})
        self.nodes.append(Node(op, dims, operands, f"{op.name} {state.name}", self.optimizer.span))

    def op(self, name: str) -> Op:
        if name not in self.module.ops:
            raise self.error(f"there is no op '{name}'", "declare it, or import the file that does")
        return self.module.ops[name]

    def copying(self, update: Op) -> Op:
        """The op with its result `w` where the recipe keeps master copies, else without."""
        copies = any(r.name == "w" for r in update.outputs)
        if "w" in self.flats and not copies:
            raise self.error(
                f"precision {self.graph.recipe.name} keeps f32 master copies of the parameters, but op '{update.name}' "
                "does not give the stored parameters",
                f"add the result `w: real[N]` to op '{update.name}', and the equation `w[i] = p[i]`",
            )
        if "w" in self.flats or not copies:
            return update
        return restricted(
            update, frozenset({o.name for o in update.operands if o.inout or o in update.outputs} - {"w"})
        )

    def whole(self, name: str) -> View:
        return self.flats[name].whole()

    def node(self, op: Op, group: dict[str, tuple[str, Expr]], flat: Callable[[str], View], label: str) -> None:
        op = bound(op, self.graph.recipe.storage)
        operands: dict[str, View] = {}
        for p in op.params:
            if p.shape:
                if p.name not in self.flats:
                    raise self.error(
                        f"'{op.name}' has a vector '{p.name}'; known are {', '.join(self.flats)}", "rename it"
                    )
                operands[p.name] = flat(p.name)
            else:
                operands[p.name] = self.scalar(op, p, group)
        for r in op.outputs:
            if r.shape and r.name == "w" and "w" in self.flats:
                operands[r.name] = flat(r.name)
                continue
            if r.shape:
                raise self.error(
                    f"'{op.name}' gives '{r.name}', which is not a scalar", "let it give scalars, `s: f32[]`"
                )
            self.results[r.name] = Tensor(r.name, r.dtype, (), "output", op.name)
            operands[r.name] = self.results[r.name].whole()
        for o in op.operands:
            given = operands[o.name].tensor.dtype
            if o.dtype is not given:
                raise self.error(
                    f"'{o.name}' of '{op.name}' is {o.dtype}, by precision {self.graph.recipe.name} it is {given}",
                    f"`under {self.graph.recipe.name} by OP` names another op for it; `real` is what parameters are in",
                )
        dims = bind(op, {n: v.shape for n, v in operands.items()}, {})
        self.nodes.append(Node(op, dims, operands, label, self.optimizer.span))

    def scalar(self, op: Op, p: Operand, group: dict[str, tuple[str, Expr]]) -> View:
        hyper = dict(self.optimizer.hyper)
        if p.name == "step":
            tensor = self.step
        elif p.name == "first" and self.first is not None:
            tensor = self.first
        elif p.name in group:  # before the results: a group may have a learning rate of its own
            tensor = self.constant(*group[p.name], p)
        elif p.name in self.results:
            tensor = self.results[p.name]
        elif p.name in hyper:
            tensor = self.constant(f"hyper.{p.name}", hyper[p.name], p)
        else:
            raise self.error(
                f"'{op.name}' reads the scalar '{p.name}', which is no hyperparameter, no group's value "
                "and no result of the learning-rate or norm op",
                "declare it: a `hyper` line, or a value of each group",
            )
        if tensor.dtype is not p.dtype:
            raise self.error(
                f"'{p.name}' of '{op.name}' is {p.dtype}, given is {tensor.dtype}", "give them the same type"
            )
        return tensor.whole()

    def constant(self, slot: str, value: Expr, p: Operand) -> Tensor:
        if slot not in self.slots:
            self.slots[slot] = Tensor(slot, p.dtype, (), "scalar", "optimizer")
            number = evaluate_dim(value, {**self.graph.dims})
            self.hyper[self.slots[slot]] = float(number) if p.dtype is not DType.I32 else int(number)
        return self.slots[slot]

    def error(self, message: str, hint: str) -> TcError:
        span = self.optimizer.span
        return TcError(message, span, self.module.sources.get(span.file, ""), hint)
