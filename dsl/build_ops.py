"""The rules of ops, functions and monoids."""

from __future__ import annotations

from dataclasses import replace

from lark import Token

from tcomp.dsl import ast
from tcomp.dsl.ast import Expr
from tcomp.dsl.build_expressions import Children, ExpressionRules
from tcomp.dsl.resolve import resolve_scalars


class OpRules(ExpressionRules):
    def param(self, c: Children) -> list[ast.Operand]:
        how, names, (dtype, shape, close) = c
        start = how or names[0]
        return [
            ast.Operand(
                str(n), dtype, shape, how == "inout", self._span(start if n is names[0] else n, close), how == "state"
            )
            for n in names
        ]

    def output(self, c: Children) -> list[ast.Operand]:
        return self.param([None, *c])

    def params(self, c: Children) -> tuple[ast.Operand, ...]:
        return tuple(o for group in c for o in group)

    outputs = params

    def index(self, c: Children) -> tuple[str, Token, Expr]:
        return ("index", c[1], c[2])

    def require(self, c: Children) -> tuple[str, Expr]:
        return ("require", c[1])

    def target(self, c: Children) -> ast.Target:
        name, _, subscripts, close, dtype = c
        d = self._dtype(dtype) if dtype is not None else None
        return ast.Target(str(name), subscripts or (), d, self._span(name, dtype or close or name))

    def reduction(self, c: Children) -> ast.Reduction:
        reducer, indices, guard, key, values = c
        span = self._span(reducer, values[-1])
        return ast.Reduction(str(reducer), tuple(map(str, indices)), guard, key, values, span)

    def equation(self, c: Children) -> ast.Equation:
        *targets, sign, value = c
        return ast.Equation(tuple(targets), sign == "+=", value, self._span(targets[0], value))

    def op(self, c: Children) -> ast.Op:
        keyword, name, params, dims, outputs, *lines = c
        return resolve_scalars(
            ast.Op(
                name=str(name),
                params=params or (),
                outputs=outputs or (),
                dims=tuple(map(str, dims or ())),
                ranges=tuple((str(x[1]), x[2]) for x in lines if isinstance(x, tuple) and x[0] == "index"),
                requires=tuple(x[1] for x in lines if isinstance(x, tuple) and x[0] == "require"),
                equations=tuple(x for x in lines if isinstance(x, ast.Equation)),
                doc=self._doc(keyword.line),
                span=self._span(keyword, name),
            )
        )

    def backward(self, c: Children) -> ast.Op:
        op = self.op(c)
        return replace(op, name=op.name + ".backward", backward_of=op.name)

    def function(self, c: Children) -> ast.Function:
        keyword, name, params, body = c
        return ast.Function(str(name), tuple(map(str, params or ())), body, self._span(keyword, name))

    def monoid_line(self, c: Children) -> tuple[Token, Expr]:
        return c[0], c[1]

    def monoid(self, c: Children) -> ast.Monoid:
        keyword, name, key_name, *lines = c
        keys = [line for line in lines if line[0] == key_name]
        carried = [line for line in lines if line[0] != key_name]
        if not keys:
            hint = f"add `{key_name} = ...`, from `a.{key_name}` and `b.{key_name}`, as the first line"
            raise self._error(f"monoid '{name}' does not say how its key '{key_name}' combines", name, hint)
        if len(keys) > 1:
            raise self._error(f"'{key_name}' is combined twice", keys[1][0], "keep one of the two lines")
        if not carried:
            hint = "add `x = ...`, from `a.x` and `b.x`; a monoid of its key alone is `max` or `min`"
            raise self._error(f"monoid '{name}' carries no field", name, hint)
        if len(carried) > 1:
            hint = f"one line for '{carried[0][0]}' holds for every carried field"
            raise self._error(f"monoid '{name}' has more than one carried line", carried[1][0], hint)
        (field, body) = carried[0]
        return ast.Monoid(str(name), str(key_name), keys[0][1], str(field), body, self._span(keyword, name))
