"""From the equations of a derivative to an op: forward values it needs again, operands, dimensions, ranges."""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import (
    Access,
    DType,
    Equation,
    Expr,
    Name,
    Op,
    Operand,
    Reduction,
    Target,
    accesses_in,
    names_in,
    substitute,
)
from tcomp.dsl.check import infer
from tcomp.dsl.check_points import meeting
from tcomp.dsl.errors import TcError
from tcomp.dsl.extents import same
from tcomp.grad.forward import Forward
from tcomp.grad.parts import expressions, map_equation, names, reads, rename_tensor, writes
from tcomp.grad.simplify import rewrite
from tcomp.numeric import NARROW


def recomputed(forward: Forward, equations: list[Equation]) -> tuple[int, int]:
    """How much of the forward op a derivative computes again: (reductions, equations), its own included."""
    again = forward_equations(forward, equations)
    return sum(isinstance(eq.value, Reduction) for eq in [*again, *equations]), len(again) + len(equations)


def forward_equations(forward: Forward, equations: list[Equation]) -> list[Equation]:
    """The forward equations of the temporaries that these equations read, directly or not."""
    temporaries = set(forward.info.temporaries)
    wanted = set().union(*(reads(eq) for eq in equations)) & temporaries
    out: list[Equation] = []
    for eq in reversed(forward.equations):
        if writes(eq) & wanted:
            if isinstance(eq.value, Reduction) and eq.value.key is not None:
                eq = _needed_fields(eq, eq.value, wanted)
            eq = replace(eq, targets=tuple(t for t in eq.targets))
            out.append(eq)
            wanted |= reads(eq) & temporaries
    return out[::-1]


def _needed_fields(eq: Equation, r: Reduction, wanted: set[str]) -> Equation:
    """A monoid reduction without the fields that nobody reads; the key field stays."""
    kept = [(t, v) for t, v in zip(eq.targets[1:], r.values, strict=True) if t.name in wanted]
    targets = (eq.targets[0], *(t for t, _ in kept))
    if not kept:
        return eq
    return replace(eq, targets=targets, value=replace(r, values=tuple(v for _, v in kept)))


def inlined(equations: list[Equation], results: set[str]) -> list[Equation]:
    """Pointwise temporaries that one equation reads, at its own points, go into that equation."""
    done: set[str] = set()
    while True:
        found = next(
            (eq for eq in equations if eq.target.name not in done and _single_use(eq, equations, results)), None
        )
        if found is None:
            return equations
        done.add(found.target.name)
        equations = _put(found, [e for e in equations if e is not found])


def _single_use(eq: Equation, equations: list[Equation], results: set[str]) -> bool:
    name = eq.target.name
    if isinstance(eq.value, Reduction) or eq.accumulate or name in results:
        return False
    if sum(name in writes(e) for e in equations) != 1:
        return False
    readers = [e for e in equations if name in reads(e)]
    return len(readers) == 1 and _same_points(eq, readers[0], name)


def _put(eq: Equation, equations: list[Equation]) -> list[Equation]:
    """The equations with reads of a temporary replaced by its value."""
    target, body = eq.target, eq.value
    assert not isinstance(body, Reduction)

    def value(a: Expr) -> Expr | None:
        if isinstance(a, Access) and a.tensor == target.name:
            places = zip(target.subscripts, a.subscripts, strict=True)
            return substitute(body, {t.id: s for t, s in places if isinstance(t, Name)})
        return None

    return [map_equation(e, lambda x: rewrite(x, value)) if target.name in reads(e) else e for e in equations]


def _same_points(eq: Equation, reader: Equation, name: str) -> bool:
    own = {n for s in eq.target.subscripts for n in names_in(s)}
    left = {n for t in reader.targets for s in t.subscripts for n in names_in(s)}
    if isinstance(reader.value, Reduction):
        left |= set(reader.value.indices)
    found = {a.subscripts for e in expressions(reader.value) for a in accesses_in(e) if a.tensor == name}
    return len(found) == 1 and len(own) == len(left) and all(isinstance(s, Name) for s in next(iter(found)))


def assemble(forward: Forward, given: frozenset[str], equations: list[Equation], renamed: dict[str, str]) -> Op:
    """The backward op of these equations."""
    op = forward.op
    results = {f"d{p}" for p in forward.inputs}
    equations = inlined([*forward_equations(forward, equations), *equations], results)
    equations = [_renamed(eq, renamed) for eq in equations]
    read = set().union(*(reads(eq) for eq in equations))
    params = [replace(p, inout=False) for p in op.params if p.name in read]
    params += [o for o in op.outputs if o.name in read]
    params += [replace(o, name=f"d{o.name}") for o in op.outputs if o.name in given and f"d{o.name}" in read]
    outputs = [replace(p, name=f"d{p.name}") for p in op.params if p.name in forward.inputs]
    scattered = {t.name for eq in equations if eq.accumulate for t in eq.targets if _scatters(t, forward)}
    narrow = {o.name for o in outputs if o.dtype is DType.REAL or o.dtype in NARROW}
    outputs = [replace(o, dtype=DType.F32) if o.name in scattered & narrow else o for o in outputs]
    _check_names(forward, outputs)
    equations = _typed(forward, equations, {o.name for o in (*params, *outputs)})
    ranges = dict(forward.info.ranges)
    draft = Op(
        f"{op.name}.backward", tuple(params), tuple(outputs), (), (), (), tuple(equations), op.name, span=op.span
    )
    return _with_ranges(draft, forward, ranges)


def _scatters(t: Target, forward: Forward) -> bool:
    """May many points meet in one element of the target? Not by a subscript that the others' bare indices settle."""
    bare = {s.id for s in t.subscripts if isinstance(s, Name)}
    free = [s for s in t.subscripts if isinstance(s, Name) or accesses_in(s) or not names_in(s) <= bare]
    return meeting(replace(t, subscripts=tuple(free)), forward.info.ranges, frozenset(forward.info.dims)) is not None


def _check_names(forward: Forward, outputs: list[Operand]) -> None:
    known = {o.name for o in forward.op.operands}
    for o in outputs:
        if o.name in known:
            raise forward.error(
                f"the gradient of '{o.name[1:]}' would be named '{o.name}', which '{forward.op.name}' has already",
                forward.op,
                f"rename '{o.name}'",
            )


def _renamed(eq: Equation, names: dict[str, str]) -> Equation:
    for old, new in names.items():
        eq = map_equation(eq, lambda e, old=old, new=new: rename_tensor(e, old, new))  # type: ignore[misc]
        eq = replace(eq, targets=tuple(replace(t, name=new) if t.name == old else t for t in eq.targets))
    return eq


def _typed(forward: Forward, equations: list[Equation], operands: set[str]) -> list[Equation]:
    """Temporaries annotated f64 where the op computes in f64 (a literal alone would make them f32)."""
    floats = {o.dtype for o in forward.op.operands if o.dtype.is_float}
    if floats != {DType.F64}:
        return equations
    known = set(forward.info.temporaries) | operands
    out, seen = [], set()
    for eq in equations:
        targets = []
        for t in eq.targets:
            if t.name not in known and t.name not in seen:
                t = replace(t, dtype=DType.F64)
            seen.add(t.name)
            targets.append(t)
        out.append(replace(eq, targets=tuple(targets)))
    return out


def _with_ranges(op: Op, forward: Forward, ranges: dict[str, Expr]) -> Op:
    """Declare the indices whose ranges the equations alone would not give as the forward op has them."""
    used = {n for eq in op.equations for n in names(eq)}
    used |= {i for eq in op.equations if isinstance(eq.value, Reduction) for i in eq.value.indices}
    indices = [i for i in ranges if i in used]
    declared: list[str] = []
    try:
        found = infer(_with_dims(op, forward), forward.module).ranges
        declared = [i for i in indices if i not in found or not same(found[i], ranges[i])]
    except TcError:
        declared = indices
    op = replace(op, ranges=tuple((i, ranges[i]) for i in declared))
    return _with_dims(op, forward)


def _with_dims(op: Op, forward: Forward) -> Op:
    """Static dims: those used that no parameter's shape gives as a bare name."""
    given = {e.id for p in op.params for e in p.shape if isinstance(e, Name)}
    used = {n for o in op.operands for e in o.shape for n in names_in(e)} | {
        n for _, e in op.ranges for n in names_in(e)
    }
    for eq in op.equations:
        used |= names(eq)
    return replace(op, dims=tuple(d for d in forward.info.dims if d in used and d not in given))
