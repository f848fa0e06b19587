"""Rewriting tile IR: what passes share."""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Access, Expr, Name, Num, substitute
from tcomp.ir.print import print_statement
from tcomp.ir.rewrite import map_bodies, map_expressions, map_leaves
from tcomp.ir.tile import Ahead, Axis, Compute, Loop, Pack


def copy(to: str, of: str) -> Compute:
    return Compute(Access(to, (Name("i"),)), Access(of, (Name("i"),)), (Axis("i", Name("k.0"), Num(8), 8),))


NEST = (copy("a", "x"), Loop("k.0", Num(0), Num(8), 8, "seq", (copy("b", "a"), copy("c", "b"))))


def test_leaves_are_replaced_in_order() -> None:
    seen: list[str] = []

    def twice(s: object) -> list[Compute]:
        assert isinstance(s, Compute)
        seen.append(s.target.tensor)
        return [s, s]

    first, again, loop = map_leaves(NEST, twice)
    assert seen == ["a", "b", "c"] and first is again
    assert isinstance(loop, Loop) and len(loop.body) == 4


def test_bodies_are_given_with_the_loops_around_them_inner_ones_first() -> None:
    seen: list[tuple[int, int]] = []

    def last(body: tuple[object, ...], around: tuple[Loop, ...]) -> list[object]:
        seen.append((len(body), len(around)))
        return list(body[-1:])

    (loop,) = map_bodies(NEST, last)  # type: ignore[arg-type]
    assert seen == [(2, 1), (2, 0)]
    assert isinstance(loop, Loop) and loop.body == (copy("c", "b"),)


def test_every_expression_of_a_statement_is_rewritten() -> None:
    def two(e: Expr) -> Expr:
        return substitute(e, {"k.0": Num(2)})

    only = Compute(Access("a", (Name("k.0"),)), Num(1.0), (), guard=Name("k.0"), only=Name("k.0"), region=Name("k.0"))
    pack = Pack("t", (Axis("i", Name("k.0"), Num(8), 8),), Access("x", (Name("i"), Name("k.0"))))
    ahead = replace(only, ahead=Ahead(pack, (("next j.0", "j.0", Name("k.0")),)))
    loop = map_expressions(Loop("j.0", Name("k.0"), Num(8), 1, "seq", (only, pack, ahead, copy("b", "a"))), two)
    assert "k.0" not in print_statement(loop)
