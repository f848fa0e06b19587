"""Scalar expressions of `.tc` text and of the tile IR, element types, source spans; and what walks over expressions.

Everything is a frozen dataclass. Source spans do not take part in equality or hashing, so two trees are equal exactly
when they say the same thing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open region of a source file; lines and columns count from 1."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


NO_SPAN = Span("<generated>", 0, 0, 0, 0)


def no_span() -> Span:
    """The default of a node's `span` field."""
    return field(default=NO_SPAN, compare=False, repr=False)


Places = tuple[tuple[str, Span], ...]
"""Where lines of a node stand that are no nodes of their own, by what they give"""


def place(places: Places, what: str, other: Span) -> Span:
    """Where `what` is given; `other` where that is not known."""
    return dict(places).get(what, other)


class DType(Enum):
    """Element types. `bytes` is the storage size of one element.

    REAL is `real` of a generic op: it has no size until the op is bound to a storage type (dsl/storage.py)."""

    F64 = "f64"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    E4M3 = "e4m3"
    E5M2 = "e5m2"
    I32 = "i32"
    REAL = "real"

    @property
    def bytes(self) -> int:
        assert self is not DType.REAL, "an op's `real` has no size before it is bound"
        return {"f64": 8, "f32": 4, "i32": 4, "bf16": 2, "f16": 2, "e4m3": 1, "e5m2": 1}[self.value]

    @property
    def is_float(self) -> bool:
        return self is not DType.I32

    def __str__(self) -> str:
        return self.value


# ---------------------------------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True, eq=False)
class Num:
    """A literal. An `int` value is an integer literal, a `float` value a real one; `2` and `2.0` differ."""

    value: int | float
    span: Span = no_span()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Num):
            return NotImplemented
        return type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))


@dataclass(frozen=True, slots=True)
class Name:
    """An index variable, a dimension, or (in a `fn`) a scalar argument."""

    id: str
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Access:
    """`tensor[subscripts]`; a scalar operand `lr: f32[]` is read as `lr` and parsed to no subscripts."""

    tensor: str
    subscripts: tuple[Expr, ...]
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Unary:
    """`-x` or `not x`."""

    op: str
    operand: Expr
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Binary:
    """`+ - * / // % **` (arithmetic), `< <= > >= == !=` (comparison), `and or` (logic)."""

    op: str
    left: Expr
    right: Expr
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class Call:
    """A builtin (see BUILTINS), a cast named by its dtype (`bf16(x)`), or a user `fn`."""

    function: str
    args: tuple[Expr, ...]
    span: Span = no_span()


Expr = Num | Name | Access | Unary | Binary | Call
LEAVES = (Num, Name)

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
LOGIC = ("and", "or")
BUILTINS: dict[str, int] = {
    "exp": 1, "log": 1, "tanh": 1, "sqrt": 1, "rsqrt": 1, "abs": 1, "sin": 1, "cos": 1, "floor": 1,
    "min": 2, "max": 2, "select": 3, "random": 2,
}  # fmt: skip
"""Builtin scalar functions and their number of arguments. `select(c, a, b)` is a where c else b.
`random(seed, counter)` is uniform in [0, 1): a counter-based generator (see docs/language.md)."""


# ------------------------------------------------------------------------------------------- traversal


def children(e: Expr) -> tuple[Expr, ...]:
    """The direct sub-expressions of an expression."""
    if isinstance(e, Binary):
        return (e.left, e.right)
    if isinstance(e, Access):
        return e.subscripts
    if isinstance(e, Call):
        return e.args
    return (e.operand,) if isinstance(e, Unary) else ()


def walk(e: Expr) -> Iterator[Expr]:
    """The expression and all its sub-expressions, outermost first."""
    # One loop, not a generator in a generator for each level: every pass walks, and this takes a quarter of the time.
    ahead = [e]
    while ahead:
        e = ahead.pop()
        yield e
        if not isinstance(e, LEAVES):
            ahead += children(e)[::-1]


def conjuncts(e: Expr | None) -> list[Expr]:
    """`a and b` --> [a, b]; nothing for no condition."""
    if isinstance(e, Binary) and e.op == "and":
        return conjuncts(e.left) + conjuncts(e.right)
    return [] if e is None else [e]


def conjunction(conditions: Iterable[Expr]) -> Expr | None:
    """[a, b] --> `a and b`; None for no condition."""
    out: Expr | None = None
    for c in conditions:
        out = c if out is None else Binary("and", out, c)
    return out


def product_factors(e: Expr) -> list[Expr]:
    """The factors of a product: `a * b * -c` has a, b and c, `a / b` has a."""
    match e:
        case Binary("*", left, right):
            return product_factors(left) + product_factors(right)
        case Unary("-", x) | Binary("/", x, _):
            return product_factors(x)
    return [e]


def rebuild(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same expression with other direct sub-expressions."""
    match e:
        case Access():
            return Access(e.tensor, new, e.span)
        case Unary():
            return Unary(e.op, new[0], e.span)
        case Binary():
            return Binary(e.op, new[0], new[1], e.span)
        case Call():
            return Call(e.function, new, e.span)
        case _:
            return e


def map_children(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """The same expression with `f` of each direct sub-expression; the very same where `f` changes none."""
    old = children(e)
    if not old:
        return e
    new = tuple(map(f, old))
    return e if all(map(operator.is_, old, new)) else rebuild(e, new)


def bottom_up(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """`f` of every part of an expression, inner ones first: each is what `f` made of the parts in it."""
    return f(map_children(e, lambda x: bottom_up(x, f)))


def substitute(e: Expr, names: Mapping[str, Expr]) -> Expr:
    """Replace names by expressions: `substitute(x * k, {"k": j + 1})` is `x * (j + 1)`."""
    if isinstance(e, Name):
        return names.get(e.id, e)
    return map_children(e, lambda x: substitute(x, names))


def names_in(e: Expr) -> set[str]:
    """The ids of all `Name` nodes in an expression (subscripts included)."""
    if isinstance(e, LEAVES):
        return {e.id} if isinstance(e, Name) else set()
    return {n.id for n in walk(e) if isinstance(n, Name)}


def accesses_in(e: Expr) -> list[Access]:
    """All accesses in an expression, those inside subscripts included."""
    return [n for n in walk(e) if isinstance(n, Access)]
