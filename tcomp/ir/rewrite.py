"""Tile IR rewritten: what passes over statements have in common, so that each says only its own rule.

map_leaves        for each statement that is no loop, what takes its place
map_bodies        for each list of statements (a phase, a loop's body), inner ones first, the list in its place
map_expressions   for each expression of a statement, another
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from tcomp.dsl.ast import Access, Expr
from tcomp.ir.tile import Ahead, Axis, Compute, Loop, Pack, Prefetch, Statement, Turns, Unpack

Body = tuple[Statement, ...]
S = TypeVar("S", bound=Statement)


def map_leaves(body: Iterable[Statement], f: Callable[[Compute | Pack | Unpack], Iterable[Statement]]) -> Body:
    """The body with `f` of every statement that is no loop in its place, in order."""
    out: list[Statement] = []
    for s in body:
        out += [replace(s, body=map_leaves(s.body, f))] if isinstance(s, Loop) else f(s)
    return tuple(out)


def map_bodies(
    body: Body, f: Callable[[Body, tuple[Loop, ...]], Sequence[Statement]], around: tuple[Loop, ...] = ()
) -> Body:
    """The body with `f` of every list of statements in its place, given with the loops `around` it (outermost first, as
    they were): those of inner loops first."""
    inner = (replace(s, body=map_bodies(s.body, f, (*around, s))) if isinstance(s, Loop) else s for s in body)
    return tuple(f(tuple(inner), around))


def map_expressions(s: S, f: Callable[[Expr], Expr]) -> S:
    """The statement with `f` of every expression in it: bounds, subscripts, values, conditions. `f` keeps accesses
    accesses."""
    found = _mapped(s, f)
    assert isinstance(found, type(s))
    return found


def _mapped(s: Statement, f: Callable[[Expr], Expr]) -> Statement:
    def access(a: Access) -> Access:
        found = f(a)
        assert isinstance(found, Access)
        return found

    def axes(of: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(replace(a, start=f(a.start), stop=f(a.stop)) for a in of)

    def turns(t: Turns) -> Turns:
        met = tuple((f(low), f(value), f(stop)) for low, value, stop in t.met)
        return replace(t, flag=access(t.flag), number=f(t.number), before=f(t.before), met=met)

    def fetched(p: Prefetch) -> Prefetch:
        return replace(p, source=access(p.source), axes=axes(p.axes))

    def ahead(a: Ahead) -> Ahead:
        following = tuple((name, variable, f(value)) for name, variable, value in a.following)
        return Ahead(map_expressions(a.pack, f), following)

    def maybe(e: Expr | None) -> Expr | None:
        return None if e is None else f(e)

    if isinstance(s, Loop):
        return replace(s, start=f(s.start), stop=f(s.stop), body=tuple(map_expressions(x, f) for x in s.body))
    if isinstance(s, Pack):
        return replace(s, axes=axes(s.axes), source=access(s.source))
    if isinstance(s, Unpack):
        of_turns = None if s.turns is None else turns(s.turns)
        return replace(s, axes=axes(s.axes), target=access(s.target), turns=of_turns)
    return replace(
        s,
        target=access(s.target),
        value=f(s.value),
        axes=axes(s.axes),
        guard=maybe(s.guard),
        prefetch=tuple(map(fetched, s.prefetch)),
        region=maybe(s.region),
        epilogue=tuple(map_expressions(c, f) for c in s.epilogue),
        last=maybe(s.last),
        only=maybe(s.only),
        turns=None if s.turns is None else turns(s.turns),
        ahead=None if s.ahead is None else ahead(s.ahead),
    )
