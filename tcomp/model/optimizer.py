"""The update program: learning rate, gradient norm, then the optimizer's op once per parameter group.

Operands are bound by name. `p`, `g` and the op's other inout operands (its state: m, v) are flat vectors over
a parameter group (over all parameters for the norm). So is the result `w`, the parameters as the model reads them,
where `p` are f32 master copies of them; for parameters without such (f32 ones are their own) the op is run without
`w`. The op's `real` is what the group's parameters are stored in; it runs once for each such type. `step` is the step
counter; other scalars are the group's values, then results of the learning-rate and norm ops, then the optimizer's
hyperparameters.

Where several processes share a step, each sums the norm's parts over its share of the gradients, and the update has the
rest of that op, which reads the sums of all. Under ZeRO-1 it also updates its share only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import DType, Expr, Module, Op, Operand, Optimizer
from tcomp.dsl.dims import bind, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.storage import STORAGE, bound
from tcomp.grad.accumulate import restricted
from tcomp.model.flat import FlatGroup, FlatLayout
from tcomp.model.graph import Graph, Node, Tensor, View
from tcomp.model.request import Sharing
from tcomp.model.sharing import elementwise, in_parts


@dataclass(frozen=True)
class Update:
    """The nodes of the update. `flats` are the flat vectors by their names ("p", "w", "g", those of the states).

    `results` are the scalars that the learning-rate and norm ops give; `hyper` the scalars read, with their
    default values; `scalars` further constants. `sums` are the nodes that sum a share of the gradients for the norm,
    `totals` the scalars that are to be the sums of all: each with its name in those nodes. Of the flat vectors that are
    `sharded` only a share is kept.
    """

    nodes: tuple[Node, ...]
    flats: dict[str, Tensor]
    results: dict[str, Tensor]
    hyper: dict[Tensor, float]
    scalars: dict[Tensor, float]
    sums: tuple[Node, ...] = ()
    totals: Mapping[str, Tensor] = field(default_factory=dict)
    sharded: frozenset[Tensor] = frozenset()


def build_update(
    graph: Graph,
    module: Module,
    layout: FlatLayout,
    regions: Mapping[str, Mapping[Tensor, Tensor]],
    step: Tensor,
    news: Mapping[Tensor, Tensor],
    sharing: Sharing = Sharing(),
) -> Update:
    """The update program of a model with an optimizer. `regions` are the flat vectors as their parts; `step` is the
    tensor of the step counter; `news` has what the backward pass says of each state of the model."""
    optimizer = graph.model.optimizer
    assert optimizer is not None
    builder = _Builder(graph, module, layout, regions, step, optimizer, sharing)
    for state, new in news.items():
        builder.state(state, new)
    return builder.build()


def state_names(op: Op) -> tuple[str, ...]:
    """The optimizer state of an update op: its inout operands other than the parameters."""
    return tuple(o.name for o in op.params if o.inout and o.name != "p")


class _Builder:
    def __init__(
        self,
        graph: Graph,
        module: Module,
        layout: FlatLayout,
        regions: Mapping[str, Mapping[Tensor, Tensor]],
        step: Tensor,
        optimizer: Optimizer,
        sharing: Sharing,
    ) -> None:
        self.graph, self.module, self.layout, self.step, self.optimizer = graph, module, layout, step, optimizer
        self.sharing = sharing
        self.spans = {n: layout.span(parts) for n, parts in regions.items()}
        read = {"g", "w"} if "w" in regions else {"g", "p"}
        shares = {n: sharing.ranks if sharing.zero and n not in read else 1 for n in regions}
        self.flats = {
            n: Tensor(
                f"flat.{n}", next(iter(parts.values())).dtype, (self.spans[n][1] // shares[n],), "parameter",
                optimizer.op,
            )
            for n, parts in regions.items()
            if parts
        }  # fmt: skip
        self.sharded = frozenset(t for n, t in self.flats.items() if shares[n] > 1)
        self.sums: list[Node] = []
        self.totals: dict[str, Tensor] = {}
        self.rest = ""  # the op that reads the totals
        self.hyper: dict[Tensor, float] = {}
        self.slots: dict[str, Tensor] = {}
        self.results: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.scalars: dict[Tensor, float] = {}
        self.first: Tensor | None = None

    def build(self) -> Update:
        o = self.optimizer
        update = self.op(o.op)
        if self.sharing.zero:
            self.check_zero(update)
        if o.schedule is not None:
            self.node(self.op(o.schedule), {}, None, o.schedule)
        if o.norm is not None:
            self.norm(self.op(o.norm))
        given = {g.name: g for g in o.groups}
        for group in self.layout.groups:
            values = dict(given[group.name].values) if group.name in given else {}
            named = {n: (f"hyper.{group.name}.{n}", e) for n, e in values.items()}
            self.first = Tensor(f"first.{group.label}".replace(" ", "."), DType.I32, (), "scalar", "optimizer")
            self.node(
                self.copying(update, group), named, group, f"{o.op} {group.label}".strip(), share=self.sharing.zero > 0
            )
            if self.nodes[-1].operands.get("first") is not None:
                self.scalars[self.first] = group.first & 0x7FFFFFFF
        return Update(
            tuple(self.nodes), self.flats, self.results, self.hyper, self.scalars, tuple(self.sums), self.totals,
            self.sharded,
        )  # fmt: skip

    def norm(self, op: Op) -> None:
        """The op that sees all gradients; where they are shared, as sums of a share and the rest."""
        split = in_parts(op) if self.sharing.ranks > 1 else None
        if split is None:
            if self.sharing.zero:
                raise self.error(
                    "under ZeRO-1 a process has the sum of its share of the gradients only, and "
                    f"'{op.name}' takes more of them than sums `s = sum i: ...`",
                    "let it read the vector in such sums only, or train without --zero",
                )
            self.node(op, {}, None, op.name)
            return
        nodes, self.nodes = self.nodes, []
        for group in self.layout.groups:
            results = {}
            for n in split.sums:
                name = f"{op.name}.{n}.{group.label}".replace(" ", ".")
                results[n] = Tensor(name, DType.F32, (), "output", op.name)
            self.node(split.part, {}, group, f"{op.name} {group.label}".strip(), results, share=True)
        self.sums, self.nodes = self.nodes, nodes
        for n in split.sums:
            self.totals[n] = Tensor(f"{op.name}.{n}", DType.F32, (), "scalar", op.name)
            self.scalars[self.totals[n]] = 0.0
        self.rest = split.rest.name
        self.node(split.rest, {}, None, op.name)

    def check_zero(self, update: Op) -> None:
        """TcError for an optimizer that needs more of its vectors than a process has under ZeRO-1."""
        if not elementwise(update):
            raise self.error(
                f"under ZeRO-1 a process updates its share of the parameters only, and op '{update.name}' needs more "
                "of its vectors than the same element (or its place, other than by `first + i`)",
                "train without --zero, or take an optimizer whose op is elementwise",
            )
        schedule = self.optimizer.schedule
        if schedule is not None and any(p.shape for p in self.op(schedule).params):
            raise self.error(
                f"under ZeRO-1 no process has the whole vectors that '{schedule}' reads", "train without --zero"
            )
        if len({g.dtype for g in self.layout.groups}) > 1:
            raise self.error(
                "under ZeRO-1 all parameters that are trained have one type", "give them one, or train without --zero"
            )

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

    def copying(self, update: Op, group: FlatGroup) -> Op:
        """The op with its result `w` where the recipe keeps master copies of the group, else without."""
        copies = any(r.name == "w" for r in update.outputs)
        masters = self.vector("w", group) is not None
        if masters and not copies:
            raise self.error(
                f"precision {self.graph.recipe.name} keeps f32 master copies of the parameters, but op '{update.name}' "
                "does not give the stored parameters",
                f"add the result `w: real[N]` to op '{update.name}', and the equation `w[i] = p[i]`",
            )
        if masters or not copies:
            return update
        return restricted(
            update, frozenset({o.name for o in update.operands if o.inout or o in update.outputs} - {"w"})
        )

    def vector(self, name: str, group: FlatGroup | None, share: bool = False) -> View | None:
        """A group's part of a flat vector (the first process's `share` of it), or (None) all of one over all
        parameters. None where there is no such."""
        start, elements = (group.start, group.elements) if group is not None else (0, self.layout.elements)
        for key in (name, f"{name} {group.dtype}") if group is not None else (name,):
            begin, length = self.spans[key] if key in self.flats else (0, -1)
            if begin <= start and start + elements <= begin + length:
                flat, ranks = self.flats[key], self.sharing.ranks if share else 1
                return View(flat, (start - begin) // (ranks if flat in self.sharded else 1), (elements // ranks,))
        return None

    def node(
        self, op: Op, values: dict[str, tuple[str, Expr]], group: FlatGroup | None, label: str,
        named: Mapping[str, Tensor] | None = None, share: bool = False,
    ) -> None:  # fmt: skip
        """Add the node of an op over a group's vectors (a `share` of them); its results are `named`, or have their own
        names."""
        stored = group.dtype if group is not None and group.dtype in STORAGE else self.graph.recipe.storage
        op = bound(op, stored)
        operands: dict[str, View] = {}
        for p in op.params:
            if p.shape:
                vector = self.vector(p.name, group, share)
                if vector is None:
                    known = ", ".join(n for n in self.flats if self.vector(n, group) is not None)
                    some = any(n.split()[0] == p.name for n in self.flats)
                    of_all = " of all parameters, which are of several types" if some else ""
                    raise self.error(f"'{op.name}' has a vector '{p.name}'{of_all}; known are {known}", "rename it")
                operands[p.name] = vector
            else:
                operands[p.name] = self.scalar(op, p, values)
        for r in op.outputs:
            vector = self.vector(r.name, group, share) if r.shape and r.name == "w" else None
            if vector is not None:
                operands[r.name] = vector
                continue
            if r.shape:
                raise self.error(
                    f"'{op.name}' gives '{r.name}', which is not a scalar", "let it give scalars, `s: f32[]`"
                )
            result = (named or {}).get(r.name) or Tensor(r.name, r.dtype, (), "output", op.name)
            self.results[result.name] = result
            operands[r.name] = result.whole()
        for o in op.operands:
            given = operands[o.name].tensor.dtype
            if o.dtype is not given:
                name = self.graph.recipe.name
                where = f" for {group.name} in {given}" if group is not None and group.split else ""
                raise self.error(
                    f"'{o.name}' of '{op.name}' is {o.dtype}, by precision {name} it is {given}{where}",
                    f"`under {name} by OP` names another op for it; `real` is what a group's parameters are in",
                )
        dims = bind(op, {n: v.shape for n, v in operands.items()}, {})
        self.nodes.append(Node(op, dims, operands, label, self.optimizer.span))

    def scalar(self, op: Op, p: Operand, group: dict[str, tuple[str, Expr]]) -> View:
        hyper = dict(self.optimizer.hyper)
        if p.name == "step":
            tensor = self.step
        elif p.name == "first" and self.first is not None:
            tensor = self.first
        elif op.name == self.rest and p.name in self.totals:
            tensor = self.totals[p.name]
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
