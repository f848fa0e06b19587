"""Checks of the calls of a model's text: operands, views, annotations, and what each call gives a name to."""

from __future__ import annotations

from collections.abc import Iterable

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
    Operand,
    Span,
    TensorRef,
    names_in,
)
from tcomp.dsl.check_numbers import BATCH_NUMBER, TRAINING, check_number
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import count, did_you_mean, listing
from tcomp.dsl.recipes import RECIPES
from tcomp.dsl.storage import STORAGE
from tcomp.dsl.targets import family_of
from tcomp.dsl.variants import QUANTISED, SEVERAL

ANNOTATIONS = {"recompute": 0, "chunks": 1, "at_once": 1}


def check_statements(
    model: Model, body: Iterable[ModelStatement], tensors: dict[str, DType], numbers: frozenset[str], module: Module
) -> dict[str, DType]:
    """The tensors in force after the statements, with their types."""
    env = dict(tensors)
    for s in body:
        if isinstance(s, ForLayers):
            check_number(s.extent, numbers, "the number of layers")
            if s.index in numbers or s.index in env or s.index == TRAINING:
                raise TcError(f"loop variable '{s.index}' is already taken", s.span, hint="rename it")
            env |= check_statements(model, s.body, env, numbers | {s.index}, module)
        elif isinstance(s, Alias):
            _check_alias(model, s, env, numbers)
            env[s.name] = env[s.value.name]
        else:
            _check_call(model, s, env, numbers, module)
    return env


def _check_call(model: Model, s: OpCall, env: dict[str, DType], numbers: frozenset[str], module: Module) -> None:
    """Check one call; `env` gains its results."""
    op = _called(model, s, module)
    real: TensorRef | None = None
    for p, a in zip(op.params, s.args, strict=True):
        _check_argument(model, op, p, a, env, numbers, real)
        if p.dtype is DType.REAL and real is None and isinstance(a, TensorRef):
            real = a
    _check_dimensions(op, s, numbers)
    if s.where is not None:
        for name in sorted(names_in(s.where) - numbers):
            hint = "which calls there are is known when the step is built: conditions are on dimensions of the operands"
            raise TcError(f"the condition of a call reads '{name}', which is no dimension", s.where.span, hint=hint)
        check_number(s.where, numbers, "the condition of a call")
    for at, a in enumerate(s.annotations):
        if a.function not in SEVERAL and any(a.function == b.function for b in s.annotations[:at]):
            raise TcError(f"a second '{a.function}' behind one call", a.span, hint="keep one of them")
        _check_annotation(op, a, numbers, module)
    _check_results(model, op, s, numbers)
    for r, o in zip(s.results, op.outputs, strict=True):
        if r.name != "_":
            dtype = o.dtype if o.dtype is not DType.REAL or real is None else env[real.name]
            if s.where is not None and env.get(r.name, dtype) is not dtype:
                hint = "bind it to tensors of one type"
                message = f"'{r.name}' would be {dtype} where the condition holds, else {env[r.name]}"
                raise TcError(message, r.span, hint=hint)
            env[r.name] = dtype


def _called(model: Model, s: OpCall, module: Module) -> Op:
    """The op of a call. TcError where there is none, where it updates what must keep its value, or takes another number
    of operands."""
    op = module.ops.get(s.op)
    if op is None and s.op in module.updates:
        hint = "groups of an optimizer are trained by it; what it does to a tensor its calls say"
        raise TcError(f"'{s.op}' is an update, and no op to call", s.span, hint=hint)
    if op is None:
        hint = did_you_mean(s.op, [o for o in module.ops if "." not in o], "op")
        if not hint.startswith("did"):
            hint = f"declare `op {s.op}(...)`, or import the file that does"
        raise TcError(f"unknown op '{s.op}'", s.span, hint=hint)
    caches = {c.name for c in model.caches}
    given = dict(zip([p.name for p in op.params], s.args, strict=False))
    inout = next((p for p in op.params if p.inout and getattr(given.get(p.name), "name", "") not in caches), None)
    if inout is not None:
        hint = "an op in `forward` gives new tensors; in-place ops belong to the optimizer, or to caches of `decode`"
        if not model.loss:
            hint = "an update may change what it declares `inout`"
        raise TcError(f"op '{op.name}' updates '{inout.name}' in place", s.span, hint=hint)
    if len(s.args) != len(op.params):
        raise TcError(
            f"op '{op.name}' takes {count(len(op.params), 'operand')}, not {len(s.args)}",
            s.span,
            hint=f"write {op.name}({', '.join(p.name for p in op.params)})",
        )
    return op


def _check_dimensions(op: Op, s: OpCall, numbers: frozenset[str]) -> None:
    """TcError where a dimension is given that the op does not have, or one is not that no operand's shape names."""
    for name, e in s.keywords:
        if name not in op.dims:
            hint = did_you_mean(name, op.dims, "static dimension")
            raise TcError(f"op '{op.name}' has no dimension '{name}' to give", s.span, hint=hint)
        check_number(e, numbers, f"the value of '{name}'")
    named = {n for n, _ in s.keywords} | {n for p in op.params for e in p.shape for n in names_in(e)}
    for d in op.dims:
        if d not in named:
            hint = f"pass it: {op.name}(..., {d} = ...)"
            raise TcError(f"op '{op.name}' needs its dimension '{d}'", s.span, hint=hint)


def _check_annotation(op: Op, a: Call, numbers: frozenset[str], module: Module) -> None:
    if a.function == "early":
        return _check_early(op, a)
    if a.function in QUANTISED:
        return _check_quantised(a, module)
    if a.function not in ANNOTATIONS:
        hint = did_you_mean(a.function, [*ANNOTATIONS, "early", *RECIPES], "annotation")
        raise TcError(f"unknown annotation '{a.function}'", a.span, hint=hint)
    if len(a.args) != ANNOTATIONS[a.function]:
        number = count(ANNOTATIONS[a.function], "value")
        raise TcError(f"'{a.function}' takes {number}", a.span, hint="write `[recompute]` or `[chunks(8)]`")
    if a.function == "at_once":
        return _check_at_once(op, a, module)
    for e in a.args:
        check_number(e, numbers, f"the annotation '{a.function}'")


def _check_results(model: Model, op: Op, s: OpCall, numbers: frozenset[str]) -> None:
    """TcError where results have names that are taken, or are too many or too few."""
    if len(s.results) != len(op.outputs):
        raise TcError(
            f"op '{op.name}' gives {count(len(op.outputs), 'tensor')}, but "
            f"{len(s.results)} {'is' if len(s.results) == 1 else 'are'} named here",
            s.results[0].span,
            hint=f"it gives {listing(o.name for o in op.outputs)}; write `_` for one that is not needed",
        )
    for r in s.results:
        if r.name == "_":
            continue
        _check_bound(model, r.name, f"{s.op}(...)", r.span, numbers)
        for e in r.shape or ():
            check_number(e, numbers, "a shape")


def _check_alias(model: Model, s: Alias, env: dict[str, DType], numbers: frozenset[str]) -> None:
    """TcError where a further name is taken, or what it is to mean is no tensor that may have one."""
    _check_bound(model, s.name, s.value.name, s.span, numbers)
    _check_known(s.value, env, numbers)
    if any(x.name == s.value.name for x in model.states):
        hint = f"pass '{s.value.name}' itself to the call whose op declares it"
        raise TcError(f"'{s.value.name}' is a state, which has one name", s.value.span, hint=hint)


def _check_bound(model: Model, name: str, value: str, span: Span, numbers: frozenset[str]) -> None:
    """TcError where a statement gives a name that is taken for the whole step to `value`."""
    kept = {p.name for p in model.params} | {i.name for i in model.inputs}
    kept |= {c.name for c in model.caches} | {x.name for x in model.states}
    if name in numbers:
        raise TcError(f"'{name}' is a dimension and cannot be bound to a tensor", span, hint="rename the tensor")
    if name == BATCH_NUMBER and model.loss:
        raise TcError(f"'{name}' counts the batches of a run", span, hint="rename the tensor")
    if name in kept:
        hint = f"it keeps its value for the whole step: write {name}_2 = {value}, and read {name}_2 below"
        raise TcError(f"'{name}' is a parameter, an input or a state", span, hint=hint)


def _check_known(a: TensorRef, env: dict[str, DType], numbers: frozenset[str]) -> None:
    """TcError where there is no such tensor, or its slice or shape is of other than numbers."""
    if a.name == "_":
        raise TcError("`_` names no tensor", a.span, hint="give the result a name where it is computed")
    if a.name not in env:
        hint = did_you_mean(a.name, env, "tensor")
        raise TcError(f"unknown tensor '{a.name}'", a.span, hint=hint)
    for e in (*a.subscripts, *(a.shape or ())):
        check_number(e, numbers, f"the shape of '{a.name}'" if a.shape else f"the layer of '{a.name}'")


def _check_at_once(op: Op, a: Call, module: Module) -> None:
    """TcError where the op that an annotation names is not the call's op and its backward in one."""
    name = a.args[0].id if isinstance(a.args[0], Name) else ""
    both, own = module.ops.get(name), {o.name: o for o in op.operands}
    if both is None:
        hint = did_you_mean(name, [o for o in module.ops if "." not in o], "op")
        raise TcError("`at_once` does not name an op", a.span, hint=hint)
    for o in both.operands:
        like = own.get(o.name) or own.get(o.name[1:] if o.name[:1] == "d" else "")
        if like is None or (like.dtype, like.shape) != (o.dtype, o.shape):
            hint = f"it has operands of '{op.name}' ({listing(own)}), and gradients of them (d before the name)"
            raise TcError(
                f"'{o.name}' of op '{name}' is neither an operand of '{op.name}' nor a gradient", a.span, hint=hint
            )


def _check_early(op: Op, a: Call) -> None:
    """TcError where an annotation names no temporary (whether the backward has it is known when that is derived), or a
    target that there is not."""
    hint = f"write `[early(dP)]`, or `[early(dP, gpu)]`; `tcomp grad` prints the backward of '{op.name}'"
    if not a.args or not isinstance(a.args[0], Name):
        raise TcError("`early` does not name a temporary of the call's backward", a.span, hint=hint)
    for e in a.args[1:]:
        if not isinstance(e, Name) or family_of(e.id) is None:
            raise TcError("behind the temporary, `early` takes targets", a.span, hint=hint)


def _check_quantised(a: Call, module: Module) -> None:
    """TcError where an annotation names no two ops, or a target that there is not (whether they fit the ops that they
    take the places of is known in the graph)."""
    written = f"{a.function}(MAKER, READER"
    hint = f"write {written}), or {written}, sm_90a), among the arguments of fp8(..)"
    names = [e.id if isinstance(e, Name) else "" for e in a.args]
    if len(names) < 2 or not all(names):
        raise TcError(f"`{a.function}` does not name two ops", a.span, hint=hint)
    for name in names[:2]:
        if name not in module.ops:
            hint = did_you_mean(name, [o for o in module.ops if "." not in o], "op")
            raise TcError(f"`{a.function}` names an unknown op '{name}'", a.span, hint=hint)
    for name in names[2:]:
        if family_of(name) is None:
            raise TcError(f"behind the two ops, `{a.function}` takes targets", a.span, hint=hint)


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
        own = {TRAINING} if model.loss else set()  # (an update has none, and only trains)
        check_number(a, numbers | hyper | own, "an operand")
        return
    _check_known(a, env, numbers)
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
