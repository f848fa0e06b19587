"""The rules of schedules. Ranges of choices are written out, conditions joined by `and` are split."""

from __future__ import annotations

from tcomp.dsl import ast
from tcomp.dsl.ast import Expr
from tcomp.dsl.build_expressions import Children, ExpressionRules
from tcomp.dsl.directives import CONDITION
from tcomp.dsl.hints import did_you_mean
from tcomp.dsl.schedule_blocks import Block, KernelLines, Named, told_apart

_SPACES = ("shared", "registers", "packed", "cache")
_COMBINATIONS = ("partials", "sorted", "atomic", "turns", "private")


class ScheduleRules(ExpressionRules):
    def level_call(self, c: Children) -> ast.Level:
        kind, _, args, close = c
        return ast.Level(str(kind), args or (), self._span(kind, close or kind))

    def level_number(self, c: Children) -> ast.Level:
        kind, number = c
        return ast.Level(str(kind), (self.integer([number]),), self._span(kind, number))

    def map_loops(self, c: Children) -> ast.MapLoops:
        loops, of, levels, when = c
        span = self._span(loops[0], when or levels[-1])
        condition = self._condition(when, "when(T <= 64)")
        return ast.MapLoops(tuple(map(str, loops)), tuple(map(str, of or ())), levels, condition, span)

    def levels(self, c: Children) -> tuple[ast.Level, ...]:
        return tuple(c)

    def _condition(self, when: ast.Level | None, example: str) -> Expr | None:
        if when is not None and (when.kind != CONDITION or len(when.args) != 1):
            raise self._error("a condition is expected here", when, f"write: {example}")
        return None if when is None else when.args[0]

    def order(self, c: Children) -> ast.Order:
        return ast.Order(tuple(map(str, c[1])), self._span(c[0], c[1][-1]))

    def fuse(self, c: Children) -> ast.Fuse:
        return ast.Fuse(tuple(map(str, c[1])), str(c[2]), self._span(c[0], c[2]))

    def stage(self, c: Children) -> ast.Stage:
        keyword, tensors, space, at, by, *options = c
        if space not in _SPACES:
            raise self._error(f"unknown space '{space}'", space, did_you_mean(str(space), _SPACES, "space"))
        last = options[-1] if options else (by or at)
        return ast.Stage(
            tuple(map(str, tensors)),
            str(space),
            str(at),
            None if by is None else str(by),
            tuple(options),
            self._span(keyword, last),
        )

    def use(self, c: Children) -> ast.Use:
        return ast.Use(str(c[1]), tuple(map(str, c[2])), self._span(c[0], c[2][-1]))

    def cast(self, c: Children) -> ast.Cast:
        return ast.Cast(str(c[1]), self._dtype(c[2]), self._span(c[0], c[2]))

    def combine(self, c: Children) -> ast.Combine:
        keyword, names, over, by, when = c
        condition = self._condition(when, "when(parts == 2)")
        if by not in _COMBINATIONS:
            hint = did_you_mean(str(by), _COMBINATIONS, "way to combine")
            raise self._error(f"unknown way to combine '{by}'", by, hint)
        return ast.Combine(tuple(map(str, names)), str(over), str(by), condition, self._span(keyword, when or by))

    def choice(self, c: Children) -> tuple[Expr, ...]:
        first, last, step = c
        if last is None:
            return (first,)
        low, high = self._whole(first), self._whole(last)
        stride = 1 if step is None else self._whole(step)
        if stride <= 0:
            raise self._error(f"a range of choices cannot go in steps of {stride}", step, "write `step 1` or more")
        if high < low:
            raise self._error("an empty range of choices", first, "write it upwards: `64..512 step 64`")
        span = self._span(first, step or last)
        return tuple(ast.Num(v, span) for v in range(low, high + 1, stride))

    def _whole(self, e: Expr) -> int:
        if isinstance(e, ast.Num) and isinstance(e.value, int):
            return e.value
        raise self._error("a range of choices needs whole numbers", e, "write them out: `64, 128`")

    def tune(self, c: Children) -> ast.Tune:
        keyword, name, default, *choices = c
        flat = tuple(e for choice in choices if choice is not None for e in choice)
        return ast.Tune(str(name), default, flat, self._span(keyword, flat[-1] if flat else default))

    def where(self, c: Children) -> ast.Where:
        return ast.Where(tuple(_conjuncts(c[1])), self._span(c[0], c[1]))

    def flag(self, c: Children) -> ast.Flag:
        name, args = c
        return ast.Flag(str(name), args or (), self._span(name, args[-1] if args else name))

    def kernel(self, c: Children) -> KernelLines:
        keyword, outputs, *lines = c
        return KernelLines(tuple(map(str, outputs)), tuple(lines), self._span(keyword, outputs[-1]))

    def block(self, c: Children) -> Block:
        word, names, *lines = c
        return Block(str(word), self._named(names), tuple(lines), self._span(word, names[-1]))

    def schedule(self, c: Children) -> list[ast.Schedule]:
        keyword, ops, targets, *lines = c
        span = self._span(keyword, targets[-1])
        return told_apart(self._named(ops), self._named(targets), lines, span, self._text)

    def _named(self, names: Children) -> tuple[Named, ...]:
        return tuple(Named(str(n), self._token_span(n)) for n in names)


def _conjuncts(e: Expr) -> list[Expr]:
    if isinstance(e, ast.Binary) and e.op == "and":
        return _conjuncts(e.left) + _conjuncts(e.right)
    return [e]
