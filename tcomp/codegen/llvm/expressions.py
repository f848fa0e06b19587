"""Expressions of the tile IR as a typed graph with shared nodes.

Takes `dsl.ast` expressions over axes and loop variables, gives `Node`s that know their kind (f32, f64, int,
bool), the axes they vary with, and whether they read memory that may lie outside a buffer. Casts are inserted
here, constants folded, small powers turned into products, so that evaluation is one case per operation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tcomp.codegen.llvm.types import kind_of
from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num, Unary, map_children
from tcomp.dsl.dims import arithmetic
from tcomp.instructions.vector_matching import vector_instruction

PAIR = "pair of bf16"
"""The function that joins two values, which are bf16 ones, to a word of their bits: the first in the lower half."""
ROUNDED_PAIR = "pair rounded to bf16"
"""The same of any two f32 values, rounded; subnormals may become zeros."""
SHORT_EXP2 = "exp2 of 18 bits"
"""2**x in f32, within 2**-18 of it."""
NARROW_EXP = "exp for 16 bits"
"""e**x in f32, within 2 ulp and |x| 2**-28 of it."""
_DTYPES = {d.value: d for d in DType}
_BINARY = {"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "**": "pow"}
_COMPARE = {"<", "<=", ">", ">=", "==", "!="}
_FLOAT_FUNCTIONS = {"exp", "log", "tanh", "sqrt", "rsqrt", "sin", "cos"}


@dataclass(eq=False, slots=True)
class Node:
    """One operation. `deps` are the axes its value varies with; `unsafe` says that it must only be evaluated
    where its guard holds, because a load in it may otherwise leave its buffer."""

    op: str
    kind: str
    args: tuple[Node, ...]
    deps: frozenset[str]
    data: object = None
    unsafe: bool = False

    @property
    def cost(self) -> int:
        """Operations to evaluate it once."""
        return (
            1
            + sum(a.cost for a in self.args)
            + 20 * (self.op in _FLOAT_FUNCTIONS or self.op in ("pow", "short exp2", "narrow exp"))
        )

    @property
    def is_literal(self) -> bool:
        return self.op == "num"


class Places(Protocol):
    """What resolves accesses: see addressing.py."""

    def load_node(self, access: Access, graph: Graph) -> Node: ...


class Graph:
    """Builds nodes; equal expressions give the same node."""

    def __init__(self, axes: frozenset[str], places: Places) -> None:
        self.axes = axes
        self.places = places
        self._nodes: dict[object, Node] = {}
        self._built: dict[Expr, Node] = {}

    def build(self, e: Expr) -> Node:
        """The node of an expression."""
        found = self._built.get(e)
        if found is None:
            found = self._build(fold(e))
            self._built[e] = found
        return found

    def node(
        self, op: str, kind: str, args: tuple[Node, ...] = (), data: object = None, axis: str | None = None
    ) -> Node:
        """A node shared with all equal ones. `axis` adds a dependence of its own."""
        key = (op, kind, tuple(id(a) for a in args), data, type(data))
        found = self._nodes.get(key)
        if found is None:
            deps = frozenset().union(*(a.deps for a in args)) | ({axis} if axis else frozenset())
            found = Node(op, kind, args, deps, data, any(a.unsafe for a in args))
            self._nodes[key] = found
        return found

    def load(self, place: object, dtype: DType, deps: frozenset[str]) -> Node:
        """The node that reads an element of this type at a place."""
        key = ("load", id(place))
        found = self._nodes.get(key)
        if found is None:
            found = self._nodes[key] = Node("load", kind_of(dtype), (), deps, place)
        return found

    def number(self, value: int | float, kind: str) -> Node:
        return self.node("num", kind, (), int(value) if kind == "int" else float(value))

    def cast(self, x: Node, kind: str) -> Node:
        """`x` converted to another kind."""
        if x.kind == kind:
            return x
        if x.is_literal and kind != "bool":
            assert isinstance(x.data, (int, float))
            return self.number(x.data, kind)
        if kind == "bool":
            return self.node("!=", "bool", (x, self.number(0, x.kind)))
        return self.node("cast", kind, (x,))

    def _build(self, e: Expr) -> Node:
        match e:
            case Num(bool() | int() as v):
                return self.number(v, "int")
            case Num(v):
                return self.number(v, "f32")
            case Name(name):
                if name in self.axes:
                    return self.node("index", "int", (), name, axis=name)
                return self.node("variable", "int", (), name)
            case Access():
                return self.places.load_node(e, self)
            case Unary("-", x):
                a = self.build(x)
                a = self.cast(a, "int") if a.kind == "bool" else a
                return self.node("neg", a.kind, (a,))
            case Unary(_, x):
                return self.node("not", "bool", (self.cast(self.build(x), "bool"),))
            case Binary("and" | "or" as op, x, y):
                parts = (self.cast(self.build(x), "bool"), self.cast(self.build(y), "bool"))
                return self.node(op, "bool", parts)
            case Binary("**", x, y):
                return self._power(self.build(x), self.build(y))
            case Binary(op, x, y):
                a, b = self._common(self.build(x), self.build(y), divide=op == "/")
                if op in _COMPARE:
                    return self.node(op, "bool", (a, b))
                return self.node(_BINARY[op], a.kind, (a, b))
            case Call(name, args):
                return self._call(name, args)
        raise NotImplementedError(f"cannot generate code for {e}")

    def _common(self, a: Node, b: Node, divide: bool = False) -> tuple[Node, Node]:
        """Both operands in the kind of an arithmetic operation between them; a literal adopts the other's."""
        kind = wider(a, b)
        if divide and kind == "int":
            kind = "f32"
        return self.cast(a, kind), self.cast(b, kind)

    def _call(self, name: str, args: tuple[Expr, ...]) -> Node:
        nodes = [self.build(a) for a in args]
        instruction = vector_instruction(name)
        if instruction is not None:
            return self.node("dot", "f32", tuple(nodes), instruction.family)
        if name == PAIR:
            return self.node("pair", "int", tuple(self.cast(n, "f32") for n in nodes))
        if name == ROUNDED_PAIR:
            return self.node("rounded pair", "int", tuple(self.cast(n, "f32") for n in nodes))
        if name == SHORT_EXP2:
            return self.node("short exp2", "f32", (self.cast(nodes[0], "f32"),))
        if name == NARROW_EXP and nodes[0].kind != "f64":
            return self.node("narrow exp", "f32", (self.cast(nodes[0], "f32"),))
        name = "exp" if name == NARROW_EXP else name
        if name in _DTYPES:
            if len(nodes) == 2:
                return self._stochastic(nodes[0], self.cast(nodes[1], "f32"), _DTYPES[name])
            return self._dtype_cast(nodes[0], _DTYPES[name])
        if name in ("min", "max"):
            a, b = self._common(nodes[0], nodes[1])
            return self.node(name, a.kind, (a, b))
        if name == "select":
            condition = self.cast(nodes[0], "bool")
            a, b = self._common(nodes[1], nodes[2])
            node = self.node("select", a.kind, (condition, a, b))
            return node
        if name == "random":
            seed, counter = (self.cast(n, "int") for n in nodes)
            return self.node("random", "f32", (seed, counter))
        (x,) = nodes
        if name == "exp2":
            x = self.cast(x, "f32") if x.kind in ("int", "bool") else x
            return self.node("exp", x.kind, (self.node("mul", x.kind, (x, self.number(math.log(2.0), x.kind))),))
        if name in _FLOAT_FUNCTIONS or name == "floor":
            if x.kind in ("int", "bool"):
                if name == "floor":
                    return x
                x = self.cast(x, "f32")
            return self.node(name, x.kind, (x,))
        if name == "abs":
            return self.node("abs", x.kind, (x,))
        raise NotImplementedError(f"cannot generate code for the function {name}()")

    def _dtype_cast(self, x: Node, dtype: DType) -> Node:
        match dtype:
            case DType.I32:
                return self.cast(x, "int")
            case DType.F64:
                return self.cast(x, "f64")
            case DType.F32:
                return self.cast(x, "f32")
        return self.node("round", "f32", (self.cast(x, "f32"),), dtype)

    def _stochastic(self, x: Node, u: Node, dtype: DType) -> Node:
        """A cast with a random number, by which it rounds; to f32 there is nothing to round."""
        if dtype is DType.F32:
            return self.cast(x, "f32")
        if dtype is not DType.BF16:
            raise NotImplementedError(f"stochastic rounding to {dtype} is not supported: use bf16")
        return self.node("stochastic", "f32", (self.cast(x, "f32"), u))

    def _power(self, x: Node, y: Node) -> Node:
        if x.kind == "bool":
            x = self.cast(x, "int")
        if y.is_literal and isinstance(y.data, (int, float)) and y.data == int(y.data) and abs(y.data) <= 16:
            n = int(y.data)
            if x.kind != "int" or (n >= 0 and y.kind == "int"):
                if x.kind == "int" and y.kind != "int":
                    x = self.cast(x, "f32")
                if n < 0:
                    return self.node("div", x.kind, (self.number(1, x.kind), self._product(x, -n)))
                return self._product(x, n)
        if y.is_literal and y.data in (0.5, -0.5):
            x = self.cast(x, "f32") if x.kind == "int" else x
            return self.node("sqrt" if y.data == 0.5 else "rsqrt", x.kind, (x,))
        kind = "f64" if "f64" in (x.kind, y.kind) else "f32"
        exponent = y if y.kind == "int" else self.cast(y, "f64")
        whole = self.node("pow", "f64", (self.cast(x, "f64"), exponent))
        return self.cast(whole, kind)

    def _product(self, x: Node, n: int) -> Node:
        """x ** n by squaring."""
        if n == 0:
            return self.number(1, x.kind)
        if n == 1:
            return x
        half = self._product(x, n // 2)
        square = self.node("mul", x.kind, (half, half))
        return square if n % 2 == 0 else self.node("mul", x.kind, (square, x))


def wider(a: Node, b: Node) -> str:
    """The kind of arithmetic between two operands: a real literal does not widen f64 nor narrow to f32."""
    kinds = {n.kind for n in (a, b)}
    if "f64" in kinds:
        return "f64"
    return "f32" if "f32" in kinds else "int"


def fold(e: Expr) -> Expr:
    """Arithmetic on numbers done: `64 ** -0.5 --> 0.125`, `n.0 + 0 --> n.0`."""
    if isinstance(e, Num | Name):
        return e
    e = map_children(e, fold)
    match e:
        case Unary("-", Num(v)):
            return Num(-v)
        case Binary("+", x, Num(0)) | Binary("-", x, Num(0)) | Binary("+", Num(0), x) if not _is_real_zero(e):
            return x
        case Binary("*", x, Num(1)) | Binary("*", Num(1), x) if _has_int_one(e):
            return x
        case Binary(op, Num(x), Num(y)):
            value = arithmetic(op, x, y)
            return e if value is None else Num(value)
        case Call("min", (Num(x), Num(y))) if type(x) is type(y):
            return Num(min(x, y))
        case Call("max", (Num(x), Num(y))) if type(x) is type(y):
            return Num(max(x, y))
    return e


def _is_real_zero(e: Binary) -> bool:
    return any(isinstance(s, Num) and isinstance(s.value, float) for s in (e.left, e.right))


def _has_int_one(e: Binary) -> bool:
    return any(isinstance(s, Num) and type(s.value) is int and s.value == 1 for s in (e.left, e.right))
