"""Dimension arithmetic: evaluate an expression of dimensions, and find dimensions from operand shapes.

`bind` unifies an op's shape expressions with actual shapes: bare names first, then expressions with one
unknown left (`3 * C` against 2304 gives C = 768), then every remaining expression is checked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Op, Operand, Unary, names_in
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import listing

Number = int | float
_LARGEST = 1 << 127


def _power(a: Number, b: Number) -> Number:
    """OverflowError before a whole number of millions of digits is made."""
    if isinstance(a, int) and isinstance(b, int) and b * (abs(a).bit_length() - 1) > _LARGEST.bit_length():
        raise OverflowError
    value: Number = a**b
    return value


_BINARY: dict[str, Callable[[Number, Number], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": _power,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_CALLS: dict[str, Callable[..., Number]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1.0 / math.sqrt(x),
    "exp": math.exp,
    "log": math.log,
    "floor": math.floor,
    "select": lambda c, a, b: a if c else b,
}


def arithmetic(op: str, a: Number, b: Number) -> Number | None:
    """The number `a op b`; None where it has none, or is a truth."""
    try:
        value = _BINARY[op](a, b) if op in _BINARY else None
    except (ZeroDivisionError, OverflowError):
        return None
    return None if isinstance(value, bool | complex) else value


def evaluate_dim(e: Expr, dims: Mapping[str, Number]) -> Number:
    """The value of an expression of numbers and dimensions. Comparisons and logic give 0 or 1.

    TcError for an unknown name, a division by zero, or something that is no dimension arithmetic.
    """
    match e:
        case Num(value):
            return value
        case Name(id):
            if id not in dims:
                hint = f"known here: {listing(sorted(dims))}" if dims else ""
                raise TcError(f"the value of '{id}' is not known here", e.span, hint=hint)
            return dims[id]
        case Unary("-", operand):
            return -evaluate_dim(operand, dims)
        case Unary("not", operand):
            return int(not evaluate_dim(operand, dims))
        case Binary("and", left, right):
            return int(bool(evaluate_dim(left, dims)) and bool(evaluate_dim(right, dims)))
        case Binary("or", left, right):
            return int(bool(evaluate_dim(left, dims)) or bool(evaluate_dim(right, dims)))
        case Binary(op, left, right):
            a, b = evaluate_dim(left, dims), evaluate_dim(right, dims)
            try:
                value = _BINARY[op](a, b)
            except (ZeroDivisionError, OverflowError):
                value = math.nan
            return _checked(value, f"{a} {op} {b}", e)
        case Call(function, args) if function in _CALLS:
            values = [evaluate_dim(a, dims) for a in args]
            try:
                value = _CALLS[function](*values)
            except (ValueError, ZeroDivisionError, OverflowError, TypeError):
                value = math.nan
            return _checked(value, f"{function}({', '.join(map(str, values))})", e)
        case Call(function):
            hint = "a loop is written `for l in L:`" if function == "range" else "use + - * / // % ** min max"
            raise TcError(f"'{function}' is not dimension arithmetic", e.span, hint=hint)
        case Access(tensor):
            raise TcError(f"'{tensor}' is a tensor, not a dimension", e.span, hint="a size must be known at build")
        case _:
            raise TcError(
                "not dimension arithmetic", e.span, hint="use numbers, dimensions and + - * / // % ** min max"
            )


def _checked(value: Number, text: str, e: Expr) -> Number:
    """The value of an expression shown as `text`, as a number (truth as 0 or 1); TcError where it is none."""
    if isinstance(value, complex) or not -_LARGEST < value < _LARGEST:  # nan is not
        raise TcError(f"{text} has no value", e.span, hint="numbers are real, finite and below 2 ** 127")
    return int(value) if isinstance(value, bool) else value


def shape_text(shape: Iterable[int]) -> str:
    """`[4, 16]`"""
    return f"[{', '.join(map(str, shape))}]"


def operand_shape(operand: Operand, dims: Mapping[str, Number]) -> tuple[int, ...]:
    """The operand's shape at these dimensions."""
    shape = []
    for e in operand.shape:
        value = evaluate_dim(e, dims)
        if value != int(value) or value < 0:
            raise TcError(f"'{operand.name}' would have an extent of {value}", e.span, hint="extents are whole numbers")
        shape.append(int(value))
    return tuple(shape)


def bind(op: Op, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int]) -> dict[str, int]:
    """The op's dimensions, from the shapes of (some of) its operands and the given static dims.

    TcError when shapes contradict each other, a dimension stays unknown, or a `require` does not hold.
    """
    found = dict(dims)
    given = [(o, shapes[o.name]) for o in op.operands if o.name in shapes]
    _bind_names(op, given, found)
    _solve_rest(op, given, found)
    _require_known(op, found)
    for condition in op.requires:
        if not evaluate_dim(condition, found):
            raise TcError(
                f"op '{op.name}' requires a condition that does not hold",
                condition.span,
                notes=(f"with {_values(names_in(condition), found)}",),
                hint="give dimensions for which it holds",
            )
    return found


def _bind_names(op: Op, given: Sequence[tuple[Operand, tuple[int, ...]]], found: dict[str, int]) -> None:
    """Give bare names their extents; TcError for a shape of another rank, and for two extents of one name."""
    origin = dict.fromkeys(found, "given")
    for operand, shape in given:
        if len(shape) != len(operand.shape):
            raise TcError(
                f"'{operand.name}' of op '{op.name}' has {len(operand.shape)} axes, but is given {shape_text(shape)}",
                operand.span,
                hint="pass a tensor of as many axes",
            )
        for axis, (e, extent) in enumerate(zip(operand.shape, shape, strict=True)):
            if not isinstance(e, Name):
                continue
            known = found.setdefault(e.id, extent)
            if known != extent:
                raise TcError(
                    f"dimension '{e.id}' of op '{op.name}' is {known} ({origin[e.id]}) "
                    f"and {extent} (axis {axis} of {operand.name}{shape_text(shape)})",
                    operand.span,
                    hint="these extents must be equal",
                )
            origin.setdefault(e.id, f"from {operand.name}{shape_text(shape)}")


def _solve_rest(op: Op, given: Sequence[tuple[Operand, tuple[int, ...]]], found: dict[str, int]) -> None:
    """Solve the other expressions for what is unknown in them, one name at a time, and check those without unknowns."""
    rest = [
        (operand, axis, e, extent)
        for operand, shape in given
        for axis, (e, extent) in enumerate(zip(operand.shape, shape, strict=True))
        if not isinstance(e, Name)
    ]
    before = -1
    while rest and len(rest) != before:
        before = len(rest)
        rest = [item for item in rest if not _settled(op, *item, found)]


def _settled(op: Op, operand: Operand, axis: int, e: Expr, extent: int, found: dict[str, int]) -> bool:
    """Check an extent that is known, or solve it for the one name that is not. False where neither can be done yet."""
    unknown = names_in(e) - found.keys()
    if len(unknown) == 1:
        (name,) = unknown
        solved = _solve(e, name, extent, found)
        if solved is not None:
            found[name] = solved
        return solved is not None
    if unknown:
        return False
    value = evaluate_dim(e, found)
    if value != extent:
        raise TcError(
            f"axis {axis} of '{operand.name}' of op '{op.name}' must be {value} but is {extent}",
            e.span,
            notes=(f"with {_values(names_in(e), found)}",),
            hint="these extents must be equal",
        )
    return True


def _require_known(op: Op, found: Mapping[str, int]) -> None:
    for operand in op.operands:
        for e in operand.shape:
            for name in sorted(names_in(e)):
                if name not in found:
                    raise TcError(
                        f"dimension '{name}' of op '{op.name}' is not given by the shape of any argument",
                        operand.span,
                        hint=f"pass it by name: {op.name}(..., {name}={name})",
                    )
    for name in op.dims:
        if name not in found:
            raise TcError(
                f"op '{op.name}' needs its dimension '{name}'", op.span, hint=f"pass it: {op.name}(..., {name}={name})"
            )


def _solve(e: Expr, name: str, extent: int, dims: Mapping[str, int]) -> int | None:
    """The value of `name` that makes a linear expression equal `extent`, if there is a whole one."""
    try:
        at0 = evaluate_dim(e, {**dims, name: 0})
        at1 = evaluate_dim(e, {**dims, name: 1})
        slope = at1 - at0
        if slope == 0 or (extent - at0) % slope:
            return None
        value = int((extent - at0) // slope)
        return value if evaluate_dim(e, {**dims, name: value}) == extent else None
    except TcError:
        return None


def _values(names: set[str], dims: Mapping[str, Number]) -> str:
    return ", ".join(f"{n} = {dims[n]}" for n in sorted(names))
