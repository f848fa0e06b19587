"""An equation of one backward op computed by the op before it, which makes the gradient that the equation reads.

  backward linear(W: f32[N, K], dY: f32[M, N]) -> dX: f32[M, K]:
    dX[m, k] = sum n: dY[m, n] * W[n, k]
  backward act(W: f32[N, K], P: f32[M, N], dY: f32[M, N]) -> dX: f32[M, K]:
    dP[m, n] = dY[m, n] * slope(P[m, n])
    dX[m, k] = sum n: dP[m, n] * W[n, k]
dP computed where dX of the first is, which is dY of the second  -->
  backward linear(W: f32[N, K], dY: f32[M, N], P: f32[M, K]) -> dX: f32[M, K]:
    dX_sum[m, k] = sum n: dY[m, n] * W[n, k]
    dX[m, k] = dX_sum[m, k] * slope(P[m, k])
  backward act(W: f32[N, K], dP: f32[M, N]) -> dX: f32[M, K]:
    dX[m, k] = sum n: dP[m, n] * W[n, k]

The result keeps its name, so that schedules which speak of it hold. What it was before is a temporary, NAME_sum, which
is not rounded; the equation's is rounded as the result is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Access, Equation, Expr, Name, Num, Op, Operand, Reduction, Target, accesses_in, map_children
from tcomp.grad.accumulate import restricted
from tcomp.grad.parts import all_names, fresh, map_equation, reads, rename_tensor, writes


class NotEarly(Exception):
    """Why an equation cannot be computed by the op before: what its message says of the two ops."""


@dataclass(frozen=True)
class Pointwise:
    """`target[indices] = value` over all of `gradient`, the incoming gradient among the op's operands, which nothing
    else in the op reads. `others` are the further operands that it reads."""

    target: str
    gradient: str
    others: tuple[str, ...]
    indices: tuple[str, ...]
    value: Expr


def pointwise(op: Op, target: str, gradients: Sequence[str]) -> Pointwise:
    """The equation that gives the temporary `target`, of one of the operands `gradients`. NotEarly where it is none
    such."""
    known = {o.name for o in op.operands}
    own = [eq for eq in op.equations if target in writes(eq)]
    if not own or target in known:
        temporaries = dict.fromkeys(t for eq in op.equations for t in sorted(writes(eq)) if t not in known)
        listed = f"its temporaries: {', '.join(temporaries)}" if temporaries else "it has none"
        raise NotEarly(f"'{op.name}' has no temporary '{target}' ({listed})")
    eq = own[0]
    indices = tuple(s.id for s in eq.target.subscripts if isinstance(s, Name))
    if len(own) > 1 or eq.accumulate or isinstance(eq.value, Reduction) or len(indices) < len(eq.target.subscripts):
        raise NotEarly(f"'{target}' of '{op.name}' is not one equation without a sum")
    used = dict.fromkeys(a.tensor for a in accesses_in(eq.value))
    unknown = sorted(set(used) - known)
    if unknown:
        raise NotEarly(f"'{target}' of '{op.name}' reads the temporary '{unknown[0]}'")
    incoming = [n for n in used if n in gradients]
    if len(incoming) != 1:
        raise NotEarly(f"'{target}' of '{op.name}' reads {', '.join(incoming) or 'no incoming gradient'}, not one")
    gradient = incoming[0]
    if any(gradient in reads(other) | writes(other) for other in op.equations if other is not eq):
        raise NotEarly(f"'{op.name}' reads '{gradient}' in other equations too")
    point = tuple(map(Name, indices))
    for a in accesses_in(eq.value):
        if a.tensor == gradient and a.subscripts != point:
            raise NotEarly(f"'{target}' of '{op.name}' reads '{gradient}' at another point than it writes")
    return Pointwise(target, gradient, tuple(n for n in used if n != gradient), indices, eq.value)


def given(op: Op, p: Pointwise) -> Op:
    """The op with the equation's target in the place of the gradient among its operands."""
    old = op.operand(p.gradient)
    assert old is not None
    new = replace(old, name=p.target)
    params = tuple(new if o is old else o for o in op.params)
    equations = tuple(eq for eq in op.equations if p.target not in writes(eq))
    results = frozenset(o.name for o in op.written)
    return restricted(replace(op, params=params, equations=equations), results)


def extended(op: Op, result: str, p: Pointwise, reader: Op, dims: Mapping[str, int]) -> tuple[Op, dict[str, str]]:
    """The op whose `result` is what the equation `p` of `reader`, at dimensions `dims`, makes of it; with the names
    that the equation's further operands have there -> in `reader`. NotEarly where the result is not written whole."""
    taken = all_names(op)
    equations, sums, point = through_sum(op, result, taken)
    shape, gradient = _operand(op, result).shape, _operand(reader, p.gradient)
    names: dict[str, Expr] = {d: Num(n) for d, n in dims.items()}
    names |= {e.id: s for e, s in zip(gradient.shape, shape, strict=True) if isinstance(e, Name)}
    names |= dict(zip(p.indices, point, strict=True))
    tensors = {p.gradient: sums} | {n: fresh(n, taken) for n in p.others}
    added = tuple(_further(_operand(reader, n), tensors[n], names) for n in p.others)
    last = Equation((Target(result, point),), False, _translated(p.value, names, tensors))
    form = replace(op, params=(*op.params, *added), equations=(*equations, last))
    return form, {tensors[n]: n for n in p.others}


def is_early(op: Op) -> bool:
    """Does the op compute an equation of the op behind it?"""
    written = {t.name for eq in op.equations for t in eq.targets}
    return any(f"{o.name}_sum" in written for o in op.outputs)


def through_sum(op: Op, result: str, taken: set[str]) -> tuple[list[Equation], str, tuple[Expr, ...]]:
    """The op's equations with `result` made in a temporary NAME_sum, its name and its indices. NotEarly where the
    result is added to, written in parts or not of plain indices."""
    own = [eq for eq in op.equations if result in writes(eq)]
    o = _operand(op, result)
    plain = len(own) == 1 and all(isinstance(s, Name) for s in own[0].target.subscripts)
    if not plain or o.inout or own[0].accumulate or len(own[0].targets) > 1:
        raise NotEarly(f"'{op.name}' does not write all of '{result}' in one equation of its own")
    sums = fresh(f"{result}_sum", taken)

    def renamed(eq: Equation) -> Equation:
        targets = tuple(replace(t, name=sums) if t.name == result else t for t in eq.targets)
        return map_equation(replace(eq, targets=targets), lambda e: rename_tensor(e, result, sums))

    return [renamed(eq) for eq in op.equations], sums, own[0].target.subscripts


def with_sums(op: Op) -> Op:
    """The op with each result made in a temporary NAME_sum where that is possible: all names that a schedule of the op
    may speak of, whether or not another op's equation follows."""
    taken = all_names(op)
    for o in op.outputs:
        try:
            equations, sums, point = through_sum(op, o.name, taken)
        except NotEarly:
            continue
        op = replace(op, equations=(*equations, Equation((Target(o.name, point),), False, Access(sums, point))))
    return op


def _operand(op: Op, name: str) -> Operand:
    found = op.operand(name)
    assert found is not None, f"'{op.name}' has no operand '{name}'"
    return found


def _further(o: Operand, name: str, names: Mapping[str, Expr]) -> Operand:
    """An operand of the reader as one of the op before, its shape in that op's dimensions."""
    return replace(o, name=name, shape=tuple(_translated(e, names, {}) for e in o.shape), inout=False)


def _translated(e: Expr, names: Mapping[str, Expr], tensors: Mapping[str, str]) -> Expr:
    """The expression with indices, dimensions and tensors replaced, all at once."""
    if isinstance(e, Name):
        return names.get(e.id, e)
    e = map_children(e, lambda x: _translated(x, names, tensors))
    return replace(e, tensor=tensors.get(e.tensor, e.tensor)) if isinstance(e, Access) else e
