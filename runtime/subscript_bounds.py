"""Which values an op's integer operand may have, as its equations tell: those by which subscripts stay inside."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from tcomp.dsl.ast import (
    COMPARISONS,
    Access,
    Binary,
    Call,
    Expr,
    Name,
    Num,
    Op,
    Reduction,
    children,
    map_children,
    walk,
)
from tcomp.dsl.dims import Number, evaluate_dim, operand_shape
from tcomp.grad.parts import expressions


def subscript_bound(op: Op, name: str, dims: dict[str, int]) -> int:
    """The smallest extent of an axis that the integer operand is used to subscript, or of the op's static dims; so much
    less that the whole subscript, as in `keys[b, start + t]` or `E[first[t] + 2 * ids[t], c]`, stays on its axis. One
    that is only compared with indices, as a length in `k < lengths[b]`, reaches just beyond their ends."""
    bounds = [dims[d] for d in op.dims]
    shapes = {o.name: operand_shape(o, dims) for o in op.operands}
    ends = _ends(op, shapes, dims)
    places = [(s, extent) for s, extent in _subscripts(op, shapes) if _reads(s, name)]
    bounds += [_within(s, extent, {**dims, **ends}) for s, extent in places]
    left = [s for eq in op.equations for t in eq.targets for s in t.subscripts]
    read = [e for eq in op.equations for e in expressions(eq.value)]
    elsewhere = places or any(_valued(e, name) for e in (*left, *read))
    compared = [] if elsewhere else [int(ends[i]) + 2 for i in _compared(op, name) if i in ends]
    return max(1, min(compared or bounds, default=min(dims.values(), default=2)))


def names_read(e: Expr) -> set[str]:
    """All names in an expression."""
    return {n.id for n in walk(e) if isinstance(n, Name)}


def _reads(e: Expr, name: str) -> bool:
    return any(isinstance(n, Access) and n.tensor == name for n in walk(e))


def _valued(e: Expr, name: str, compared: bool = False) -> bool:
    """Is the tensor read for its value, and not in a comparison alone? Temporaries may have it as a subscript, or be a
    subscript that has its value."""
    if isinstance(e, Access):
        return (e.tensor == name and not compared) or any(_valued(s, name) for s in e.subscripts)
    inside = compared or (isinstance(e, Binary) and e.op in COMPARISONS)
    return any(_valued(c, name, inside) for c in children(e))


def _compared(op: Op, name: str) -> Iterator[str]:
    """The names in what an op compares the tensor with."""
    for e in (e for eq in op.equations for e in expressions(eq.value)):
        for n in walk(e):
            if isinstance(n, Binary) and n.op in COMPARISONS:
                for one, other in ((n.left, n.right), (n.right, n.left)):
                    if _reads(one, name):
                        yield from names_read(other)


def _within(subscript: Expr, extent: int, ends: Mapping[str, Number]) -> int:
    """How many values, from 0 on, tensors in the subscript of an axis may have."""
    if isinstance(subscript, Access):
        return extent
    return bisect_left(range(extent), extent, key=lambda v: int(evaluate_dim(_at(subscript, v), ends)))


def _subscripts(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[Expr, int]]:
    """The subscripts of operands in an op's equations, with the extent of the axis that each stands at."""
    for eq in op.equations:
        values = (*eq.value.values, eq.value.key) if isinstance(eq.value, Reduction) else (eq.value,)
        left = [Access(t.name, t.subscripts) for t in eq.targets]
        for e in (*left, *(v for v in values if v is not None)):
            for access in (n for n in walk(e) if isinstance(n, Access) and n.tensor in shapes):
                yield from zip(access.subscripts, shapes[access.tensor], strict=False)


def _ends(op: Op, shapes: Mapping[str, tuple[int, ...]], dims: dict[str, int]) -> dict[str, Number]:
    """The last value of each index: of its declared range, or the shortest axis that it stands on alone."""
    ends: dict[str, Number] = {}
    for s, extent in _subscripts(op, shapes):
        if isinstance(s, Name) and s.id not in dims:
            ends[s.id] = min(ends.get(s.id, math.inf), extent - 1)
    return ends | {i: evaluate_dim(e, {**dims}) - 1 for i, e in op.ranges}


def _at(e: Expr, value: int) -> Expr:
    """The expression where all tensors have that value, and of two cases the larger one holds."""
    if isinstance(e, Access):
        return Num(value)
    if isinstance(e, Call) and e.function == "select":
        return Call("max", tuple(_at(a, value) for a in e.args[1:]), e.span)
    return map_children(e, lambda x: _at(x, value))
