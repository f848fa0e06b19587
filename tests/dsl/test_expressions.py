"""Expressions are walked outermost first and left to right, and changed without being copied where nothing changes."""

from __future__ import annotations

from tcomp.dsl.ast import Name, Num, substitute, walk
from tcomp.dsl.expressions import children, map_children
from tcomp.dsl.parse import parse_expression
from tcomp.dsl.printer import print_expression


def test_a_walk_is_outermost_first_and_left_to_right() -> None:
    e = parse_expression("select(a[i, j + 1] < -b, f(x, 2), c)")
    assert [print_expression(part) for part in walk(e)] == [
        "select(a[i, j + 1] < -b, f(x, 2), c)",
        "a[i, j + 1] < -b", "a[i, j + 1]", "i", "j + 1", "j", "1", "-b", "b",
        "f(x, 2)", "x", "2",
        "c",
    ]  # fmt: skip


def test_what_does_not_change_is_the_very_same_and_what_does_keeps_its_place() -> None:
    e = parse_expression("f(x, -x, a[x], x + y)")
    assert map_children(e, lambda part: part) is e
    changed = substitute(e, {"x": Num(3)})
    assert print_expression(changed) == "f(3, -(3), a[3], 3 + y)"
    assert changed.span == e.span and isinstance(e.args[0], Name)
    assert [part.span for part in children(changed)[1:]] == [part.span for part in children(e)[1:]]
