"""Checks of models that need no sizes: names, configurations, parameters, groups, calls, the optimizer.

Shapes are checked in check_model_shapes.py, with numbers, at every configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tcomp.dsl.ast import (
    Access,
    Cache,
    DType,
    Expr,
    Group,
    InputDecl,
    Model,
    Module,
    Name,
    Op,
    Optimizer,
    ParamDecl,
    Reduction,
    Span,
    StateDecl,
    children,
    names_in,
)
from tcomp.dsl.check_calls import check_statements
from tcomp.dsl.check_model_shapes import check_model_shapes
from tcomp.dsl.check_numbers import BATCH_NUMBER, TRAINING, check_number, check_numbers
from tcomp.dsl.decode import decoding
from tcomp.dsl.errors import TcError
from tcomp.dsl.expressions import place
from tcomp.dsl.hints import count, did_you_mean, listing
from tcomp.dsl.recipes import RECIPES
from tcomp.dsl.updates import by_tensor, check_signature, of_matrices, trainer
from tcomp.dsl.variants import all_variants, mentioned, under

INITIALISERS = {"zeros": 0, "ones": 0, "normal": 1, "uniform": 1}

_GIVEN = {
    TRAINING: "is 1 where a step trains, and 0 in evaluation",
    BATCH_NUMBER: "counts the batches of a run",
}
"""What a model's text does not declare"""


def check_model(model: Model, module: Module) -> None:
    """All checks of one model, under each precision that its text speaks of."""
    spoken = [p for p, _ in all_variants(model.optimizer)] if model.optimizer is not None else []
    for name in (model.precision, *spoken, *(x.precision or "f32" for x in model.states)):
        if name not in RECIPES:
            hint = f"known are {listing(RECIPES)}; f32 is what a model without the line has"
            span = place(model.places, "precision", model.span) if name == model.precision else model.span
            raise TcError(f"precision '{name}' is not supported", span, hint=hint)
    checked = (model.precision, *mentioned(model)) if module.precision is None else (module.precision,)
    for precision in dict.fromkeys(checked):
        _check(under(model, precision, module), module)


def _check(model: Model, module: Module) -> None:
    numbers = check_numbers(model)
    _check_tensors(model, numbers)
    _check_states(model, module)
    declared: tuple[ParamDecl | InputDecl | StateDecl | Cache, ...] = (
        *model.params, *model.inputs, *model.states, *model.caches,
    )  # fmt: skip
    tensors = {d.name: d.dtype for d in declared}
    own = {BATCH_NUMBER: DType.I32}
    bound = check_statements(model, model.forward, tensors | own, numbers, module)
    computed = bound.keys() - tensors.keys() - own.keys()
    hyper = {n for n, _ in model.optimizer.hyper} if model.optimizer is not None else set()
    for given, what in _GIVEN.items():
        if given in numbers | hyper | tensors.keys() | computed:
            message = f"'{model.name}' has a number or tensor '{given}' of its own"
            raise TcError(message, model.span, hint=f"rename it: in operands of calls `{given}` {what}")
    for name, what in ((model.loss, "loss"), (model.logits, "logits")):
        if name is not None and name not in computed:
            hint = did_you_mean(name, sorted(computed), "tensor")
            span = place(model.places, what, model.span)
            raise TcError(f"{what} names '{name}', which `forward` does not compute", span, hint=hint)
    if model.optimizer is not None:
        _check_optimizer(model.optimizer, module)
    check_model_shapes(model, module)
    if model.decode is not None:
        if model.logits is None:
            hint = "add a line `logits NAME`, naming the tensor that decoding reads"
            raise TcError("a model that decodes must name its logits", model.decode.span, hint=hint)
        check_model(decoding(model, module), module)


# ------------------------------------------------------------------------------------------- tensors


def _check_tensors(model: Model, numbers: frozenset[str]) -> None:
    _check_declared((*model.params, *model.inputs, *model.states, *model.caches), numbers)
    for p in model.params:
        _check_initialiser(p, numbers)
        if not p.dtype.is_float:
            raise TcError(
                f"parameter '{p.name}' is {p.dtype}",
                p.span,
                hint="parameters are real; integers are inputs, or made by an op",
            )
        _check_group(model, p)
    if model.params and model.optimizer is not None and all(p.frozen for p in model.params):
        hint = "put one in a group, `in NAME`, or drop the optimizer"
        raise TcError(f"all parameters of '{model.name}' are frozen", model.params[0].span, hint=hint)
    _check_ties(model)
    for i in model.inputs:
        if i.below is not None:
            check_number(i.below, numbers, f"the bound of '{i.name}'")


def _check_declared(declared: Sequence[ParamDecl | InputDecl | StateDecl | Cache], numbers: frozenset[str]) -> None:
    """Names are new, and shapes are of the model's numbers."""
    seen: set[str] = set()
    for d in declared:
        if d.name in seen:
            raise TcError(f"'{d.name}' is declared twice", d.span, hint="rename one of them")
        if d.name in numbers:
            raise TcError(f"'{d.name}' is both a tensor and a dimension", d.span, hint="rename one of them")
        seen.add(d.name)
        for e in d.shape:
            check_number(e, numbers, f"the shape of '{d.name}'")


def _check_initialiser(p: ParamDecl, numbers: frozenset[str]) -> None:
    init = p.init
    if init.function not in INITIALISERS:
        hint = did_you_mean(init.function, INITIALISERS, "initialiser")
        raise TcError(f"unknown initialiser '{init.function}'", init.span, hint=hint)
    if len(init.args) != INITIALISERS[init.function]:
        wanted = "normal(std), uniform(bound), zeros or ones"
        number = count(INITIALISERS[init.function], "value")
        raise TcError(f"'{init.function}' takes {number}", init.span, hint=f"write {wanted}")
    for e in init.args:
        check_number(e, numbers, f"the initialiser of '{p.name}'")


def _check_group(model: Model, p: ParamDecl) -> None:
    """A parameter that is trained is in one of the optimizer's groups, if it has any; a frozen one is in none."""
    if p.frozen and p.group:
        hint = f"drop `in {p.group}`, or `frozen`"
        raise TcError(f"'{p.name}' is frozen, so no optimizer's group trains it", p.span, hint=hint)
    if model.caches or p.frozen:
        return  # (the decoding form has no optimizer)
    groups = [g.name for g in model.optimizer.groups] if model.optimizer else []
    if groups and p.group not in groups:
        hint = did_you_mean(p.group, groups, "group") if p.group else f"add `in {groups[0]}`, or `frozen`"
        message = f"unknown parameter group '{p.group}'" if p.group else f"'{p.name}' is in no parameter group"
        raise TcError(message, p.span, hint=hint)
    if p.group and not groups:
        hint = f"add `group {p.group}: ...` to the optimizer"
        raise TcError(f"unknown parameter group '{p.group}'", p.span, hint=hint)


def _check_ties(model: Model) -> None:
    """Each tie joins two parameters of one type and shape, under a condition that a configuration decides."""
    params = {p.name: p for p in model.params}
    from_configs = frozenset(n for c in model.configs for n, _ in c.values)
    for t in model.ties:
        for name in (t.name, t.to):
            if name not in params:
                raise TcError(f"unknown parameter '{name}'", t.span, hint=did_you_mean(name, params, "parameter"))
        a, b = params[t.name], params[t.to]
        if a is b or any(other.name in (t.name, t.to) for other in model.ties if other is not t):
            hint = "name the parameter that is left as the last in every `tie` line"
            raise TcError(f"'{t.name}' is tied to '{t.to}', which is tied itself", t.span, hint=hint)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            hint = "tied parameters are one tensor: declare both with the same type and shape"
            raise TcError(f"'{t.name}' and '{t.to}' differ in type or shape", t.span, hint=hint)
        if a.frozen != b.frozen:
            hint = "tied parameters are one tensor: declare both `frozen`, or neither"
            raise TcError(f"of '{t.name}' and '{t.to}' one is frozen", t.span, hint=hint)
        if t.where is not None:
            check_number(t.where, from_configs, "the condition of a `tie`")


def _check_states(model: Model, module: Module) -> None:
    for x in model.states:
        if x.init.function != "zeros" or x.init.args:
            raise TcError(f"state '{x.name}' begins as {x.init.function}", x.init.span, hint="states begin as zeros")
        if x.dtype is not DType.F32:
            raise TcError(f"state '{x.name}' is {x.dtype}", x.span, hint="states are f32")
        op = module.ops.get(x.op)
        if op is None:
            hint = did_you_mean(x.op, [o for o in module.ops if "." not in o], "op")
            raise TcError(f"`by {x.op}` names an unknown op", x.span, hint=hint)
        operands = [(p.name, len(p.shape), p.dtype, p.inout) for p in op.params]
        if operands != [("p", 1, DType.F32, True), ("g", 1, DType.F32, False)] or op.outputs:
            hint = f"declare it: op {x.op}(inout p: f32[N], g: f32[N])"
            raise TcError(f"op '{x.op}' cannot give a state its next value", x.span, hint=hint)


# ---------------------------------------------------------------------------------------- optimizer


_COUNTED = {"step": "it counts the steps", "first": "it is the place of a group's first element"}
"""Scalar operands that the step itself gives, and what they are."""


def _check_optimizer(o: Optimizer, module: Module) -> None:
    hyper = [n for n, _ in o.hyper]
    for n in hyper:
        if hyper.count(n) > 1:
            raise TcError(f"hyperparameter '{n}' is given twice", place(o.places, n, o.span), hint="keep one value")
    for at, g in enumerate(o.groups):
        if any(g.name == other.name for other in o.groups[:at]):
            raise TcError(f"group '{g.name}' is given twice", g.span, hint="write one line with all its values")
    used: set[str] = set()
    results: set[str] = set()
    for name, what in ((o.schedule, "lr by"), (o.norm, "norm by")):
        if name is None:
            continue
        op = module.ops.get(name)
        if op is None:
            hint = did_you_mean(name, [x for x in module.ops if "." not in x], "op")
            raise TcError(f"`{what} {name}` names an unknown op", place(o.places, what, o.span), hint=hint)
        if of_matrices(op):
            raise TcError(f"`{what} {name}` names an op of matrices", op.span, hint="gradients are there as one vector")
        _check_bound(place(o.places, what, o.span), op, (), hyper, results, used)
        _check_lengths(op)
        results |= {r.name for r in op.outputs}
    for name, span, text in ((o.op, o.span, "optimizer"), *((g.op, g.span, f"group {g.name} by") for g in o.groups)):
        if name and trainer(name, module) is None:
            hint = did_you_mean(name, [x for x in (*module.ops, *module.updates) if "." not in x], "op")
            raise TcError(f"`{text} {name}` names an unknown op", span, hint=hint)
    for name, groups in _trained(o).items():
        found = trainer(name, module)
        assert found is not None
        if by_tensor(found):
            check_signature(found)
        span = next((g.span for g in groups if g.op), o.span)
        _check_bound(span, found, groups, hyper, results, used)
        _check_group_values(groups, found)
        _check_kept(found)
    if o.schedule is not None and "lr" not in {r.name for r in module.ops[o.schedule].outputs}:
        span = place(o.places, "lr by", o.span)
        raise TcError(f"`lr by {o.schedule}` gives no 'lr'", span, hint="name the op's output `lr: f32[]`")
    _check_hyper(o, used, module)


def _trained(o: Optimizer) -> dict[str, tuple[Group, ...]]:
    """The names of the ops and updates that train groups, the optimizer's own first, each with its groups (none where
    the optimizer has no groups)."""
    own = tuple(g for g in o.groups if not g.op)
    found = {o.op: own} if own or not o.groups else {}
    for g in o.groups:
        if g.op:
            found[g.op] = (*found.get(g.op, ()), g)
    return found


def _check_hyper(o: Optimizer, used: set[str], module: Module) -> None:
    """Every hyperparameter is a number, and read by an op (`used`) from where no other value comes."""
    ops = (trainer(n, module) for n in (o.schedule, o.norm, *_trained(o)) if n)
    scalars = sorted({p.name for op in ops if op is not None for p in op.params if not p.shape})
    given = {r.name: f"`{what} {n}` gives it" for n, what in ((o.schedule, "lr by"), (o.norm, "norm by")) if n
             for r in module.ops[n].outputs}  # fmt: skip
    for n, e in o.hyper:
        if n in given or n in _COUNTED:
            hint = "drop one of the two" if n in given else "call the operand by another name"
            message = f"hyperparameter '{n}' would not be read: {(given | _COUNTED)[n]}"
            raise TcError(message, place(o.places, n, o.span), hint=hint)
        if n not in used:
            hint = did_you_mean(n, scalars, "scalar operand")
            message = f"hyperparameter '{n}' is read by no op of the optimizer"
            raise TcError(message, place(o.places, n, o.span), hint=hint)
        check_number(e, frozenset(), f"the value of '{n}'")


def _check_kept(op: Op) -> None:
    """No state has the name of what the op is given, or gives."""
    others = {"g": "the gradients, which it reads", "w": "the parameters as the model reads them, a result"}
    for p in op.params:
        if p.inout and p.name in others:
            hint = "call its state by another name" + (", or copy `g` to a temporary" if p.name == "g" else "")
            raise TcError(f"'{p.name}' of the optimizer's op '{op.name}' is {others[p.name]}", p.span, hint=hint)


def _check_lengths(op: Op) -> None:
    """No value depends on how long the vector of all parameters is, which counts what pads tensors, too."""
    lengths = {n for p in op.params if len(p.shape) == 1 for n in names_in(p.shape[0])} - {
        n for p in op.params if len(p.shape) > 1 for e in p.shape for n in names_in(e)
    }
    for eq in op.equations:
        v = eq.value
        read = (*v.values, v.guard, v.key) if isinstance(v, Reduction) else (v,)
        found = next((n for e in read if e is not None for n in _numbers(e) if n.id in lengths), None)
        if found is not None:
            hint = "give the number of parameters as a `hyper` value, and read that"
            message = f"op '{op.name}' reads a vector's length '{found.id}', which counts the zeros between tensors"
            raise TcError(message, found.span if found.span.line else eq.span, hint=hint)


def _numbers(e: Expr) -> Iterator[Name]:
    """The names in an expression that are no part of a subscript."""
    if isinstance(e, Name):
        yield e
    for child in () if isinstance(e, Access) else children(e):
        yield from _numbers(child)


def _check_group_values(groups: tuple[Group, ...], op: Op) -> None:
    """Every value of a group is a number, for a scalar operand of the op that trains it."""
    own = {p.name for p in op.params if not p.shape}
    for g in groups:
        for n, e in g.values:
            if n in _COUNTED:
                hint = "call the operand by another name"
                raise TcError(f"group '{g.name}' sets '{n}', but {_COUNTED[n]}", g.span, hint=hint)
            if n not in own:
                hint = did_you_mean(n, sorted(own), "scalar operand")
                raise TcError(f"group '{g.name}' sets '{n}', which op '{op.name}' does not read", g.span, hint=hint)
            check_number(e, frozenset(), f"the value of '{n}'")


def _check_bound(
    span: Span, op: Op, groups: tuple[Group, ...], hyper: list[str], results: set[str], used: set[str]
) -> None:
    """Every operand of an op that the optimizer runs, as the line at `span` says, gets a value by its name."""
    for p in op.params:
        if p.shape:
            if not p.inout and p.name not in ("p", "g"):
                hint = "tensors it can read are `p` (parameters), `g` (gradients) and its own inout state"
                raise TcError(f"op '{op.name}' reads a tensor '{p.name}'", p.span, hint=hint)
            if len(p.shape) > 1 and not by_tensor(op):
                hint = f"declare it `{p.name}: {p.dtype}[N]`, or `p` with the axes of a matrix: `inout p: f32[R, C]`"
                raise TcError(
                    f"'{p.name}' of op '{op.name}' has {len(p.shape)} axes, but 'p' is a group's parameters side by "
                    "side as one vector", p.span, hint=hint,
                )  # fmt: skip
            continue
        in_groups = [g for g in groups if p.name in dict(g.values)]
        if p.name in hyper:
            used.add(p.name)
        elif (
            p.name != "step"
            and not (groups and p.name == "first")
            and p.name not in results
            and (not groups or len(in_groups) < len(groups))
        ):
            lacking = [g.name for g in groups if g not in in_groups] if in_groups else []
            where = f" in group {listing(lacking)}" if lacking else ""
            raise TcError(
                f"op '{op.name}' reads the scalar '{p.name}', which has no value{where}",
                span,
                notes=(f"known are {listing(sorted({'step', *hyper, *results}))}",),
                hint=f"add `hyper {p.name} = ...`" + (", or set it in every group" if groups else ""),
            )
