"""Checks of the points an op reads and writes: no element written twice, none outside, none out of turn."""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.dsl.ast import Access, Binary, Call, Equation, Expr, Name, Num, Op, Reduction, Target, accesses_in, names_in
from tcomp.dsl.errors import TcError
from tcomp.dsl.extents import affine, bounds, difference, injective, never_negative
from tcomp.dsl.infer import right_expressions, target_indices
from tcomp.dsl.info import OpInfo
from tcomp.dsl.printer import print_expression


def check_points(op: Op, info: OpInfo) -> None:
    """TcError at the first subscript that two points share, that leaves its axis, or that is read too late."""
    dims = frozenset(info.dims)
    for n, q in enumerate(op.equations):
        _check_injective(q, info, dims)
        _check_own_reads(q)
        _check_bounds(op, n, info)


def _check_injective(q: Equation, info: OpInfo, dims: frozenset[str]) -> None:
    """With `=`, two points must not write the same element."""
    if q.accumulate:
        return
    for t in q.targets:
        s = meeting(t, info.ranges, dims)
        if s is not None:
            hint = "write `+=` to add up what meets there, or use a plain index"
            raise TcError(f"two points may write the same element of '{t.name}'", s.span, hint=hint)


def meeting(t: Target, ranges: Mapping[str, Expr], dims: frozenset[str]) -> Expr | None:
    """The first subscript of a target by which two points may name the same element; None where none do."""
    indices = target_indices(t, dims)
    used: set[str] = set()
    for s in t.subscripts:
        if isinstance(s, Name | Num):
            used |= names_in(s)
            continue
        form = affine(s, indices)
        if form is None or not injective(form, ranges) or used & form.terms.keys():
            return s
        used |= form.terms.keys()
    return None


def _check_own_reads(q: Equation) -> None:
    """An equation may read what it writes only at the very point it writes, and not in a reduction."""
    written = {t.name: t for t in q.targets}
    for e in right_expressions(q):
        for a in accesses_in(e):
            t = written.get(a.tensor)
            if t is None:
                continue
            if isinstance(q.value, Reduction):
                hint = "reduce into a temporary first, then combine it in a second equation"
                raise TcError(f"'{a.tensor}' is read inside the reduction that writes it", a.span, hint=hint)
            if a.subscripts != t.subscripts:
                own = print_expression(Access(t.name, t.subscripts))
                hint = f"read it at {own}, or copy it to a temporary in an equation before"
                raise TcError(f"'{a.tensor}' is read at another point than this equation writes", a.span, hint=hint)


def places_of(q: Equation) -> list[tuple[str, tuple[Expr, ...]]]:
    """The tensors that an equation writes or reads at each of its points, with the subscripts there."""
    guarded = isinstance(q.value, Reduction) and q.value.guard is not None
    places: list[tuple[str, tuple[Expr, ...]]] = [(t.name, t.subscripts) for t in q.targets]
    for e in () if guarded else right_expressions(q):
        places += [(a.tensor, a.subscripts) for a in _unconditional_accesses(e)]
    return places


def _check_bounds(op: Op, n: int, info: OpInfo) -> None:
    """Refuse a subscript that leaves its axis whatever the dimensions are (guarded reads are not judged)."""
    for tensor, subscripts in places_of(op.equations[n]):
        for axis, s in enumerate(subscripts):
            if isinstance(s, Name):
                continue
            extent = _axis_extent(op, info, tensor, axis)
            form = None if accesses_in(s) else affine(s, info.ranges)  # a scalar operand may be anything
            reach = bounds(form, info.ranges) if form is not None else None
            if extent is None or reach is None:
                continue
            low, high = reach
            if never_negative({m: -c for m, c in low.items()}) and low:
                raise TcError(
                    f"subscript {axis} of '{tensor}' goes below 0",
                    s.span,
                    notes=_range_notes(s, info),
                    hint="shift the index, or guard the read with `select`",
                )
            excess = dict(high)
            for m, c in difference(extent, Num(0)).items():
                excess[m] = excess.get(m, 0) - c
            if never_negative({m: c for m, c in excess.items() if c}):
                raise TcError(
                    f"subscript {axis} of '{tensor}' goes past its extent {print_expression(extent)}",
                    s.span,
                    notes=_range_notes(s, info),
                    hint="shorten the index's range (`index i: ...`), or guard the read with `select`"
                    if names_in(s)
                    else "subscripts count from 0",
                )


def _range_notes(s: Expr, info: OpInfo) -> tuple[str, ...]:
    ranges = [(n, info.ranges[n]) for n in sorted(names_in(s)) if n in info.ranges]
    return tuple(f"index '{n}' runs over 0 <= {n} < {print_expression(e)}" for n, e in ranges)


def _axis_extent(op: Op, info: OpInfo, tensor: str, axis: int) -> Expr | None:
    operand = op.operand(tensor)
    if operand is not None:
        return operand.shape[axis]
    return info.ranges.get(info.temporaries[tensor].indices[axis])


def _unconditional_accesses(e: Expr) -> list[Access]:
    """Accesses that are read at every point: not those in a branch of `select`."""
    if isinstance(e, Call) and e.function == "select":
        return _unconditional_accesses(e.args[0])
    own = [e] if isinstance(e, Access) else []
    match e:
        case Access(_, parts) | Call(_, parts):
            inner: tuple[Expr, ...] = parts
        case Binary(_, left, right):
            inner = (left, right)
        case _:
            inner = tuple(c for c in (getattr(e, "operand", None),) if c is not None)
    return own + [a for c in inner for a in _unconditional_accesses(c)]
