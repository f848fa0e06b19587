"""Memory that is prefetched: while a tile is used, what the next one will be packed or read from comes nearer.

    for n.1:                                       for n.1:
      W.packed = pack W[n, k] by prefetch   -->      W.packed = pack W[n, k] by prefetch
      acc[m, n] += sum k: X[m, k] * W.packed         acc[m, n] += sum k: X[m, k] * W.packed
                                                       prefetch W[n, k] of the next n.1

    for v.1:                                       for v.1:
      s = max v: X[v]                       -->      s = max v: X[v]
      z += sum v: exp(X[v] - s)                      z += sum v: exp(X[v] - s)
                                                       prefetch X[v] of the next v.1       stage X in cache at v

The next turn is that of the innermost loop around, or of the loops around that one when it ends. Of several reductions
that read what is staged in cache the last one fetches: the first had to wait for memory, and its data are there now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Stage, accesses_in, children, names_in, rebuild
from tcomp.ir.tile import Axis, Compute, Loop, Pack, Prefetch, Statement
from tcomp.schedule.fold import fold


def prefetched(phase: tuple[Statement, ...], stages: Sequence[Stage] = ()) -> tuple[Statement, ...]:
    """The phase with a `Prefetch` on each reduction that reads what a pack "by prefetch" fills, and on the last one of
    a loop's body that reads what is staged in cache there."""
    cached = [(s.at, name) for s in stages if s.space == "cache" for name in s.tensors]
    return tuple(_statement(s, (), cached) for s in phase)


def _statement(s: Statement, around: tuple[Loop, ...], cached: Sequence[tuple[str, str]]) -> Statement:
    if not isinstance(s, Loop):
        return s
    loops = (*around, s) if s.level == "seq" else ()
    body = tuple(_statement(inner, loops, cached) for inner in s.body)
    if not loops:
        return replace(s, body=body)
    following = next_turn(loops)
    for at, name in cached:
        if s.variable.rpartition(".")[0] == at:
            body = _fetching(body, name, following)
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


def _fetching(body: tuple[Statement, ...], name: str, following: Mapping[str, Expr]) -> tuple[Statement, ...]:
    """The last reduction that reads the tensor also fetches what it will read in the next turn."""
    tensor, _, part = name.partition(".")
    for i, s in reversed(list(enumerate(body))):
        if not isinstance(s, Compute) or not s.reduced:
            continue
        for a in accesses_in(s.value):
            constants = [x.value for x in a.subscripts if isinstance(x, Num)]
            if a.tensor == tensor and (not part or (constants and constants[0] == int(part))):
                used = tuple(x for x in s.axes if any(x.name in names_in(e) for e in a.subscripts))
                found = _ahead(a, used, following)
                return (*body[:i], replace(s, prefetch=(*s.prefetch, found)), *body[i + 1 :])
    return body


def _ahead(source: Access, axes: tuple[Axis, ...], following: Mapping[str, Expr]) -> Prefetch:
    """The memory of an access one turn later."""
    starts = [substituted(a.start, following) for a in axes]
    moved = substituted(source, following)
    assert isinstance(moved, Access)
    return Prefetch(
        moved,
        tuple(
            replace(a, start=start, stop=fold(Binary("+", start, Num(a.block))), unroll=1, lanes=1)
            for a, start in zip(axes, starts, strict=True)
        ),
    )


def _attach(s: Statement, pack: Pack, following: Mapping[str, Expr]) -> Statement:
    if isinstance(s, Loop):
        return replace(s, body=tuple(_attach(inner, pack, following) for inner in s.body))
    if not isinstance(s, Compute) or not s.reduced or all(a.tensor != pack.buffer for a in accesses_in(s.value)):
        return s
    return replace(s, prefetch=(*s.prefetch, _ahead(pack.source, pack.axes, following)))
