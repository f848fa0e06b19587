"""Memory that is prefetched: while a tile is used, what the next one will be packed or read from comes nearer.

    for n.1:                                       for n.1:
      W.packed = pack W[n, k] by prefetch   -->      W.packed = pack W[n, k] by prefetch
      acc[m, n] += sum k: X[m, k] * W.packed         acc[m, n] += sum k: X[m, k] * W.packed
                                                       prefetch W[n, k] of the next n.1

    for v.1:                                       for v.1:
      s = max v: X[v]                       -->      s = max v: X[v]
      z += sum v: exp(X[v] - s)                      z += sum v: exp(X[v] - s)
                                                       prefetch X[v] of the next v.1       stage X in cache at v

    core m:                                        core m:
      Y[m, c] = X[m, c] * 2                 -->      Y[m, c] = X[m, c] * 2
                                                       prefetch X[m, c] of the next m           stage X, Y in cache at m
                                                       prefetch Y[m, c] of the next m, to be written

    for n.1:                                       for n.1:
      Y[m, n] += sum k: X[m, k] * W[n, k]   -->      Y[m, n] += sum k: X[m, k] * W[n, k]
                                                       prefetch Y[m, n], to be written          stage Y in cache at n

What a sum writes is fetched in its own turn: each of its register tiles has a long way to go before it writes. So loops
between it and the named one are no hindrance. The next turn is that of the innermost loop around, or of the loops
around that one when it ends; so where the loop over v has one turn and is not there, that of the loop around its
statements. Of several statements that name the same part of what is staged in cache the last one fetches: the first had
to wait for memory, and its data are there now. A loop with none around it fetches several turns ahead where one turn is
over before memory has answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Stage, accesses_in, map_children, names_in
from tcomp.dsl.errors import TcError
from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Axis, Compute, Loop, Pack, Prefetch, Statement
from tcomp.ir.walk import loops_in
from tcomp.schedule.fold import fold
from tcomp.schedule.normal import means

FAR = 2048
"""Elements that a loop fetches ahead at least, of each tensor: short rows are read in less time than memory takes to
answer, above all where another core has just written them"""


def prefetched(phase: tuple[Statement, ...], stages: Sequence[Stage] = ()) -> tuple[Statement, ...]:
    """The phase with a `Prefetch` on the first reduction that reads what a pack "by prefetch" or "by ahead" fills, and
    on the last one of a loop's body that reads what is staged in cache there."""
    present = {_index(x) for x in loops_in(phase)}
    cached = [(s.at if s.at in present else None, n) for s in stages if s.space == "cache" for n in s.tensors]
    phase = map_bodies(phase, lambda body, around: _prefetching(body, turns_around(around), cached))
    for at, name in cached:
        phase = tuple(_written(s, at, name, at is None) for s in phase)
    return phase


def _written(s: Statement, at: str | None, name: str, inside: bool) -> Statement:
    """The statement, where sums within the loop over `at` fetch what they write of the tensor."""
    if isinstance(s, Loop):
        inside = inside or _index(s) == at
        return replace(s, body=tuple(_written(x, at, name, inside) for x in s.body))
    if not inside or not isinstance(s, Compute) or not _sums(s, name):
        return s
    used = tuple(x for x in s.axes if any(x.name in names_in(e) for e in s.target.subscripts))
    return replace(s, prefetch=(*s.prefetch, Prefetch(s.target, used, written=True)))


def check_fetched(phases: Iterable[tuple[Statement, ...]], stages: Sequence[Stage]) -> None:
    """TcError for a `stage ... in cache` line whose loop only has further loops around what it would fetch."""
    loops = [x for phase in phases for x in loops_in(phase)]
    for stage in (s for s in stages if s.space == "cache"):
        around = [x for x in loops if _index(x) == stage.at]
        for name in stage.tensors:
            if any(_names(s, name) for x in around for s in x.body):
                continue
            within = [s for x in around for y in (x, *loops_in(x.body)) for s in y.body]
            if any(_sums(s, name) or _collects(s, name) for s in within):
                continue
            inner = [y for x in around for y in loops_in(x.body) if any(_names(s, name) for s in y.body)]
            if inner:
                at = _index(inner[0])
                message = f"'{name}' is not fetched ahead at '{stage.at}': the loop over {at} lies between"
                raise TcError(message, stage.span, f"stage it in cache at {at}, or give {at} no tile level")


def _index(loop: Loop) -> str:
    return loop.variable.rpartition(".")[0]


def _sums(s: Statement, name: str) -> bool:
    return isinstance(s, Compute) and bool(s.reduced) and means(name, s.target)


def _collects(s: Statement, name: str) -> bool:
    """Whether it sums what a map writes to the tensor later (`joining/private_sums.py`), whose lines nobody awaits."""
    tile = name.partition(".")[0] + ".sum"
    return isinstance(s, Compute) and bool(s.reduced) and s.target.tensor.startswith(tile)


def _names(s: Statement, name: str) -> bool:
    """Whether it fetches a part of the tensor for a later turn, so but for what a sum writes."""
    if not isinstance(s, Compute):
        return False
    return any(means(name, a) for a in (*(() if s.reduced else (s.target,)), *accesses_in(s.value)))


def _prefetching(body: Body, loops: tuple[Loop, ...], cached: Sequence[tuple[str | None, str]]) -> Body:
    """The body of the last of these loops. `cached` are the indices at whose loops tensors are fetched (None where
    there is no loop), and the tensors."""
    if not loops:
        return body
    for at, name in cached:
        if at in (None, _index(loops[-1])):
            body = _fetching(body, name, loops)
    following = next_turn(loops)
    packs = {p.source: p for p in reversed(body) if isinstance(p, Pack) and p.by in ("prefetch", "ahead")}
    for pack in packs.values():  # (of two copies of one source, beside the reader of the first)
        body = _attached(body, pack, following) or body
    return body


def turns_around(around: tuple[Loop, ...]) -> tuple[Loop, ...]:
    """Of the loops around a body those that have turns: what is in a core's whole share of a loop."""
    shares = [i for i, loop in enumerate(around) if loop.chunked]
    return around[shares[-1] + 1 :] if shares else around


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


def _later_turn(loops: tuple[Loop, ...], axes: tuple[Axis, ...]) -> dict[str, Expr]:
    """The turn for which a part with these axes is fetched: the next one or, in a loop with none around it, the one
    that lies `FAR` elements ahead."""
    if len(loops) > 1:
        return next_turn(loops)
    turns = -(-FAR // max(1, math.prod(a.block for a in axes)))
    return next_turn((replace(loops[0], step=turns * loops[0].step),))


def substituted(e: Expr, values: Mapping[str, Expr]) -> Expr:
    """The expression with names replaced."""
    if isinstance(e, Name):
        return values.get(e.id, e)
    return fold(map_children(e, lambda x: substituted(x, values)))


def _fetching(body: tuple[Statement, ...], name: str, loops: tuple[Loop, ...]) -> tuple[Statement, ...]:
    """Each part of the tensor that the body names is fetched for a later turn by the last statement that names it."""
    out = list(body)
    seen: set[Access] = set()
    for i, s in reversed(list(enumerate(body))):
        if not isinstance(s, Compute):
            continue
        for a, written in [(s.target, True), *((x, False) for x in accesses_in(s.value))]:
            used = tuple(x for x in s.axes if any(x.name in names_in(e) for e in a.subscripts))
            if a in seen or not used or not means(name, a) or (written and s.reduced):
                continue
            seen.add(a)
            ahead = _ahead(a, used, _later_turn(loops, used), written)
            beside = _product_beside(s, out)
            if beside is None:
                s = replace(s, prefetch=(*s.prefetch, ahead))
            else:
                out[beside] = _also(out[beside], ahead)
        out[i] = s
    return tuple(out)


def _product_beside(s: Compute, body: Sequence[Statement]) -> int | None:
    """Where in the body a sum of many steps stands that fetches for `s`, a sum along its lanes only: that one is over
    before memory has answered. Of several sums the last of those that fetch the least."""
    if not s.reduced or any(a.lanes == 1 for a in s.axes if a.name in s.reduced):
        return None
    sums = [
        (len(c.prefetch), -i)
        for i, c in enumerate(body)
        if isinstance(c, Compute)
        and len(c.axes) > len(s.axes)
        and any(a.lanes == 1 and a.name in c.reduced for a in c.axes)
    ]
    return -min(sums)[1] if sums else None


def _also(s: Statement, ahead: Prefetch) -> Statement:
    assert isinstance(s, Compute)
    return replace(s, prefetch=(*s.prefetch, ahead))


def _ahead(source: Access, axes: tuple[Axis, ...], following: Mapping[str, Expr], written: bool = False) -> Prefetch:
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
        written,
    )


def _attached(body: tuple[Statement, ...], pack: Pack, following: Mapping[str, Expr]) -> tuple[Statement, ...] | None:
    """The body with the fetch beside the first reduction that reads the tile; None where none does."""
    for i, s in enumerate(body):
        found: Statement | None = None
        if isinstance(s, Loop):
            inner = _attached(s.body, pack, following)
            found = None if inner is None else replace(s, body=inner)
        elif isinstance(s, Compute) and s.reduced and any(a.tensor == pack.buffer for a in accesses_in(s.value)):
            found = replace(s, prefetch=(*s.prefetch, _ahead(pack.source, pack.axes, following)))
        if found is not None:
            return (*body[:i], found, *body[i + 1 :])
    return None
