"""What the grammar alone cannot tell: which bare names are tensors.

`s = sum m: X[m]` then `y = s / M` reads the scalar `s` and the dimension `M`; only the whole op says which
is which. In a model's call, `linear(h, w)` passes tensors and `f(C * 2)` a number.

    Name("s")  -->  Access("s", ())        in an op, s a scalar operand or temporary
    Name("h")  -->  TensorRef("h")         in a model's call, h not a dimension
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import (
    Access,
    Alias,
    Equation,
    Expr,
    ForLayers,
    Model,
    ModelStatement,
    Name,
    Op,
    OpCall,
    Reduction,
    TensorRef,
    Update,
    map_children,
    names_in,
)
from tcomp.dsl.check_numbers import TRAINING


def resolve_scalars(op: Op) -> Op:
    """The op with every read of a scalar operand or temporary made an access without subscripts."""
    scalars = {o.name for o in op.operands if not o.shape}
    scalars |= {t.name for q in op.equations for t in q.targets if not t.subscripts}
    if not scalars:
        return op

    def expr(e: Expr) -> Expr:
        if isinstance(e, Name):
            return Access(e.id, (), e.span) if e.id in scalars else e
        return map_children(e, expr)

    def equation(q: Equation) -> Equation:
        value = q.value
        new: Expr | Reduction
        if isinstance(value, Reduction):
            new = replace(
                value,
                guard=None if value.guard is None else expr(value.guard),
                key=None if value.key is None else expr(value.key),
                values=tuple(map(expr, value.values)),
            )
        else:
            new = expr(value)
        targets = tuple(replace(t, subscripts=tuple(map(expr, t.subscripts))) for t in q.targets)
        return replace(q, targets=targets, value=new)

    return replace(op, equations=tuple(map(equation, op.equations)))


def resolve_model_arguments(model: Model) -> Model:
    """The model with every call's bare-name argument made a TensorRef, unless it names a number."""
    numbers = set(model.dims) | {n for n, _ in model.lets}
    numbers |= {n for c in model.configs for n, _ in c.values} | {TRAINING}
    if model.optimizer is not None:
        numbers |= {n for n, _ in model.optimizer.hyper}
    numbers -= {p.name for p in model.params} | {i.name for i in model.inputs} | {x.name for x in model.states}

    everywhere = _results(model.forward)
    decode = model.decode
    if decode is not None:
        changed = (
            replace(r, args=tuple(_argument(a, everywhere, numbers) for a in r.args)) for r in decode.replacements
        )
        decode = replace(decode, replacements=tuple(changed))
    return replace(model, forward=tuple(_statement(s, everywhere, numbers) for s in model.forward), decode=decode)


def resolve_update_arguments(update: Update) -> Update:
    """The same of an update's calls: numbers are the dimensions of its operands."""
    numbers = {n for o in update.signature.operands for e in o.shape for n in names_in(e)}
    everywhere = _results(update.body)
    return replace(update, body=tuple(_statement(s, everywhere, numbers) for s in update.body))


def _argument(a: TensorRef | Expr, bound: frozenset[str], numbers: set[str]) -> TensorRef | Expr:
    if isinstance(a, Name) and (a.id in bound or a.id not in numbers):
        return TensorRef(a.id, (), None, a.span)
    return a


def _statement(s: ModelStatement, bound: frozenset[str], numbers: set[str]) -> ModelStatement:
    if isinstance(s, ForLayers):
        inner = bound - {s.index} | _results(s.body)
        return replace(s, body=tuple(_statement(b, inner, numbers | {s.index}) for b in s.body))
    if isinstance(s, Alias):
        return s
    return replace(s, args=tuple(_argument(a, bound, numbers) for a in s.args))


def _results(body: tuple[ModelStatement, ...]) -> frozenset[str]:
    names: set[str] = set()
    for s in body:
        if isinstance(s, OpCall):
            names |= {r.name for r in s.results}
        elif isinstance(s, Alias):
            names.add(s.name)
        else:
            names |= _results(s.body)
    return frozenset(names)
