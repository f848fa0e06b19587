"""Checks of models that need no sizes: names, configurations, parameters, groups, calls, the optimizer.

Shapes are checked in check_model_shapes.py, with numbers, at every configuration.
"""

from __future__ import annotations

from collections.abc import Iterable

from tcomp.dsl.ast import (
    Access,
    Cache,
    DType,
    Expr,
    ForLayers,
    Group,
    InputDecl,
    Model,
    ModelStatement,
    Module,
    Name,
    Op,
    OpCall,
    Operand,
    Optimizer,
    ParamDecl,
    Span,
    StateDecl,
    TensorRef,
    names_in,
    walk,
)
from tcomp.dsl.check_model_shapes import check_model_shapes
from tcomp.dsl.decode import decoding
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import count, did_you_mean, listing
from tcomp.dsl.recipes import RECIPES
from tcomp.dsl.storage import STORAGE
from tcomp.dsl.variants import mentioned, under

INITIALISERS = {"zeros": 0, "ones": 0, "normal": 1, "uniform": 1}
ANNOTATIONS = {"recompute": 0, "chunks": 1}


def check_model(model: Model, module: Module) -> None:
    """All checks of one model, under each precision that its text speaks of."""
    spoken = [p for p, _ in model.optimizer.variants] if model.optimizer else []
    for name in (model.precision, *spoken, *(x.precision or "f32" for x in model.states)):
        if name not in RECIPES:
            hint = f"known are {listing(RECIPES)}; f32 is what a model without the line has"
            raise TcError(f"precision '{name}' is not supported", model.span, hint=hint)
    checked = (model.precision, *mentioned(model)) if module.precision is None else (module.precision,)
    for precision in dict.fromkeys(checked):
        _check(under(model, precision, module), module)


def _check(model: Model, module: Module) -> None:
    numbers = _check_numbers(model)
    _check_tensors(model, numbers)
    _check_states(model, numbers, module)
    declared: tuple[ParamDecl | InputDecl | StateDecl | Cache, ...] = (
        *model.params, *model.inputs, *model.states, *model.caches,
    )  # fmt: skip
    tensors = {d.name: d.dtype for d in declared}
    bound = _check_statements(model, model.forward, tensors, numbers, module)
    for name, what in ((model.loss, "loss"), (model.logits, "logits")):
        if name is not None and name not in bound:
            hint = did_you_mean(name, bound, "tensor")
            raise TcError(f"{what} names '{name}', which `forward` does not compute", model.span, hint=hint)
    if model.optimizer is not None:
        _check_optimizer(model, model.optimizer, module)
    check_model_shapes(model, module)
    if model.decode is not None:
        if model.logits is None:
            hint = "add a line `logits NAME`, naming the tensor that decoding reads"
            raise TcError("a model that decodes must name its logits", model.decode.span, hint=hint)
        check_model(decoding(model, module), module)


# ------------------------------------------------------------------------------------------- numbers


def _check_numbers(model: Model) -> frozenset[str]:
    """Names of numbers, each given once; every configuration gives the same ones."""
    known: dict[str, str] = {}

    def declare(name: str, what: str, span: Span) -> None:
        if name in known:
            raise TcError(f"'{name}' is {known[name]} and {what}", span, hint="rename one of them")
        known[name] = what

    for d in model.dims:
        declare(d, "a size given at build time", model.span)
    every = list(dict.fromkeys(n for c in model.configs for n, _ in c.values))
    for n in every:
        declare(n, "a configuration value", model.configs[0].span)
    for number, c in enumerate(model.configs):
        if any(c.name == other.name for other in model.configs[:number]):
            raise TcError(f"config '{c.name}' stands twice", c.span, hint="rename one of them")
        given = [n for n, _ in c.values]
        for n in given:
            if given.count(n) > 1:
                raise TcError(f"config '{c.name}' gives '{n}' twice", c.span, hint="keep one value")
        missing = [n for n in every if n not in given]
        if missing:
            other = next(o for o in model.configs if missing[0] in dict(o.values))
            hint = f"add {', '.join(f'{n} = ...' for n in missing)}"
            notes = (f"config '{other.name}' has it",)
            raise TcError(f"config '{c.name}' gives no value for {listing(missing)}", c.span, notes=notes, hint=hint)
        for _, e in c.values:
            _check_number(e, frozenset(), model, "a configuration value")
    for n, e in model.lets:
        _check_number(e, frozenset(known), model, f"the value of '{n}'")
        declare(n, "a `let`", e.span)
    for e in model.requires:
        _check_number(e, frozenset(known), model, "a `require`")
    return frozenset(known)


def _check_number(e: Expr, known: frozenset[str], model: Model, where: str) -> None:
    for n in walk(e):
        if isinstance(n, Access):
            raise TcError(f"'{n.tensor}' stands in {where}, which must be a number", n.span, hint="use dimensions")
        if isinstance(n, Name) and n.id not in known:
            hint = did_you_mean(n.id, sorted(known), "dimension")
            if not hint.startswith("did"):
                hint = f"give it in every config ({n.id} = ...), as `let {n.id} = ...`, or as a size of the model"
            raise TcError(f"unknown dimension '{n.id}' in {where}", n.span, hint=hint)


# ------------------------------------------------------------------------------------------- tensors


def _check_tensors(model: Model, numbers: frozenset[str]) -> None:
    seen: set[str] = set()
    groups = [g.name for g in model.optimizer.groups] if model.optimizer else []
    declared: tuple[ParamDecl | InputDecl | StateDecl | Cache, ...] = (
        *model.params, *model.inputs, *model.states, *model.caches,
    )  # fmt: skip
    for d in declared:
        if d.name in seen:
            raise TcError(f"'{d.name}' is declared twice", d.span, hint="rename one of them")
        if d.name in numbers:
            raise TcError(f"'{d.name}' is both a tensor and a dimension", d.span, hint="rename one of them")
        seen.add(d.name)
        for e in d.shape:
            _check_number(e, numbers, model, f"the shape of '{d.name}'")
    for p in model.params:
        init = p.init
        if init.function not in INITIALISERS:
            hint = did_you_mean(init.function, INITIALISERS, "initialiser")
            raise TcError(f"unknown initialiser '{init.function}'", init.span, hint=hint)
        if len(init.args) != INITIALISERS[init.function]:
            wanted = "normal(std), uniform(bound), zeros or ones"
            number = count(INITIALISERS[init.function], "value")
            raise TcError(f"'{init.function}' takes {number}", init.span, hint=f"write {wanted}")
        for e in init.args:
            _check_number(e, numbers, model, f"the initialiser of '{p.name}'")
        if not p.dtype.is_float:
            raise TcError(f"parameter '{p.name}' is {p.dtype}", p.span, hint="parameters are trained, so they are real")
        if model.caches:
            continue  # the decoding form has no optimizer
        if groups and p.group not in groups:
            hint = did_you_mean(p.group, groups, "group") if p.group else f"add `in {groups[0]}`"
            message = f"unknown parameter group '{p.group}'" if p.group else f"'{p.name}' is in no parameter group"
            raise TcError(message, p.span, hint=hint)
        if p.group and not groups:
            hint = f"add `group {p.group}: ...` to the optimizer"
            raise TcError(f"unknown parameter group '{p.group}'", p.span, hint=hint)
    _check_ties(model)
    for i in model.inputs:
        if i.below is not None:
            _check_number(i.below, numbers, model, f"the bound of '{i.name}'")


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
        if t.where is not None:
            _check_number(t.where, from_configs, model, "the condition of a `tie`")


def _check_states(model: Model, numbers: frozenset[str], module: Module) -> None:
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


# -------------------------------------------------------------------------------------------- calls


def _check_statements(
    model: Model,
    body: Iterable[ModelStatement],
    tensors: dict[str, DType],
    numbers: frozenset[str],
    module: Module,
) -> dict[str, DType]:
    """The tensors in force after the statements, with their types."""
    env = dict(tensors)
    for s in body:
        if isinstance(s, ForLayers):
            _check_number(s.extent, numbers, model, "the number of layers")
            if s.index in numbers or s.index in env:
                raise TcError(f"loop variable '{s.index}' is already taken", s.span, hint="rename it")
            env |= _check_statements(model, s.body, env, numbers | {s.index}, module)
        else:
            _check_call(model, s, env, numbers, module)
    return env


def _check_call(model: Model, s: OpCall, env: dict[str, DType], numbers: frozenset[str], module: Module) -> None:
    op = module.ops.get(s.op)
    if op is None:
        hint = did_you_mean(s.op, [o for o in module.ops if "." not in o], "op")
        if not hint.startswith("did"):
            hint = f"declare `op {s.op}(...)`, or import the file that does"
        raise TcError(f"unknown op '{s.op}'", s.span, hint=hint)
    caches = {c.name for c in model.caches}
    states = {x.name for x in model.states}
    given = dict(zip([p.name for p in op.params], s.args, strict=False))
    inout = next((p for p in op.params if p.inout and getattr(given.get(p.name), "name", "") not in caches), None)
    if inout is not None:
        hint = "an op in `forward` gives new tensors; in-place ops belong to the optimizer, or to caches of `decode`"
        raise TcError(f"op '{op.name}' updates '{inout.name}' in place", s.span, hint=hint)
    if len(s.args) != len(op.params):
        raise TcError(
            f"op '{op.name}' takes {count(len(op.params), 'operand')}, not {len(s.args)}",
            s.span,
            hint=f"write {op.name}({', '.join(p.name for p in op.params)})",
        )
    real: TensorRef | None = None
    for p, a in zip(op.params, s.args, strict=True):
        _check_argument(model, op, p, a, env, numbers, real)
        if p.dtype is DType.REAL and real is None and isinstance(a, TensorRef):
            real = a
    for name, e in s.keywords:
        if name not in op.dims:
            hint = did_you_mean(name, op.dims, "static dimension")
            raise TcError(f"op '{op.name}' has no dimension '{name}' to give", s.span, hint=hint)
        _check_number(e, numbers, model, f"the value of '{name}'")
    named = {n for n, _ in s.keywords} | {n for p in op.params for e in p.shape for n in names_in(e)}
    for d in op.dims:
        if d not in named:
            hint = f"pass it: {op.name}(..., {d} = ...)"
            raise TcError(f"op '{op.name}' needs its dimension '{d}'", s.span, hint=hint)
    for a in s.annotations:
        if a.function not in ANNOTATIONS:
            raise TcError(
                f"unknown annotation '{a.function}'",
                a.span,
                hint=did_you_mean(a.function, [*ANNOTATIONS, *RECIPES], "annotation"),
            )
        if len(a.args) != ANNOTATIONS[a.function]:
            number = count(ANNOTATIONS[a.function], "value")
            raise TcError(f"'{a.function}' takes {number}", a.span, hint="write `[recompute]` or `[chunks(8)]`")
        for e in a.args:
            _check_number(e, numbers, model, f"the annotation '{a.function}'")
    if len(s.results) != len(op.outputs):
        raise TcError(
            f"op '{op.name}' gives {count(len(op.outputs), 'tensor')}, but {len(s.results)} are named here",
            s.results[0].span,
            hint=f"it gives {listing(o.name for o in op.outputs)}; write `_` for one that is not needed",
        )
    for r, o in zip(s.results, op.outputs, strict=True):
        if r.name == "_":
            continue
        if r.name in numbers:
            raise TcError(
                f"'{r.name}' is a dimension and cannot be bound to a tensor", r.span, hint="rename the tensor"
            )
        if r.name in {p.name for p in model.params} | {i.name for i in model.inputs} | caches | states:
            hint = "parameters, inputs and states keep their values for the whole step; use another name"
            raise TcError(f"'{r.name}' is a parameter, an input or a state", r.span, hint=hint)
        for e in r.shape or ():
            _check_number(e, numbers, model, "a shape")
        env[r.name] = o.dtype if o.dtype is not DType.REAL or real is None else env[real.name]


def _check_argument(
    model: Model,
    op: Op,
    p: Operand,
    a: TensorRef | Expr,
    env: dict[str, DType],
    numbers: frozenset[str],
    real: TensorRef | None,
) -> None:
    """`real` is the argument that binds the call's `real`: the first one passed for a `real` operand."""
    if not isinstance(a, TensorRef):
        if p.shape:
            hint = f"operand '{p.name}' has {count(len(p.shape), 'axis', 'axes')}; only a scalar operand takes a number"
            raise TcError(f"a number is passed for the tensor '{p.name}' of op '{op.name}'", a.span, hint=hint)
        hyper = {n for n, _ in model.optimizer.hyper} if model.optimizer else set()
        _check_number(a, numbers | hyper, model, "an operand")
        return
    if a.name == "_":
        raise TcError("`_` names no tensor", a.span, hint="give the result a name where it is computed")
    if a.name not in env:
        hint = did_you_mean(a.name, env, "tensor")
        raise TcError(f"unknown tensor '{a.name}'", a.span, hint=hint)
    for e in (*a.subscripts, *(a.shape or ())):
        _check_number(e, numbers, model, f"the shape of '{a.name}'" if a.shape else f"the layer of '{a.name}'")
    given = env[a.name]
    is_state = any(x.name == a.name for x in model.states)
    if p.state != is_state:
        message = f"operand '{p.name}' of op '{op.name}' is {'a' if p.state else 'no'} state, but '{a.name}' is "
        hint = f"`state {a.name}: ...` declares one in a model, `state {p.name}: ...` in an op's header"
        raise TcError(message + ("one" if is_state else "none"), a.span, hint=hint)
    if p.dtype is DType.REAL and given in (DType.REAL, *STORAGE):
        if real is not None and env[real.name] is not given:
            raise TcError(
                f"operand '{p.name}' of op '{op.name}' is real, which '{real.name}' makes {_stored(env[real.name])} in "
                f"this call, but '{a.name}' is {_stored(given)}",
                a.span,
                hint="tensors passed for `real` operands of a call have one type: declare both `real`, or convert one "
                "in an op of its own: y[i] = f32(x[i])",
            )
    elif given is not p.dtype:
        hint = f"declare one of them with the other's type, or convert in an op of its own: y[i] = {p.dtype}(x[i])"
        raise TcError(
            f"operand '{p.name}' of op '{op.name}' is {p.dtype}, but '{a.name}' is {given}", a.span, hint=hint
        )


def _stored(dtype: DType) -> str:
    """How a message names a tensor's type: `real` is the model's own."""
    return "the model's storage type" if dtype is DType.REAL else dtype.value


# ---------------------------------------------------------------------------------------- optimizer


def _check_optimizer(model: Model, o: Optimizer, module: Module) -> None:
    hyper = [n for n, _ in o.hyper]
    for n in hyper:
        if hyper.count(n) > 1:
            raise TcError(f"hyperparameter '{n}' is given twice", o.span, hint="keep one value")
    used: set[str] = set()
    results: set[str] = set()
    for name, what in ((o.schedule, "lr by"), (o.norm, "norm by"), (o.op, "optimizer")):
        if name is None:
            continue
        op = module.ops.get(name)
        if op is None:
            hint = did_you_mean(name, [x for x in module.ops if "." not in x], "op")
            raise TcError(f"`{what} {name}` names an unknown op", o.span, hint=hint)
        groups = o.groups if what == "optimizer" else ()
        _check_bound(model, o, op, groups, hyper, results, used)
        results |= {r.name for r in op.outputs}
    if o.schedule is not None and "lr" not in {r.name for r in module.ops[o.schedule].outputs}:
        raise TcError(f"`lr by {o.schedule}` gives no 'lr'", o.span, hint="name the op's output `lr: f32[]`")
    scalars = sorted(p.name for n in (o.schedule, o.norm, o.op) if n for p in module.ops[n].params if not p.shape)
    for n in hyper:
        if n not in used:
            hint = did_you_mean(n, scalars, "scalar operand")
            raise TcError(f"hyperparameter '{n}' is read by no op of the optimizer", o.span, hint=hint)
    own = {p.name for p in module.ops[o.op].params if not p.shape}
    for g in o.groups:
        for n, e in g.values:
            if n not in own:
                hint = did_you_mean(n, sorted(own), "scalar operand")
                raise TcError(f"group '{g.name}' sets '{n}', which op '{o.op}' does not read", g.span, hint=hint)
            _check_number(e, frozenset(), model, f"the value of '{n}'")
    for n, e in o.hyper:
        _check_number(e, frozenset(), model, f"the value of '{n}'")


def _check_bound(
    model: Model, o: Optimizer, op: Op, groups: tuple[Group, ...], hyper: list[str], results: set[str], used: set[str]
) -> None:
    """Every operand of an op that the optimizer runs gets a value by its name."""
    for p in op.params:
        if p.shape:
            if not p.inout and p.name not in ("p", "g"):
                hint = "tensors it can read are `p` (parameters), `g` (gradients) and its own inout state"
                raise TcError(f"op '{op.name}' reads a tensor '{p.name}'", p.span, hint=hint)
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
                o.span,
                notes=(f"known are {listing(sorted({'step', *hyper, *results}))}",),
                hint=f"add `hyper {p.name} = ...`, or set it in every group",
            )
