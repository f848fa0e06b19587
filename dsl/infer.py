"""What an op's equations imply: the range of each index, its temporaries with their dtypes, its dimensions.

An index runs over one range in the whole op. The range is declared (`index v: V`), or the smallest extent of
the axes it stands on bare, on the left first and then on the right; the others must be at least as large by
a `require` line. An equation that covers its output only in part leaves the rest zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import (
    Access,
    Binary,
    DType,
    Equation,
    Expr,
    Module,
    Name,
    Num,
    Op,
    Reduction,
    Span,
    Target,
    accesses_in,
    walk,
)
from tcomp.dsl.dtypes import dtype_of
from tcomp.dsl.errors import TcError, quoting
from tcomp.dsl.expressions import LEAVES
from tcomp.dsl.extents import Facts, same
from tcomp.dsl.info import OpInfo, Temporary
from tcomp.dsl.printer import print_expression
from tcomp.dsl.remembered import remembered


@dataclass
class _Candidate:
    extent: Expr
    where: Span
    what: str


@dataclass
class _Inference:
    op: Op
    module: Module
    facts: Facts
    ranges: dict[str, Expr] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    temporaries: dict[str, Temporary] = field(default_factory=dict)


@remembered
def infer(op: Op, module: Module) -> OpInfo:
    """Ranges, temporaries, dims and parallel indices of an op. TcError where they contradict each other."""
    with quoting(module.sources):
        return _infer(op, module)


def facts_of(op: Op, module: Module) -> Facts:
    """The op's `require` lines; a backward op may also rely on those of its forward op."""
    forward = module.ops.get(op.backward_of) if op.backward_of else None
    return Facts.of((*op.requires, *(forward.requires if forward else ())))


def dimensions(op: Op) -> tuple[str, ...]:
    """All dimension names in order of first appearance."""
    names: dict[str, None] = {}
    for operand in op.operands:
        for e in operand.shape:
            for n in walk(e):
                if isinstance(n, Name):
                    names.setdefault(n.id)
    for d in op.dims:
        names.setdefault(d)
    return tuple(names)


def right_accesses(q: Equation) -> list[Access]:
    """The accesses an equation reads: its value's, and those inside its targets' subscripts."""
    out = [a for t in q.targets for s in t.subscripts for a in accesses_in(s)]
    for e in right_expressions(q):
        out += accesses_in(e)
    return out


def right_expressions(q: Equation) -> list[Expr]:
    """The expressions on the right: the value, or a reduction's guard, key and values."""
    v = q.value
    if not isinstance(v, Reduction):
        return [v]
    return [e for e in (v.guard, v.key, *v.values) if e is not None]


def expressions(q: Equation) -> list[Expr]:
    """All of an equation's expressions: the subscripts on the left, then those on the right."""
    return [*(s for t in q.targets for s in t.subscripts), *right_expressions(q)]


def left_indices(q: Equation, dims: frozenset[str]) -> tuple[str, ...]:
    """The parallel indices of an equation, in order of appearance on the left."""
    names: dict[str, None] = {}
    for t in q.targets:
        for s in t.subscripts:
            for n in (s,) if isinstance(s, LEAVES) else walk(s):
                if isinstance(n, Name) and n.id not in dims:
                    names.setdefault(n.id)
    return tuple(names)


def target_indices(t: Target, dims: frozenset[str]) -> tuple[str, ...]:
    """The indices on the left of one target, in order of appearance."""
    return tuple(dict.fromkeys(n.id for s in t.subscripts for n in walk(s) if isinstance(n, Name) and n.id not in dims))


def _infer(op: Op, module: Module) -> OpInfo:
    dims = dimensions(op)
    known = frozenset(dims)
    state = _Inference(op, module, facts_of(op, module), dict(op.ranges))
    state.sources = {n: f"`index {n}` declares" for n, _ in op.ranges}
    for q in op.equations:
        for t in q.targets:
            if op.operand(t.name) is None and t.name not in state.temporaries:
                state.temporaries[t.name] = _temporary(t, known, state.ranges)
    _collect_ranges(state, known)
    indices = tuple(left_indices(q, known) for q in op.equations)
    _collect_dtypes(state)
    return OpInfo(state.ranges, state.temporaries, dims, indices)


def _temporary(t: Target, dims: frozenset[str], ranges: dict[str, Expr]) -> Temporary:
    """The temporary that a target declares. An axis of blocks, `128 * t + r` of declared indices (r below 128), gets an
    index of its own in `ranges`, which no equation has."""
    indices: list[str] = []
    taken: set[str] = set()
    for s in t.subscripts:
        blocks = _blocks(s, ranges)
        if blocks is not None and not blocks[0] & taken:
            indices.append(".".join(sorted(blocks[0])))
            ranges[indices[-1]] = blocks[1]
            taken |= blocks[0]
            continue
        if not isinstance(s, Name) or s.id in dims:
            hint = "a temporary is declared by plain indices, one per axis; declare an output to write parts of it"
            raise TcError(f"'{t.name}' is not declared, so its subscripts must be indices", s.span, hint=hint)
        if s.id in taken:
            raise TcError(f"index '{s.id}' stands twice on the left", s.span, hint="give each axis its own index")
        indices.append(s.id)
        taken.add(s.id)
    return Temporary(t.name, t.dtype or DType.F32, tuple(indices))


def _blocks(s: Expr, ranges: Mapping[str, Expr]) -> tuple[set[str], Expr] | None:
    """The indices of a subscript `128 * t + r` that covers an axis block by block, and the axis's extent."""
    match s:
        case Binary("+", Binary("*", Num(n), Name(t)), Name(r)) if t in ranges and r != t:
            if ranges.get(r) == Num(n):
                return {t, r}, Binary("*", ranges[t], Num(n))
    return None


def _collect_ranges(state: _Inference, dims: frozenset[str]) -> None:
    """Left-hand sides first, then accesses in the order of the equations, until nothing new is learned."""
    op = state.op
    declared = set(state.ranges)
    left: dict[str, list[_Candidate]] = {}
    for name, c in _left_candidates(op, dims):
        left.setdefault(name, []).append(c)
    for name, candidates in left.items():
        for c in candidates:
            _merge(state, name, c, declared)
    read = [
        (a.tensor, axis, len(a.subscripts), s)
        for q in op.equations
        for a in right_accesses(q)
        for axis, s in enumerate(a.subscripts)
        if isinstance(s, Name) and s.id not in dims
    ]
    before = -1
    while len(state.ranges) != before:
        before = len(state.ranges)
        for tensor, axis, rank, s in read:
            extent = None if s.id in state.ranges else _extent(state, tensor, axis, rank)
            if extent is not None:
                state.ranges[s.id] = extent
                state.sources[s.id] = f"axis {axis} of '{tensor}' gives"
    for tensor, axis, rank, s in read:
        extent = _extent(state, tensor, axis, rank)
        if extent is not None:
            _merge(state, s.id, _Candidate(extent, s.span, f"axis {axis} of '{tensor}'"), declared)
    for q in op.equations:
        reduced = q.value.indices if isinstance(q.value, Reduction) else ()
        for name in (*left_indices(q, dims), *reduced):
            if name not in state.ranges and not any(name == o.name for o in op.operands):
                raise TcError(
                    f"index '{name}' has no range: it stands on no axis of known extent",
                    q.span,
                    hint=f"declare it before the equations: `index {name}: <extent>`",
                )


def _left_candidates(op: Op, dims: frozenset[str]) -> Iterator[tuple[str, _Candidate]]:
    """The axes of operands on which an index stands on the left."""
    for t in (t for q in op.equations for t in q.targets):
        operand = op.operand(t.name)
        if operand is not None and len(operand.shape) == len(t.subscripts):
            for axis, (s, extent) in enumerate(zip(t.subscripts, operand.shape, strict=True)):
                if isinstance(s, Name) and s.id not in dims:
                    yield s.id, _Candidate(extent, s.span, f"axis {axis} of '{t.name}'")


def _extent(state: _Inference, tensor: str, axis: int, rank: int) -> Expr | None:
    """The extent of a tensor's axis; None while unknown (or where the access is wrong, checked elsewhere)."""
    operand = state.op.operand(tensor)
    if operand is not None:
        return operand.shape[axis] if len(operand.shape) == rank else None
    temporary = state.temporaries.get(tensor)
    if temporary is None or len(temporary.indices) != rank:
        return None
    return state.ranges.get(temporary.indices[axis])


def _merge(state: _Inference, name: str, c: _Candidate, declared: set[str]) -> None:
    """Let one more axis bound an index: it must be as large as the range, or (undeclared) becomes it."""
    current = state.ranges.get(name)
    if current is None:
        state.ranges[name] = c.extent
        state.sources[name] = f"{c.what} gives"
        return
    if same(current, c.extent) or state.facts.at_most(current, c.extent):
        return
    if name not in declared and state.facts.at_most(c.extent, current):
        state.ranges[name] = c.extent
        state.sources[name] = f"{c.what} gives"
        return
    a, b = print_expression(current), print_expression(c.extent)
    if name in declared:
        hint = f"say how they compare: `require {a} <= {b}`"
    else:
        hint = f"say how they compare (`require {a} <= {b}`), or use two indices"
    raise TcError(
        f"index '{name}' runs to {a} ({state.sources[name]} it), but {c.what} has extent {b}", c.where, hint=hint
    )


def _collect_dtypes(state: _Inference) -> None:
    """f32 unless annotated; f64 when all floats read are f64; i32 when everything read is an integer."""
    op, module = state.op, state.module
    settled: dict[str, DType] = {o.name: o.dtype for o in op.operands}
    for q in op.equations:
        for n, t in enumerate(q.targets):
            if t.name in settled:
                continue
            dtype = t.dtype or _value_dtype(q, n, settled, module)
            settled[t.name] = dtype
            old = state.temporaries[t.name]
            state.temporaries[t.name] = Temporary(old.name, dtype, old.indices)


def _value_dtype(q: Equation, n: int, settled: dict[str, DType], module: Module) -> DType:
    v = q.value
    if isinstance(v, Reduction):
        if v.key is not None:
            e = v.key if n == 0 else v.values[min(n, len(v.values)) - 1]
            d = dtype_of(e, settled, module)
            key = dtype_of(v.key, settled, module)
            return DType.F64 if DType.F64 in (d, key) and DType.F32 not in (d, key) else DType.F32
        d = dtype_of(v.values[0], settled, module)
    else:
        d = dtype_of(v, settled, module)
    return d if d in (DType.F64, DType.I32) else DType.F32
