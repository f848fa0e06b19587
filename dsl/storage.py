"""`real`: the element type that a call binds, as shapes bind dimensions.

    op scale(X: real[N], w: f32[]) -> Y: real[N]      bound to bf16 -->
    op scale(X: bf16[N], w: f32[]) -> Y: bf16[N]

An op with `real` operands is generic over how tensors are stored. It computes in f32 at every binding, so what was
checked and derived once holds for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Call, DType, Equation, Expr, Op, Operand, Reduction, Target, map_children, walk
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import listing

STORAGE = (DType.F32, DType.BF16, DType.F16)
"""What `real` may stand for: the types whose arithmetic is in f32."""


def is_generic(op: Op) -> bool:
    """Whether the op speaks of `real` anywhere."""
    if any(o.dtype is DType.REAL for o in op.operands):
        return True
    return any(t.dtype is DType.REAL for q in op.equations for t in q.targets) or any(
        isinstance(n, Call) and n.function == DType.REAL.value
        for q in op.equations
        for e in _expressions(q)
        for n in walk(e)
    )


def bound(op: Op, storage: DType) -> Op:
    """The op with `real` made `storage`: operands, temporaries and casts. An op without `real` is given as it is."""
    if storage is DType.REAL or not is_generic(op):
        return op

    def dtype(d: DType) -> DType:
        return storage if d is DType.REAL else d

    def operand(o: Operand) -> Operand:
        return replace(o, dtype=dtype(o.dtype))

    def expression(e: Expr) -> Expr:
        e = map_children(e, expression)
        return replace(e, function=storage.value) if isinstance(e, Call) and e.function == "real" else e

    def target(t: Target) -> Target:
        declared = t.dtype if t.dtype is None else dtype(t.dtype)
        return replace(t, dtype=declared, subscripts=tuple(map(expression, t.subscripts)))

    def equation(q: Equation) -> Equation:
        v = q.value
        value: Expr | Reduction
        if isinstance(v, Reduction):
            value = replace(
                v,
                guard=None if v.guard is None else expression(v.guard),
                key=None if v.key is None else expression(v.key),
                values=tuple(map(expression, v.values)),
            )
        else:
            value = expression(v)
        return replace(q, targets=tuple(map(target, q.targets)), value=value)

    return replace(
        op,
        params=tuple(map(operand, op.params)),
        outputs=tuple(map(operand, op.outputs)),
        equations=tuple(map(equation, op.equations)),
    )


def binding(op: Op, given: Mapping[str, DType], default: DType) -> DType:
    """What a call binds `real` to: the type of the tensors passed for its `real` operands (by operand name), else
    `default`. TcError where two of them differ, or one is no storage type."""
    found: dict[DType, str] = {}
    for p in op.params:
        if p.dtype is DType.REAL and p.name in given:
            d = given[p.name]
            if d is not DType.REAL and d not in STORAGE:
                raise TcError(
                    f"operand '{p.name}' of op '{op.name}' is real, which cannot be {d}",
                    p.span,
                    hint=f"`real` stands for {listing(s.value for s in STORAGE)}",
                )
            found.setdefault(d, p.name)
    if len(found) > 1:
        (a, first), (b, second) = list(found.items())[:2]
        raise TcError(
            f"`real` of op '{op.name}' would be {a} (operand '{first}') and {b} (operand '{second}')",
            next(p.span for p in op.params if p.name == second),
            hint="all tensors passed for `real` operands of a call have one type; convert one: y[i] = f32(x[i])",
        )
    return next(iter(found), default)


def _expressions(q: Equation) -> list[Expr]:
    v = q.value
    left = [s for t in q.targets for s in t.subscripts]
    if isinstance(v, Reduction):
        return [*left, *(e for e in (v.guard, v.key, *v.values) if e is not None)]
    return [*left, v]
