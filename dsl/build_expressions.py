"""What every rule needs (spans, errors, element types), and the rules of expressions and types."""

from __future__ import annotations

from dataclasses import replace
from math import isinf
from typing import Any

from lark import Token

from tcomp.dsl import ast
from tcomp.dsl.ast import DType, Expr, Span
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean

_DTYPES = {d.value: d for d in DType}
_SIZES = {"KB": 1024, "MB": 1024**2, "GB": 1024**3}

DEEPEST = 100
"""levels of an expression (a sum of n terms has n): passes walk expressions recursively"""
_LARGEST = 1 << 63

Children = list[Any]


class ExpressionRules:
    """`begin` must be called with the text before each parse."""

    def __init__(self) -> None:
        self._file = ""
        self._text = ""
        self._lines: list[str] = []
        self._parenthesised: set[int] = set()
        self._depth: dict[int, int] = {}
        """of the expressions made so far, by id (all of them are kept: they are parts of the result)"""

    def begin(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._lines = text.splitlines()
        self._parenthesised = set()
        self._depth = {}

    def _nested(self, e: Expr, *parts: Expr) -> Expr:
        """The expression, unless it is nested too deeply."""
        depth = 1 + max((self._depth.get(id(p), 0) for p in parts), default=0)
        if depth > DEEPEST:
            raise self._error(
                f"this expression is nested more than {DEEPEST} levels deep",
                e,
                "give parts of it equations of their own",
            )
        self._depth[id(e)] = depth
        return e

    def _token_span(self, t: Token) -> Span:
        return Span(self._file, t.line or 0, t.column or 0, t.end_line or 0, t.end_column or 0)

    def _span(self, first: Any, last: Any) -> Span:
        """From the start of one token or node to the end of another."""
        a = self._token_span(first) if isinstance(first, Token) else first.span
        b = self._token_span(last) if isinstance(last, Token) else last.span
        return Span(self._file, a.line, a.column, b.end_line, b.end_column)

    def _error(self, message: str, where: Any, hint: str = "") -> TcError:
        span = self._token_span(where) if isinstance(where, Token) else where.span
        return TcError(message, span, hint, text=self._text)

    def _dtype(self, t: Token) -> DType:
        d = _DTYPES.get(str(t))
        if d is None:
            raise self._error(f"unknown element type '{t}'", t, did_you_mean(str(t), _DTYPES, "element type"))
        return d

    def _doc(self, line: int) -> str:
        """The comment block directly above a line."""
        block: list[str] = []
        i = line - 2
        while i >= 0 and self._lines[i].lstrip().startswith("#"):
            block.append(self._lines[i].lstrip()[1:].removeprefix(" ").rstrip())
            i -= 1
        return "\n".join(reversed(block))

    def expression(self, c: Children) -> Expr:
        return c[0]  # type: ignore[no-any-return]

    def binary(self, c: Children) -> Expr:
        left, op, right = c
        return self._nested(ast.Binary(str(op), left, right, self._span(left, right)), left, right)

    def unary(self, c: Children) -> Expr:
        op, operand = c
        if op == "-" and isinstance(operand, ast.Num) and id(operand) not in self._parenthesised:
            return ast.Num(-operand.value, self._span(op, operand))
        return self._nested(ast.Unary(str(op), operand, self._span(op, operand)), operand)

    def integer(self, c: Children) -> Expr:
        return self._whole_number(c[0], c[0])

    def real(self, c: Children) -> Expr:
        value = float(c[0])
        if isinf(value):
            raise self._error("this number is larger than any of 64 bits", c[0], "give a smaller one")
        return ast.Num(value, self._token_span(c[0]))

    def size(self, c: Children) -> Expr:
        return self._whole_number(c[0], c[0][:-2], _SIZES[c[0][-2:]])

    def _whole_number(self, token: Token, digits: str, unit: int = 1) -> Expr:
        """A whole number that 64 bits hold. Text of more digits than that is not looked at: Python would refuse it."""
        short = digits.lstrip("0") or "0"
        value = int(short) * unit if len(short) <= 19 else _LARGEST
        if value >= _LARGEST:
            raise self._error("this number is larger than any of 64 bits", token, "give a smaller one")
        return ast.Num(value, self._token_span(token))

    def name(self, c: Children) -> Expr:
        return ast.Name(str(c[0]), self._token_span(c[0]))

    def access(self, c: Children) -> Expr:
        name, _, subscripts, close = c
        return self._nested(ast.Access(str(name), subscripts or (), self._span(name, close)), *(subscripts or ()))

    def call(self, c: Children) -> Expr:
        name, _, args, close = c
        return self._nested(ast.Call(str(name), args or (), self._span(name, close)), *(args or ()))

    def parenthesised(self, c: Children) -> Expr:
        e: Expr = replace(c[1], span=self._span(c[0], c[2]))
        self._parenthesised.add(id(e))
        self._depth[id(e)] = self._depth.pop(id(c[1]), 0)
        return e

    def expressions(self, c: Children) -> tuple[Expr, ...]:
        return tuple(c)

    def names(self, c: Children) -> tuple[Token, ...]:
        return tuple(c)

    def dotted(self, c: Children) -> Token:
        return c[0]  # type: ignore[no-any-return]

    def dotted_names(self, c: Children) -> tuple[Token, ...]:
        return tuple(c)

    def type(self, c: Children) -> tuple[DType, tuple[Expr, ...], Token]:
        name, _, shape, close = c
        return self._dtype(name), shape or (), close
