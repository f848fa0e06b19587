"""Affine conditions in a `Compute`: which there are, and what its value and guard are where they are known.

`k <= q` is `k - q <= 0`: where that holds in the largest case it holds everywhere, and where it fails in the smallest
it holds nowhere. The generators write code for such tiles without the test.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tcomp.codegen.llvm.integers import Affine, affine_form
from tcomp.dsl.ast import Binary, Call, Expr, conjunction, conjuncts, map_children, walk
from tcomp.ir.tile import Compute

_TURNED = {">": "<", ">=": "<="}


def conditions(c: Compute) -> list[Expr]:
    """The comparisons that guard a Compute, or choose within its value, and are affine in its axes."""
    found = conjuncts(c.guard) + chosen_by(c.value)
    axes = {a.name for a in c.axes}
    return [e for e in dict.fromkeys(found) if _varies(e, axes)]


def chosen_by(value: Expr) -> list[Expr]:
    """The conditions of a value's selects."""
    selects = [e for e in walk(value) if isinstance(e, Call) and e.function == "select"]
    return [e for s in selects for e in conjuncts(s.args[0])]


def _varies(e: Expr, axes: Collection[str]) -> bool:
    form = at_most_zero(e)
    return form is not None and any(n in axes for n, _ in form.terms)


def at_most_zero(e: Expr, define: Mapping[str, Affine] | None = None) -> Affine | None:
    """A comparison as `affine <= 0`, names in `define` replaced by their forms."""
    if not isinstance(e, Binary) or e.op not in ("<", "<=", ">", ">="):
        return None
    left, right = affine_form(e.left, define), affine_form(e.right, define)
    if left is None or right is None:
        return None
    form = right - left if e.op in _TURNED else left - right
    return form + Affine((), 1) if e.op in ("<", ">") else form


def without(e: Expr, held: Collection[Expr], failed: Collection[Expr] = ()) -> Expr:
    """The expression where these conditions hold and those fail: `select(c, a, b)` --> `a`, or `b`."""
    e = map_children(e, lambda x: without(x, held, failed))
    match e:
        case Call("select", (c, a, b)):
            if all(x in held for x in conjuncts(c)):
                return a
            if any(x in failed for x in conjuncts(c)):
                return b
    return e


def remaining(guard: Expr | None, held: Collection[Expr]) -> Expr | None:
    """What is left of a guard where these conditions hold."""
    return conjunction(e for e in conjuncts(guard) if e not in held)
