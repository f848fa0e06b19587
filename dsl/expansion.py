"""How large an expression becomes once its functions are written out, found without writing them out.

Functions that call functions can double what they stand for with every line: that is refused here, so that later stages
may inline them as they come, and walk expressions by nested calls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tcomp.dsl.ast import Call, Expr, Function, Module, Name, children
from tcomp.dsl.build_expressions import DEEPEST
from tcomp.dsl.errors import TcError
from tcomp.dsl.expressions import LEAVES

MOST = 10_000
"""Parts of an expression, its functions written out."""


@dataclass(frozen=True)
class Size:
    """At most so many levels and parts; `uses`: how often a name stands in it."""

    depth: int
    parts: int
    uses: Counter[str]


@dataclass
class Sizes:
    """Measures expressions of one module; each function once."""

    module: Module
    _known: dict[str, Size] = field(default_factory=dict)

    def check(self, e: Expr) -> None:
        """TcError where the expression grows too large, or a function in it calls itself."""
        self._of(e, ())

    def check_function(self, f: Function) -> None:
        """The same for a function's body."""
        self._function(f, ())

    def _of(self, e: Expr, path: tuple[str, ...]) -> Size:
        if isinstance(e, LEAVES):
            return Size(1, 1, Counter({e.id: 1}) if isinstance(e, Name) else Counter())
        parts = [self._of(c, path) for c in children(e)]
        depth, count = 1 + max((p.depth for p in parts), default=0), 1
        uses: Counter[str] = Counter()
        weights = [1] * len(parts)
        if isinstance(e, Call) and e.function in self.module.functions:
            f = self.module.functions[e.function]
            body = self._function(f, path)
            depth, count = depth - 1 + body.depth, count + body.parts
            weights = [body.uses[name] for name in f.params[: len(parts)]]
        for weight, part in zip(weights, parts, strict=False):
            count += weight * part.parts
            for name, times in part.uses.items():
                uses[name] += weight * times
        if depth > DEEPEST or count > MOST:
            wrong = f"is nested more than {DEEPEST} levels deep" if depth > DEEPEST else f"has more than {MOST} parts"
            raise TcError(
                f"this expression {wrong}, its functions written out",
                e.span,
                hint="give parts of it equations of their own, where no function stands for them",
            )
        return Size(depth, count, uses)

    def _function(self, f: Function, path: tuple[str, ...]) -> Size:
        if f.name in path:
            chain = " -> ".join((*path, f.name))
            raise TcError(
                f"fn '{f.name}' calls itself ({chain})", f.span, hint="functions are inlined and cannot recurse"
            )
        if f.name not in self._known:
            if len(path) > DEEPEST:
                raise TcError(
                    f"fn '{path[0]}' calls functions more than {DEEPEST} levels deep",
                    self.module.functions[path[0]].span,
                    hint="write some of them out where they are called",
                )
            self._known[f.name] = self._of(f.body, (*path, f.name))
        return self._known[f.name]
