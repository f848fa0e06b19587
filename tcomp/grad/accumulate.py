"""Variants of a backward op: fewer results (`restricted`), or results added to what is there (`accumulating`).

  backward linear(W: f32[N, K], dY: f32[M, N]) -> dX: f32[M, K], db: f32[N]:
    dX[m, k] = sum n: dY[m, n] * W[n, k]
    db[n] = sum m: dY[m, n]
restricted to db, accumulating into db  -->
  backward linear(dY: f32[M, N], inout db: f32[N]):
    db[n] += sum m: dY[m, n]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from tcomp.dsl.ast import Access, Call, DType, Equation, Expr, Name, Op, Operand, Reduction, Target, names_in
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import dimensions
from tcomp.grad.parts import all_names, disjoint, fresh, map_value, names, reads, rename_tensor, writes


def restricted(op: Op, outputs: frozenset[str]) -> Op:
    """The op with only these results (outputs, or inout parameters): the equations and operands they need.

    Dimensions that only a dropped operand's shape gave become static dims. TcError for an unknown result.
    """
    results = {o.name for o in op.written}
    for name in sorted(outputs - results):
        raise TcError(f"op '{op.name}' has no result '{name}'", op.span, hint=f"it gives: {', '.join(sorted(results))}")
    kept = _needed(op, outputs)
    touched = set(outputs).union(*(reads(eq) | writes(eq) for eq in kept))
    params = tuple(p for p in op.params if p.name in touched)
    results_kept = tuple(o for o in op.outputs if o.name in outputs)
    used = {n for eq in kept for n in names(eq)}
    used |= {i for eq in kept if isinstance(eq.value, Reduction) for i in eq.value.indices}
    ranges = {n: e for n, e in op.ranges if n in used}
    for n, e in _lost_ranges(op, kept, {o.name for o in (*params, *results_kept)}):
        ranges.setdefault(n, e)
    given = {e.id for p in params for e in p.shape if isinstance(e, Name)}
    needed = used | {n for o in (*params, *results_kept) for e in o.shape for n in names_in(e)}
    needed |= {n for e in ranges.values() for n in names_in(e)}
    dims = tuple(d for d in dimensions(op) if d in needed and d not in given)
    listed = tuple(d for d in op.dims if d in dims) + tuple(d for d in dims if d not in op.dims)
    requires = tuple(r for r in op.requires if names_in(r) <= given | set(listed))
    return replace(
        op, params=params, outputs=results_kept, equations=kept, ranges=tuple(ranges.items()), dims=listed,
        requires=requires,
    )  # fmt: skip


def _needed(op: Op, outputs: frozenset[str]) -> tuple[Equation, ...]:
    """The equations that these results take, in order."""
    wanted = set(outputs)
    kept: list[Equation] = []
    for eq in reversed(op.equations):
        if writes(eq) & wanted:
            kept.append(eq)
            wanted |= reads(eq)
    return tuple(reversed(kept))


def _lost_ranges(op: Op, equations: Sequence[Equation], operands: set[str]) -> Iterator[tuple[str, Expr]]:
    """An output that is only read on the way becomes a temporary, whose shape no longer says its indices' ranges."""
    for t in (t for eq in equations for t in eq.targets):
        o = op.operand(t.name)
        if o is not None and o.name not in operands:
            yield from ((s.id, e) for s, e in zip(t.subscripts, o.shape, strict=True) if isinstance(s, Name))


def accumulating(op: Op, outputs: frozenset[str]) -> Op:
    """The op adding into these outputs, which become inout parameters: every `=` of theirs becomes `+=`.

    A result that the op itself reads again, or that shares an equation with others (a monoid reduction), is
    computed in a temporary first. TcError when a result is overwritten by a later equation.
    """
    for name in sorted(outputs - {o.name for o in op.outputs}):
        raise TcError(f"op '{op.name}' has no output '{name}'", op.span, hint="name one of its outputs")
    for name in outputs:
        _check_written_once(op, name)
    taken = all_names(op)
    equations: list[Equation] = list(op.equations)
    for name in sorted(outputs):
        if any(name in reads(eq) or (name in writes(eq) and len(eq.targets) > 1) for eq in equations):
            equations = _through_temporary(op, name, equations, taken)
        else:
            equations = [replace(eq, accumulate=True) if eq.target.name == name else eq for eq in equations]
    return _inout(op, outputs, equations)


def _inout(op: Op, outputs: frozenset[str], equations: list[Equation]) -> Op:
    """The op with these equations and these outputs as inout parameters."""
    moved = tuple(replace(o, inout=True) for o in op.outputs if o.name in outputs)
    rest = tuple(o for o in op.outputs if o.name not in outputs)
    given = {e.id for o in moved for e in o.shape if isinstance(e, Name)}
    dims = tuple(d for d in op.dims if d not in given)
    return replace(op, params=(*op.params, *moved), outputs=rest, equations=tuple(equations), dims=dims)


def largest(op: Op, outputs: frozenset[str]) -> Op:
    """The op keeping the larger of what is there and what it gives, element by element, in these outputs, which
    become inout parameters.

      backward f(x: f32[N]) -> dh: f32[N]:              dh[i] = abs(x[i])        -->
      backward f(x: f32[N], inout dh: f32[N]):          dh_new[i] = abs(x[i])
                                                        dh[i] = max(dh[i], dh_new[i])
    """
    taken = all_names(op)
    equations: list[Equation] = list(op.equations)
    for name in sorted(outputs):
        equations = _through_temporary(op, name, equations, taken)
        last = equations[-1]
        assert isinstance(last.value, Access)
        larger = Call("max", (Access(name, last.target.subscripts), last.value))
        equations[-1] = replace(last, accumulate=False, value=larger)
    return _inout(op, outputs, equations)


def held(op: Op, dtypes: Mapping[str, DType]) -> Op:
    """The op with these operands stored in other real types: sums kept in f32 where activations are bf16.

    backward linear(X: bf16[M, K], dY: bf16[M, N]) -> dW: bf16[N, K]      held with dW in f32 -->
    backward linear(X: bf16[M, K], dY: bf16[M, N]) -> dW: f32[N, K]
    """
    if all(o.dtype is dtypes.get(o.name, o.dtype) for o in op.operands):
        return op

    def stored(o: Operand) -> Operand:
        return replace(o, dtype=dtypes.get(o.name, o.dtype))

    return replace(op, params=tuple(map(stored, op.params)), outputs=tuple(map(stored, op.outputs)))


def _check_written_once(op: Op, name: str) -> None:
    assigned = [t for eq in op.equations if not eq.accumulate for t in eq.targets if t.name == name]
    for a, b in combinations(assigned, 2):
        if not disjoint(a.subscripts, b.subscripts):
            raise TcError(
                f"'{name}' is assigned twice, so it cannot be added to what is there",
                b.span,
                hint="make the later assignment a `+=`, or compute into a temporary first",
            )


def _through_temporary(op: Op, name: str, equations: list[Equation], taken: set[str]) -> list[Equation]:
    """`o[i] = ...` --> `o_new[i] = ...` for all its equations, then `o[i] += o_new[i]` at the end."""
    new = fresh(f"{name}_new", taken)
    first: Target | None = None
    out: list[Equation] = []
    for eq in equations:
        for t in eq.targets:
            if t.name == name and first is None:
                first = t
        targets = tuple(replace(t, name=new) if t.name == name else t for t in eq.targets)
        value = map_value(eq.value, lambda e: rename_tensor(e, name, new))
        out.append(replace(eq, targets=targets, value=value))
    assert first is not None
    if not all(isinstance(s, Name) for s in first.subscripts):
        raise TcError(
            f"'{name}' is read again by op '{op.name}' and written in parts, so it cannot be added to what is there",
            first.span,
            hint="compute it in a temporary with plain indices first",
        )
    return [*out, Equation((Target(name, first.subscripts),), True, Access(new, first.subscripts), first.span)]
