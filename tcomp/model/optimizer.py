"""The update program: learning rate, gradient norm, then the op of each parameter group.

Operands are bound by name. `p`, `g` and the op's other inout operands (its state: m, v) are flat vectors over
a parameter group (over all parameters for the norm). So is the result `w`, the parameters as the model reads them,
where `p` are f32 master copies of them; for parameters without such (f32 ones are their own) the op is run without
`w`. The op's `real` is what the group's parameters are stored in; it runs once for each such type. `step` is the step
counter; other scalars are the group's values, then results of the learning-rate and norm ops, then the optimizer's
hyperparameters.
What trains tensor by tensor is run for each of a group's (`matrices.py`), before all that takes vectors: an executor
may leave the last launches of the update to the next step, if they are of vectors.

Where several processes share a step, each sums the norm's parts over its share of the gradients, and the update has the
rest of that op, which reads the sums of all. Under ZeRO-1 it also updates its share only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from tcomp.dsl.ast import DType, Expr, Module, Op, Operand, Optimizer
from tcomp.dsl.dims import bind, evaluate_dim
from tcomp.dsl.elementwise import elementwise
from tcomp.dsl.errors import TcError
from tcomp.dsl.recipes import kept
from tcomp.dsl.storage import STORAGE, bound
from tcomp.dsl.updates import as_update, by_tensor, group_op, of_matrices, trainer
from tcomp.grad.accumulate import restricted
from tcomp.model.flat import FlatGroup, FlatLayout, Region
from tcomp.model.graph import Graph, Node, Tensor, View
from tcomp.model.joins import total
from tcomp.model.matrices import Matrices, MatrixCalls, state_shape
from tcomp.model.request import Sharing
from tcomp.model.sharing import in_parts
from tcomp.model.stored import check_stored
from tcomp.model.vectors import FlatVectors


@dataclass(frozen=True)
class Update:
    """The nodes of the update. `flats` are the flat vectors by their names ("p", "w", "g", those of the states).

    `results` are what the learning-rate and norm ops give; `hyper` the scalars read, with their
    default values; `scalars` further constants. `sums` are the nodes that sum a share of the gradients for the norm,
    into a row of `rows`, [ranks, sums, groups], which the update reads when all rows are there. Of the flat vectors
    that are `sharded` only a share is kept.
    """

    nodes: tuple[Node, ...]
    flats: dict[str, Tensor]
    results: dict[str, Tensor]
    hyper: dict[Tensor, float]
    scalars: dict[Tensor, float]
    sums: tuple[Node, ...] = ()
    rows: Tensor | None = None
    sharded: frozenset[Tensor] = frozenset()


def build_update(
    graph: Graph,
    module: Module,
    layout: FlatLayout,
    regions: Mapping[str, Region],
    step: Tensor,
    news: Mapping[Tensor, Tensor],
    sharing: Sharing = Sharing(),
) -> Update:
    """The update program of a model with an optimizer. `regions` are the flat vectors by name; `step` is the
    tensor of the step counter; `news` has what the backward pass says of each state of the model."""
    optimizer = graph.model.optimizer
    assert optimizer is not None
    builder = _Builder(graph, module, layout, regions, step, optimizer, sharing)
    for state, new in news.items():
        builder.state(state, new)
    return builder.build()


def state_parts(graph: Graph, module: Module, layout: FlatLayout) -> dict[str, dict[Tensor, Tensor]]:
    """The optimizer's state by name, each as parameter -> tensor: inout operands of the ops that train groups, other
    than the parameters, each for the parameters of these groups."""
    optimizer = graph.model.optimizer
    assert optimizer is not None
    parts: dict[str, dict[Tensor, Tensor]] = {}
    for group in layout.groups:
        op = trainer(_trained_by(optimizer, group.name), module)
        if op is None:
            continue  # (build_update says so)
        for o in (o for o in op.params if o.inout and o.name != "p" and o.shape):
            for p in group.parameters:
                shape = state_shape(o, op, Matrices(p, graph)) if by_tensor(op) else p.tensor.shape
                name = f"state.{o.name}.{p.tensor.name}"
                part = Tensor(name, kept(p.tensor.dtype), shape, "state", p.tensor.name)
                parts.setdefault(o.name, {})[p.tensor] = part
    return parts


def _trained_by(optimizer: Optimizer, group: str) -> str:
    """The name of what trains a group."""
    return next((group_op(optimizer, g) for g in optimizer.groups if g.name == group), optimizer.op)


class _Builder:
    def __init__(
        self,
        graph: Graph,
        module: Module,
        layout: FlatLayout,
        regions: Mapping[str, Region],
        step: Tensor,
        optimizer: Optimizer,
        sharing: Sharing,
    ) -> None:
        self.graph, self.module, self.layout, self.step, self.optimizer = graph, module, layout, step, optimizer
        self.sharing = sharing
        self.vectors = FlatVectors(layout, regions, sharing, optimizer.op)
        self.flats = self.vectors.flats
        self.sums: list[Node] = []
        self.rows: Tensor | None = None
        self.totals: dict[str, View] = {}
        self.rest = ""  # the op that reads the totals
        self.hyper: dict[Tensor, float] = {}
        self.slots: dict[str, Tensor] = {}
        self.results: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.scalars: dict[Tensor, float] = {}
        self.constants = {(value, graph.evaluation.get(t, value), t.dtype): t for t, value in graph.scalars.items()}
        self.first: Tensor | None = None

    def build(self) -> Update:
        o = self.optimizer
        trained = [(g, self.trainer(_trained_by(o, g.name))) for g in self.layout.groups]
        for name in {op.name: None for _, op in trained}:
            check_stored(name, self.module)
        if self.sharing.zero:
            self.check_alike(trained)
            self.check_zero(self.op(o.op))
        if o.schedule is not None:
            self.node(self.op(o.schedule), {}, None, o.schedule)
        if o.norm is not None:
            self.norm(self.op(o.norm))
        for group, op in trained:
            if by_tensor(op):
                self.tensors(group, op)
        for group, op in trained:
            if not by_tensor(op):
                self.begin(f"first.{group.label}".replace(" ", "."), group.first)
                label = f"{op.name} {group.label}".strip()
                self.node(self.copying(op, group), self.values(group), group, label, share=self.sharing.zero > 0)
                self.end()
        return Update(
            tuple(self.nodes), self.flats, self.results, self.hyper, self.scalars, tuple(self.sums), self.rows,
            self.vectors.sharded,
        )  # fmt: skip

    def norm(self, op: Op) -> None:
        """The op that sees all gradients; where they are shared, as sums of a share and the rest."""
        split = in_parts(op) if self.sharing.ranks > 1 else None
        if split is not None and any(p.name in self.results for p in split.part.params):
            split = None  # the sums come before the learning rate of the step
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
        shape = len(split.sums), len(self.layout.groups)
        self.rows = rows = Tensor(f"{op.name}.sums", DType.F32, (self.sharing.ranks, *shape), "output", op.name)
        totals = Tensor(f"{op.name}.totals", DType.F32, shape[:1], "output", op.name)
        self.results |= {t.name: t for t in (rows, totals)}
        for i, group in enumerate(self.layout.groups):
            results = {n: View(rows, s * shape[1] + i, ()) for s, n in enumerate(split.sums)}
            self.node(split.part, {}, group, f"{op.name} {group.label}".strip(), results, share=True)
        self.sums, self.nodes = self.nodes, nodes
        self.nodes.append(total(rows, totals, f"{op.name} totals"))
        self.totals = {n: View(totals, s, ()) for s, n in enumerate(split.sums)}
        self.rest = split.rest.name
        self.node(split.rest, {}, None, op.name)

    def check_alike(self, trained: Sequence[tuple[FlatGroup, Op]]) -> None:
        """TcError where processes divide an update and not every group is trained by the optimizer's op of vectors."""
        for group, op in trained:
            if op.name != self.optimizer.op or of_matrices(op):
                raise self.error(
                    f"group '{group.name}' is trained by '{op.name}': under ZeRO-1 all groups must be trained by the "
                    "optimizer's own op, on vectors",
                    "train without --zero",
                )

    def tensors(self, group: FlatGroup, op: Op) -> None:
        """The op or update on each tensor of the group."""
        update = self.module.updates.get(op.name) or as_update(op)
        stored = self.stored(group)
        op = bound(self.copying(op, group), stored)
        keys: dict[str, str] = {}
        for o in (o for o in op.operands if o.shape):
            key = self.vectors.key(o.name, group)
            assert key is not None, o.name
            self.same_type(op, o, self.flats[key], group)
            keys[o.name] = key
        calls = MatrixCalls(update, self.graph, self.module, stored, self.constants)
        for p in group.parameters:
            found = Matrices(p, self.graph)
            dims = found.dims(op)
            for number in range(found.count(op)):
                name = found.name(op, number)
                views = {n: found.part(self.flats[k], self.vectors.regions[k], op, number) for n, k in keys.items()}
                place = self.layout.offsets[p.tensor.name] - group.start + group.first
                self.begin(f"first.{name}", place + number * prod(found.shape(op)))
                views |= {o.name: self.scalar(op, o, self.values(group)) for o in op.params if not o.shape}
                self.nodes += calls.of(op, dims, views, name)
                self.end()
        self.scalars |= calls.scalars

    def begin(self, name: str, element: int) -> None:
        """What follows is of parameters that begin at this element."""
        self.first = Tensor(name, DType.I32, (), "scalar", "optimizer")
        self.scalars[self.first] = element & 0x7FFFFFFF

    def end(self) -> None:
        """Forget the place where nothing that was made since reads it."""
        first, self.first = self.first, None
        assert first is not None
        if not any(v.tensor is first for n in self.nodes for v in n.operands.values()):
            del self.scalars[first]

    def values(self, group: FlatGroup) -> dict[str, tuple[str, Expr]]:
        """The group's values, by the names of scalars: the slot of each, and the value."""
        own = next((g.values for g in self.optimizer.groups if g.name == group.name), ())
        return {n: (f"hyper.{group.name}.{n}", e) for n, e in own}

    def stored(self, group: FlatGroup | None) -> DType:
        """What `real` is for a group's op."""
        return group.dtype if group is not None and group.dtype in STORAGE else self.graph.recipe.storage

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

    def trainer(self, name: str) -> Op:
        """The op of that name, or the operands and results of the update."""
        return self.module.updates[name].signature if name in self.module.updates else self.op(name)

    def copying(self, update: Op, group: FlatGroup) -> Op:
        """The op with its result `w` where the recipe keeps master copies of the group, else without (of what trains
        tensor by tensor, whose calls are yet to come, only the result is left out)."""
        copies = any(r.name == "w" for r in update.outputs)
        masters = self.vectors.key("w", group) is not None
        if masters and not copies:
            add = f"add the result `w: real[N]` to op '{update.name}', and the equation `w[i] = p[i]`"
            if of_matrices(update):
                add = f"give '{update.name}' a result `w`, `real` and of p's shape, that is p"
            raise self.error(
                f"precision {self.graph.recipe.name} keeps f32 master copies of the parameters, but op '{update.name}' "
                "does not give the stored parameters",
                add,
            )
        if masters or not copies:
            return update
        if by_tensor(update):
            return replace(update, outputs=())
        return restricted(update, frozenset(o.name for o in update.written) - {"w"})

    def node(
        self, op: Op, values: dict[str, tuple[str, Expr]], group: FlatGroup | None, label: str,
        named: Mapping[str, View] | None = None, share: bool = False,
    ) -> None:  # fmt: skip
        """Add the node of an op over a group's vectors (a `share` of them); its results are `named`, or have their own
        names."""
        op = bound(op, self.stored(group))
        operands: dict[str, View] = {}
        for p in op.params:
            if p.shape:
                vector = self.vectors.part(p.name, group, share)
                if vector is None:
                    known = ", ".join(n for n in self.flats if self.vectors.part(n, group) is not None)
                    some = any(n.split()[0] == p.name for n in self.flats)
                    of_all = " of all parameters, which are of several types" if some else ""
                    raise self.error(f"'{op.name}' has a vector '{p.name}'{of_all}; known are {known}", "rename it")
                operands[p.name] = vector
            else:
                operands[p.name] = self.scalar(op, p, values)
        for r in op.outputs:
            vector = self.vectors.part(r.name, group, share) if r.shape and r.name == "w" else None
            if vector is not None:
                operands[r.name] = vector
                continue
            if r.shape:
                raise self.error(
                    f"'{op.name}' gives '{r.name}', which is not a scalar", "let it give scalars, `s: f32[]`"
                )
            if named is None:
                self.results[r.name] = Tensor(r.name, r.dtype, (), "output", op.name)
            operands[r.name] = self.results[r.name].whole() if named is None else named[r.name]
        for o in op.operands:
            self.same_type(op, o, operands[o.name].tensor, group)
        dims = bind(op, {n: v.shape for n, v in operands.items()}, {})
        self.nodes.append(Node(op, dims, operands, label, self.optimizer.span))

    def same_type(self, op: Op, o: Operand, tensor: Tensor, group: FlatGroup | None) -> None:
        given = tensor.dtype
        if o.dtype is not given:
            name = self.graph.recipe.name
            where = f" for {group.name} in {given}" if group is not None and group.split else ""
            raise self.error(
                f"'{o.name}' of '{op.name}' is {o.dtype}, by precision {name} it is {given}{where}",
                f"`under {name} by OP` names another op for it, `under {name} GROUP by OP` for one group; `real` is "
                "what a group's parameters are in",
            )

    def scalar(self, op: Op, p: Operand, group: dict[str, tuple[str, Expr]]) -> View:
        hyper = dict(self.optimizer.hyper)
        if p.name == "step":
            tensor = self.step
        elif p.name == "first" and self.first is not None:
            tensor = self.first
        elif op.name == self.rest and p.name in self.totals:
            return self.totals[p.name]
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
        return TcError(message, span, hint)
