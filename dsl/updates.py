"""Updates of matrices, and optimizers that a file gives a model of another one.

    optimizer adamw of gpt2:                       -->   model gpt2(B, T):
      group embeddings of wte, wpe: rate = 0.1             param wte: ... in embeddings
      group matrices by muon: rate = 1.0                   optimizer adamw: ...

An `update` is checked as a model whose statements it has: its `inout` operands are what may change (as caches are, in
decoding), the others are inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tcomp.dsl.ast import (
    Cache,
    ForLayers,
    Group,
    InputDecl,
    Item,
    Model,
    ModelStatement,
    Module,
    Op,
    OpCall,
    Operand,
    Optimizer,
    TensorRef,
    Update,
    names_in,
)
from tcomp.dsl.check_calls import check_statements
from tcomp.dsl.check_model_shapes import check_update_shapes
from tcomp.dsl.check_numbers import check_number
from tcomp.dsl.elementwise import elementwise
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean, listing


def with_optimizers(module: Module, items: Sequence[Item]) -> None:
    """Put each optimizer that is of a model in the place of that model's own, and parameters in the groups that name
    them. TcError for a model or a parameter that there is not, or that two name."""
    taken: dict[str, Optimizer] = {}
    for o in (item for item in items if isinstance(item, Optimizer)):
        if not o.of:
            hint = f"write `optimizer {o.op} of MODEL:`, or move the block into the model"
            raise TcError("an optimizer outside of a model does not say whose it is", o.span, hint=hint)
        if o.of not in module.models:
            raise TcError(f"unknown model '{o.of}'", o.span, hint=did_you_mean(o.of, module.models, "model"))
        if o.of in taken:
            note = f"first at {taken[o.of].span}"
            raise TcError(f"a second optimizer of '{o.of}'", o.span, notes=(note,), hint="keep one of the two")
        taken[o.of] = o
        module.models[o.of] = replace(module.models[o.of], optimizer=o)
    for name, model in module.models.items():
        module.models[name] = _regrouped(model)


def _regrouped(model: Model) -> Model:
    """The model with its parameters in the groups of its optimizer that name them."""
    groups = model.optimizer.groups if model.optimizer is not None else ()
    known = {p.name: p for p in model.params}
    group_of: dict[str, str] = {}
    for g in groups:
        for name in g.params:
            if name not in known:
                raise TcError(f"unknown parameter '{name}'", g.span, hint=did_you_mean(name, known, "parameter"))
            if known[name].frozen:
                hint = f"drop `frozen` in the model, or '{name}' here"
                raise TcError(f"'{name}' is frozen, so no optimizer's group trains it", g.span, hint=hint)
            if name in group_of:
                hint = "name it in one of the groups"
                raise TcError(f"'{name}' is in the groups '{group_of[name]}' and '{g.name}'", g.span, hint=hint)
            group_of[name] = g.name
    if not group_of:
        return model
    return replace(model, params=tuple(replace(p, group=group_of.get(p.name, p.group)) for p in model.params))


# ------------------------------------------------------------------------------------------- updates


def as_model(update: Update) -> Model:
    """The update as a model without a loss: statements over its operands."""
    op = update.signature
    dims = dict.fromkeys(n for o in op.operands for e in o.shape for n in sorted(names_in(e)))
    return Model(
        name=op.name,
        dims=tuple(dims),
        configs=(),
        lets=(),
        requires=op.requires,
        params=(),
        inputs=tuple(InputDecl(o.name, o.dtype, o.shape, None, o.span) for o in op.params if not o.inout),
        forward=update.body,
        loss="",
        logits=None,
        optimizer=None,
        caches=tuple(Cache(o.name, o.dtype, o.shape, o.span) for o in op.params if o.inout),
        span=update.span,
    )


def as_update(op: Op) -> Update:
    """An op that trains a tensor, as the update that calls it."""

    def refs(operands: Iterable[Operand]) -> tuple[TensorRef, ...]:
        return tuple(TensorRef(o.name, (), None, o.span) for o in operands)

    signature = replace(op, equations=(), ranges=())
    return Update(signature, (OpCall(refs(op.outputs), op.name, refs(op.params), (), (), op.span),), op.span)


def trainer(name: str, module: Module) -> Op | None:
    """The operands and results of the op or update of that name; None where there is neither."""
    update = module.updates.get(name)
    return module.ops.get(name) if update is None else update.signature


def of_matrices(op: Op) -> bool:
    """Does it train tensors of several axes?"""
    p = op.operand("p")
    return p is not None and len(p.shape) > 1


def by_tensor(op: Op) -> bool:
    """Does it train tensor by tensor, and not all of a group side by side as one vector? So does what is not
    elementwise, which then sees a tensor: its sums, its length, its first element."""
    p = op.operand("p")
    return p is not None and (
        len(p.shape) > 1 or not elementwise(op) or any(o.shape and o.shape != p.shape for o in op.operands)
    )


def group_op(o: Optimizer, group: Group) -> str:
    """The name of the op or update that trains a group."""
    return group.op or o.op


def check_signature(op: Op) -> None:
    """TcError where operands and results of what trains tensor by tensor are not `p`, `g`, states and scalars, and
    `w`."""
    p = op.operand("p")
    if p is None or not p.inout:
        hint = "declare the parameters `inout p: f32[R, C]`"
        raise TcError(f"'{op.name}' does not update 'p', the parameters", op.span, hint=hint)
    for o in op.operands:
        if o.name in ("p", "g", "w") and o.shape != p.shape:
            hint = f"give '{o.name}' the shape of 'p'"
            raise TcError(f"'{o.name}' of '{op.name}' has another shape than 'p'", o.span, hint=hint)
    for o in op.params:
        if o.shape and not o.inout and o.name != "g":
            hint = "tensors it can read are `p` (parameters), `g` (gradients) and its own inout state"
            raise TcError(f"'{op.name}' reads a tensor '{o.name}'", o.span, hint=hint)
        if o.inout and not o.shape:
            raise TcError(f"state '{o.name}' of '{op.name}' is a scalar", o.span, hint="write it f32[1], a vector")
        unknown = {n for e in o.shape for n in names_in(e)} - {n for e in p.shape for n in names_in(e)}
        if unknown:
            hint = "extents of a state follow from those of 'p'"
            if len(o.shape) > len(p.shape) == 1:
                hint += f": declare it `{o.name}: {o.dtype}[N]`, or `p` with the axes of a matrix, `inout p: f32[R, C]`"
            raise TcError(f"the shape of '{o.name}' has {listing(sorted(unknown))}, which 'p' does not give", o.span,
                          hint=hint)  # fmt: skip
    for o in op.outputs:
        if o.name != "w":
            hint = "its only result is `w: real[R, C]`, the parameters as the model reads them; state is `inout`"
            raise TcError(f"'{op.name}' gives '{o.name}'", o.span, hint=hint)


def check_update(update: Update, module: Module) -> None:
    """All checks of one update: operands, calls, and shapes at some sizes."""
    op = update.signature
    if op.name in module.ops:
        note = f"the op is declared at {module.ops[op.name].span}"
        raise TcError(f"'{op.name}' is an op and an update", update.span, notes=(note,), hint="rename one of them")
    seen: set[str] = set()
    for o in op.operands:
        if o.name in seen:
            raise TcError(f"'{o.name}' is declared twice", o.span, hint="rename one of them")
        if o.state:
            raise TcError(f"operand '{o.name}' is a model's state", o.span, hint="state of an optimizer is `inout`")
        seen.add(o.name)
    if not of_matrices(op) and op.operand("p") is not None:
        hint = f"a group's parameters side by side are for an op: `op {op.name}(inout p: f32[N], ...)`"
        raise TcError(f"update '{op.name}' is of vectors", update.span, hint=hint)
    check_signature(op)
    model = as_model(update)
    numbers = frozenset(model.dims)
    for e in op.requires:
        check_number(e, numbers, "a `require`")
    tensors = {o.name: o.dtype for o in op.params}
    bound = check_statements(model, update.body, tensors, numbers, module)
    for s in calls(update.body):
        _check_changes(s, module)
    _check_conditions(update, update.body, set(tensors))
    changed = {a.name for s in calls(update.body) for p, a in _passed(s, module) if p.inout}
    for o in op.params:
        if o.inout and o.name not in changed:
            hint = f"pass it to an op that declares it `inout`, or declare '{o.name}' without the word"
            raise TcError(f"no call updates '{o.name}'", o.span, hint=hint)
    _check_order(update, module)
    for o in op.outputs:
        made = bound.get(o.name)
        if made is not o.dtype:
            what = "is never computed" if made is None else f"is {made}, not {o.dtype}"
            raise TcError(f"'{o.name}' of '{op.name}' {what}", o.span, hint=f"name a call's result so: {o.name} = ...")
    check_update_shapes(model, module, {o.name: o.shape for o in op.outputs})


def calls(body: Iterable[ModelStatement]) -> Iterator[OpCall]:
    """All calls of the statements."""
    for s in body:
        if isinstance(s, ForLayers):
            yield from calls(s.body)
        elif isinstance(s, OpCall):
            yield s


def _passed(s: OpCall, module: Module) -> Iterator[tuple[Operand, TensorRef]]:
    for p, a in zip(module.ops[s.op].params, s.args, strict=True):
        if isinstance(a, TensorRef):
            yield p, a


def _check_changes(s: OpCall, module: Module) -> None:
    """What a call updates is whole, of the same type, and not passed to it a second time."""
    names = [a.name for _, a in _passed(s, module)]
    for p, a in _passed(s, module):
        if not p.inout:
            continue
        if names.count(a.name) > 1:
            hint = f"what '{s.op}' updates can be no other operand of the call"
            raise TcError(f"'{a.name}' is passed twice, and updated as '{p.name}'", a.span, hint=hint)
        if a.subscripts or a.shape is not None:
            raise TcError(f"a part or a view of '{a.name}' is updated", a.span, hint=f"pass '{a.name}' as it is")


def _check_order(update: Update, module: Module) -> None:
    """The parameters as the model reads them are those that the last call leaves."""
    body = list(calls(update.body))
    last = max((at for at, s in enumerate(body) if any(r.name == "w" for r in s.results)), default=len(body))
    for s in body[last + 1 :]:
        late = next((a for p, a in _passed(s, module) if p.inout and a.name == "p"), None)
        if late is not None:
            hint = f"let '{s.op}' give `w`, or call it before the one that does"
            raise TcError(f"'{update.name}' changes 'p' behind the call that gives 'w'", late.span, hint=hint)


def _check_conditions(update: Update, body: Iterable[ModelStatement], bound: set[str]) -> None:
    """What a call binds only where a condition holds has a value elsewhere, too; a loop may have no turns."""
    for s in body:
        if isinstance(s, ForLayers):
            _check_conditions(update, s.body, set(bound))
            inner = {r.name for c in calls(s.body) for r in c.results}
            bound |= inner
            continue
        assert isinstance(s, OpCall), "an update's statements are calls and loops"
        names = {r.name for r in s.results} - {"_"}
        new = sorted(names - bound)
        if s.where is not None and new:
            hint = f"bind '{new[0]}' above, whatever the dimensions are"
            raise TcError(f"'{new[0]}' has a value only where a condition holds", s.span, hint=hint)
        bound |= names
