"""Checks of ops, functions and monoids: names, ranks, element types, ranges, what may stand on the left.

`check_op` raises TcError at the first thing that is wrong. The order of the checks is the order in which a
reader would ask: what is this name, does it have this many axes, is it defined yet, is the value of the
right type, do the indices stay inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcomp.dsl.ast import (
    NO_SPAN,
    Access,
    Binary,
    Call,
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
from tcomp.dsl.check_points import check_points
from tcomp.dsl.check_values import PER_AXIS, Scope, axes, check_condition, check_number, subscripted
from tcomp.dsl.dtypes import CASTS, dtype_of, widths_of
from tcomp.dsl.errors import TcError
from tcomp.dsl.expansion import Sizes
from tcomp.dsl.hints import count, did_you_mean, listing
from tcomp.dsl.infer import dimensions, expressions, infer, left_indices, right_expressions, target_indices
from tcomp.dsl.info import OpInfo
from tcomp.dsl.printer import print_expression
from tcomp.dsl.remembered import remembered

REDUCERS = ("sum", "max", "min")


@remembered
def check_op(op: Op, module: Module) -> OpInfo:
    """All checks of one op; gives what `infer` found."""
    dims = frozenset(dimensions(op))
    _check_signature(op, dims, module)
    _check_left_sides(op, dims)
    _check_names(op, dims, module)
    info = infer(op, module)
    for q in op.equations:
        _check_types(op, q, info, module)
    check_points(op, info)
    _check_all_written(op)
    return info


# ---------------------------------------------------------------------------------------- signatures


def _check_signature(op: Op, dims: frozenset[str], module: Module) -> None:
    if op.backward_of is not None and op.backward_of not in module.ops:
        hint = did_you_mean(op.backward_of, [o for o in module.ops if "." not in o], "op")
        hint = hint if hint.startswith("did") else "declare the op itself first, or import the file that does"
        raise TcError(f"backward of an unknown op '{op.backward_of}'", op.span, hint=hint)
    seen: dict[str, Span] = {}
    for o in op.operands:
        if o.name in seen:
            notes = (f"first at {seen[o.name]}",)
            raise TcError(f"operand '{o.name}' is declared twice", o.span, notes=notes, hint="rename one of them")
        if o.name in dims:
            hint = "give one of the two another name; dimensions are usually capital letters"
            raise TcError(f"'{o.name}' is both a tensor and a dimension", o.span, hint=hint)
        seen[o.name] = o.span
        for e in o.shape:
            _check_dimension_expression(e, f"the shape of '{o.name}'", None)
    for o in op.outputs:
        if o.inout:
            raise TcError(f"output '{o.name}' cannot be inout", o.span, hint="list it among the parameters instead")
    for e in op.requires:
        _check_dimension_expression(e, "a `require`", dims)
    indices: set[str] = set()
    for name, e in op.ranges:
        if name in dims or name in seen:
            what = "a dimension" if name in dims else "a tensor"
            raise TcError(f"'{name}' is both an index and {what}", e.span, hint="rename the index")
        if name in indices:
            raise TcError(f"index '{name}' is declared twice", e.span, hint="keep one of the two lines")
        indices.add(name)
        _check_dimension_expression(e, f"the range of index '{name}'", dims)


def _check_dimension_expression(e: Expr, where: str, known: frozenset[str] | None) -> None:
    for n in walk(e):
        if isinstance(n, Access) or (isinstance(n, Call) and n.function not in ("min", "max")):
            raise TcError(f"{where} must be made of dimensions and numbers", n.span, hint="sizes are known at build")
        if isinstance(n, Num) and isinstance(n.value, float):
            raise TcError(f"{where} must be a whole number", n.span, hint="divide with `//`")
        if isinstance(n, Name) and known is not None and n.id not in known:
            raise TcError(f"unknown dimension '{n.id}' in {where}", n.span, hint=_dimension_hint(n.id, known))


def _dimension_hint(name: str, known: frozenset[str]) -> str:
    hint = did_you_mean(name, sorted(known), "dimension")
    return hint or f"a dimension of no operand is listed after `;`: op name(...; {name})"


# ---------------------------------------------------------------------------------------- left sides


def _check_left_sides(op: Op, dims: frozenset[str]) -> None:
    inputs = {p.name for p in op.params if not p.inout}
    ranks = {o.name: len(o.shape) for o in op.operands}
    for q in op.equations:
        _check_target_count(q)
        for t in q.targets:
            if t.name in inputs:
                hint = f"declare it `inout {t.name}: ...` to update it in place, or write an output"
                raise TcError(f"'{t.name}' is an input and cannot be written", t.span, hint=hint)
            if t.name in dims:
                raise TcError(f"'{t.name}' is a dimension and cannot be written", t.span, hint="rename the tensor")
            rank = ranks.setdefault(t.name, len(t.subscripts))
            if rank != len(t.subscripts):
                message = f"'{t.name}' has {axes(rank)}, but {subscripted(len(t.subscripts))} here"
                raise TcError(message, t.span, hint=PER_AXIS)
            if t.dtype is not None and op.operand(t.name) is not None:
                hint = f"remove `: {t.dtype}`; only a temporary's first equation names its type"
                raise TcError(f"'{t.name}' has its type from the op's header", t.span, hint=hint)
            _check_subscripts(t, q, dims)


def _check_target_count(q: Equation) -> None:
    v = q.value
    if isinstance(v, Reduction) and v.reducer not in REDUCERS:
        return
    if len(q.targets) > 1:
        names = listing(t.name for t in q.targets)
        hint = "write one equation per tensor; only a monoid reduction (`... by key: ...`) gives several"
        raise TcError(f"one value cannot be assigned to {names}", q.targets[1].span, hint=hint)


def _check_subscripts(t: Target, q: Equation, dims: frozenset[str]) -> None:
    seen: set[str] = set()
    for s in t.subscripts:
        if isinstance(s, Name) and s.id not in dims:
            if s.id in seen:
                hint = "give each axis its own index"
                raise TcError(f"index '{s.id}' stands twice on the left of '{t.name}'", s.span, hint=hint)
            seen.add(s.id)
        if any(a.subscripts for a in accesses_in(s)) and not q.accumulate:
            hint = "two points may hit the same element; write `+=` to add them up"
            raise TcError(f"'{t.name}' is scattered through a tensor's values with `=`", s.span, hint=hint)


# --------------------------------------------------------------------------------------------- names


def _check_names(op: Op, dims: frozenset[str], module: Module) -> None:
    """Every name is known, every access has as many subscripts as its tensor has axes."""
    ranks = {p.name: len(p.shape) for p in op.params}
    ranks_later = {o.name: len(o.shape) for o in op.outputs}
    for q in op.equations:
        for t in q.targets:
            ranks_later.setdefault(t.name, len(t.subscripts))
    tensors = ranks | ranks_later
    sizes = Sizes(module)
    left = [left_indices(q, dims) for q in op.equations]
    every = {n for indices in left for n in indices}
    every |= {n for q in op.equations if isinstance(q.value, Reduction) for n in q.value.indices}

    def scope(indices: Sequence[str]) -> Scope:
        """Where expressions of an equation may use these indices, and the tensors that are defined so far."""
        for i in indices:
            if i in tensors and i != "_":
                hint = "give the index or the tensor another name"
                raise TcError(f"'{i}' is both an index and a tensor of op '{op.name}'", _first_use(op, i), hint=hint)
        return Scope(dims, frozenset(indices), frozenset(every), dict(ranks), tensors, module)

    for q, indices in zip(op.equations, left, strict=True):
        for t in q.targets:
            for s in t.subscripts:
                check_number(s, scope(indices))
        v = q.value
        if isinstance(v, Reduction):
            _check_reduction(q, v, dims, scope, module)
        else:
            check_number(v, scope(indices))
        for e in expressions(q):
            sizes.check(e)
        for t in q.targets:
            ranks[t.name] = tensors[t.name]


def _first_use(op: Op, name: str) -> Span:
    for q in op.equations:
        for t in q.targets:
            for s in t.subscripts:
                for n in walk(s):
                    if isinstance(n, Name) and n.id == name:
                        return n.span
        if isinstance(q.value, Reduction) and name in q.value.indices:
            return q.value.span
    return op.span or NO_SPAN


def _check_reduction(
    q: Equation, v: Reduction, dims: frozenset[str], scope: Callable[[Sequence[str]], Scope], module: Module
) -> None:
    _check_reducer(q, v, module)
    for n, i in enumerate(v.indices):
        if i in dims:
            hint = f"declare an index over it: `index {i.lower()}: {i}`, and reduce over '{i.lower()}'"
            raise TcError(f"'{i}' is a dimension, not an index", v.span, hint=hint)
        if i in v.indices[:n]:
            raise TcError(f"index '{i}' is reduced twice", v.span, hint="list each reduced index once")
        if i in left_indices(q, dims):
            hint = f"a reduced index is gone afterwards: remove '{i}' on one of the two sides"
            raise TcError(f"index '{i}' is reduced, but also stands on the left", v.span, hint=hint)
    key_indices = target_indices(q.targets[0], dims)
    inner = scope((*key_indices, *v.indices))
    if v.guard is not None:
        check_condition(v.guard, inner)
    if v.key is None:
        check_number(v.values[0], inner)
        return
    check_number(v.key, inner)
    for t, value in zip(q.targets[1:], v.values, strict=True):
        indices = target_indices(t, dims)
        for i in key_indices:
            if i not in indices:
                hint = f"the key '{q.targets[0].name}' has it, so each carried field needs it too"
                raise TcError(f"'{t.name}' lacks the index '{i}'", t.span, hint=hint)
        check_number(value, scope((*indices, *v.indices)))


def _check_reducer(q: Equation, v: Reduction, module: Module) -> None:
    if v.reducer in module.monoids:
        if v.key is None:
            hint = f"write `{v.reducer} {', '.join(v.indices)} by <key>: ...`"
            raise TcError(f"monoid '{v.reducer}' needs its key", v.span, hint=hint)
        if len(q.targets) != 1 + len(v.values):
            hint = "the first tensor on the left takes the key, each further one a value after the colon"
            raise TcError(
                f"{count(len(q.targets), 'tensor')} on the left, "
                f"but a key and {count(len(v.values), 'value')} on the right",
                q.span,
                hint=hint,
            )
    elif v.reducer in REDUCERS:
        if v.key is not None:
            hint = "leave out `by ...`, or declare a monoid"
            raise TcError(f"'{v.reducer}' has no key", v.key.span, hint=hint)
        if len(v.values) > 1:
            raise TcError(f"'{v.reducer}' takes one value", v.values[1].span, hint="write one equation per sum")
    else:
        hint = did_you_mean(v.reducer, [*REDUCERS, *module.monoids], "reducer")
        raise TcError(f"unknown reducer '{v.reducer}'", v.span, hint=hint)
    if q.accumulate and v.reducer != "sum":
        hint = "`+=` adds; write `=` into a temporary and combine it in a second equation"
        raise TcError(f"a '{v.reducer}' cannot be accumulated with `+=`", q.span, hint=hint)


# --------------------------------------------------------------------------------------------- types


def _check_types(op: Op, q: Equation, info: OpInfo, module: Module) -> None:
    dtypes = {o.name: o.dtype for o in op.operands} | {t.name: t.dtype for t in info.temporaries.values()}
    values = q.value.values if isinstance(q.value, Reduction) else (q.value,)
    if isinstance(q.value, Reduction) and q.value.key is not None:
        values = (q.value.key, *values)
    for t, e in zip(q.targets, values, strict=True):
        target = dtypes[t.name]
        if target is DType.I32 and dtype_of(e, dtypes, module) is not DType.I32:
            hint = f"round it where you mean to: `i32(floor({_short(e)}))`"
            raise TcError(f"a real value is assigned to '{t.name}', which is i32", e.span, hint=hint)
    for e in right_expressions(q):
        _check_mixing(e, dtypes)
    if isinstance(q.value, Reduction) and q.value.key is not None:
        _check_fields(q.value, q.value.key, dtypes, module)
    for e in expressions(q):
        for n in walk(e):
            if isinstance(n, Binary) and n.op in ("//", "%") and dtype_of(n, dtypes, module) is not DType.I32:
                hint = "it divides integers; for reals write `floor(a / b)`"
                raise TcError(f"`{n.op}` of a real value", n.span, hint=hint)
            if isinstance(n, Access):
                for s in n.subscripts:
                    if dtype_of(s, dtypes, module) is not DType.I32:
                        hint = "subscripts are integers; cast with `i32(...)`"
                        raise TcError(f"a real subscript of '{n.tensor}'", s.span, hint=hint)
    for t in q.targets:
        for s in t.subscripts:
            if dtype_of(s, dtypes, module) is not DType.I32:
                raise TcError(f"a real subscript of '{t.name}'", s.span, hint="subscripts are integers")


def _check_mixing(e: Expr, dtypes: dict[str, DType]) -> None:
    """f64 and narrower reals may meet only through a cast."""
    outside: list[Access] = []

    def visit(n: Expr) -> None:
        if isinstance(n, Access):
            outside.append(n)
        elif isinstance(n, Call) and n.function not in CASTS:
            for a in n.args:
                visit(a)
        elif not isinstance(n, Call):
            for c in (n.left, n.right) if isinstance(n, Binary) else (getattr(n, "operand", None),):
                if c is not None:
                    visit(c)

    visit(e)
    wide = [a for a in outside if dtypes[a.tensor] is DType.F64]
    narrow = [a for a in outside if dtypes[a.tensor].is_float and dtypes[a.tensor] is not DType.F64]
    if wide and narrow:
        hint = f"cast one of them, for example `f64({_short(narrow[0])})`"
        raise TcError(
            f"'{wide[0].tensor}' is f64 and '{narrow[0].tensor}' is {dtypes[narrow[0].tensor]}", e.span, hint=hint
        )


def _check_fields(v: Reduction, key: Expr, dtypes: dict[str, DType], module: Module) -> None:
    """The key of a monoid meets each value where partial results combine."""
    widths = widths_of(key, dtypes, module)
    for e in v.values:
        own = widths_of(e, dtypes, module)
        if len(widths | own) > 1:
            (wide, narrow), where = ("this value", "its key"), key
            if own == {"f32"}:
                (wide, narrow), where = ("its key", "this value"), e
            hint = f"cast one of them, for example `f64({_short(where)})`"
            raise TcError(
                f"'{v.reducer}' combines {wide}, a value in f64, with {narrow}, one in f32", e.span, hint=hint
            )


def _short(e: Expr) -> str:
    text = print_expression(e)
    return text if len(text) <= 40 else "..."


def _check_all_written(op: Op) -> None:
    written = {t.name for q in op.equations for t in q.targets}
    for o in op.outputs:
        if o.name not in written:
            hint = f"add an equation `{o.name}[...] = ...`, or remove it from the header"
            raise TcError(f"output '{o.name}' is never written", o.span, hint=hint)
    for p in op.params:
        if p.inout and p.name not in written:
            raise TcError(f"inout operand '{p.name}' is never written", p.span, hint="remove `inout`")
