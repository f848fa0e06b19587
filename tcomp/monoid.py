"""Which monoids can be computed tile by tile with one extremum and sums: the rescaled sums.

m = max(a.m, b.m);  x = a.x * f(a.m, m) + b.x * f(b.m, m)   -->   x = sum of values * f(key, max of keys)
"""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import Binary, Call, Expr, Monoid, Name, substitute


@dataclass(frozen=True)
class RescaledSum:
    """`extremum` (max or min) joins keys; `factor` is f(u, v) with names "u" (own key) and "v" (joint key)."""

    extremum: str
    factor: Expr

    def weight(self, key: Expr, joint: Expr) -> Expr:
        return substitute(self.factor, {"u": key, "v": joint})


def rescaled_sum(m: Monoid) -> RescaledSum | None:
    """The monoid's rescaled-sum form, or None when it has another shape."""
    if not isinstance(m.key, Call) or m.key.function not in ("max", "min"):
        return None
    if set(m.key.args) != {Name(f"a.{m.key_name}"), Name(f"b.{m.key_name}")}:
        return None
    c = m.carried
    if not isinstance(c, Binary) or c.op != "+":
        return None
    factors = []
    for side, e in (("a", c.left), ("b", c.right)):
        if not isinstance(e, Binary) or e.op != "*":
            return None
        own = Name(f"{side}.{m.carried_name}")
        rest = e.right if e.left == own else e.left if e.right == own else None
        if rest is None:
            return None
        factors.append(substitute(rest, {f"{side}.{m.key_name}": Name("u"), m.key_name: Name("v")}))
    return RescaledSum(m.key.function, factors[0]) if factors[0] == factors[1] else None
