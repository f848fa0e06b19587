"""Packs that are prefetched: while a tile is used, the memory that the next one will be packed from comes nearer.

    for n.1:                                       for n.1:
      W.packed = pack W[n, k] by prefetch   -->      W.packed = pack W[n, k] by prefetch
      acc[m, n] += sum k: X[m, k] * W.packed         acc[m, n] += sum k: X[m, k] * W.packed
                                                       prefetch W[n, k] of the next n.1

The next turn is that of the innermost loop around the pack, or of the loops around that one when it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, accesses_in, children, rebuild
from tcomp.ir.tile import Compute, Loop, Pack, Prefetch, Statement
from tcomp.schedule.fold import fold


def prefetched(phase: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """The phase with a `Prefetch` on each reduction that reads what a pack "by prefetch" fills."""
    return tuple(_statement(s, ()) for s in phase)


def _statement(s: Statement, around: tuple[Loop, ...]) -> Statement:
    if not isinstance(s, Loop):
        return s
    loops = (*around, s) if s.level == "seq" else ()
    body = tuple(_statement(inner, loops) for inner in s.body)
    if not loops:
        return replace(s, body=body)
    following = next_turn(loops)
    for pack in (p for p in body if isinstance(p, Pack) and p.by == "prefetch"):
        body = tuple(_attach(inner, pack, following) for inner in body)
    return replace(s, body=body)


def next_turn(loops: tuple[Loop, ...]) -> dict[str, Expr]:
    """The values of the loops' variables (outermost first) one turn later; after the last turn, the same again."""
    if not loops:
        return {}
    *outer, loop = loops
    step = Binary("+", Name(loop.variable), Num(loop.step))
    more = Binary("<", step, loop.stop)
    carried = next_turn(tuple(outer))
    restart = substituted(loop.start, carried) if outer else Name(loop.variable)
    values: dict[str, Expr] = {v: Call("select", (more, Name(v), e)) for v, e in carried.items()}
    return values | {loop.variable: Call("select", (more, step, restart))}


def substituted(e: Expr, values: Mapping[str, Expr]) -> Expr:
    """The expression with names replaced."""
    if isinstance(e, Name):
        return values.get(e.id, e)
    kids = children(e)
    return fold(rebuild(e, tuple(substituted(k, values) for k in kids))) if kids else e


def _attach(s: Statement, pack: Pack, following: Mapping[str, Expr]) -> Statement:
    if isinstance(s, Loop):
        return replace(s, body=tuple(_attach(inner, pack, following) for inner in s.body))
    if not isinstance(s, Compute) or not s.reduced or all(a.tensor != pack.buffer for a in accesses_in(s.value)):
        return s
    starts = [substituted(a.start, following) for a in pack.axes]
    axes = tuple(
        replace(a, start=start, stop=fold(Binary("+", start, Num(a.block))))
        for a, start in zip(pack.axes, starts, strict=True)
    )
    source = substituted(pack.source, following)
    assert isinstance(source, Access)
    return replace(s, prefetch=(*s.prefetch, Prefetch(source, axes)))
