"""Sums that blocks have added up in turns, written to the output by the block whose turn was last.

    phase 1: grid b, h, k: ... add dQ.joined[b, q, h, d] ...          by all blocks of k
    phase 2: grid q', h', b': dQ[b', q', h', d'] = dQ.joined[...]     a launch and a pass over memory
    -->
    phase 1: grid b, h, k: ... add dQ.joined[b, q, h, d] ...
               seq q' in 0 .. T if this block is the last of k, else 0:
                 dQ[b, q', h, d'] = dQ.joined[b, q', h, d']           while it is in the cache

What stands behind such a loop's condition waits until the block's own additions are done (`results/delivery.py`);
those of the blocks before it were, when it had its turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, accesses_in, substitute
from tcomp.ir.rewrite import map_expressions
from tcomp.ir.tile import Compute, Loop, Pack, Statement, Unpack
from tcomp.ir.walk import grid_nest
from tcomp.schedule.fold import fold

VALUES = 32
"""that a thread has in flight: a turn takes as long as memory's latency"""


def written_last(
    phases: Sequence[tuple[Statement, ...]], name: str, output: str, last: Expr, extents: Mapping[str, int]
) -> list[tuple[Statement, ...]]:
    """The phases, without the one that writes `output` from the sum `name` if the block can do it in which `last` is 1
    (and not 0)."""
    number = next((i for i, p in enumerate(phases) if _only(p) is not None and _reads(_only(p), name)), None)
    if number is None or number == 0:
        return list(phases)
    (inner, _), compute = grid_nest(phases[number]), _only(phases[number])
    grid, _ = grid_nest(phases[number - 1])
    mine = {g.variable.rpartition(".")[0]: g for g in grid}
    if compute is None:
        return list(phases)
    same: dict[str, Expr] = {}
    loops: list[Loop] = []
    for loop in inner:
        index = loop.variable.rpartition(".")[0].removesuffix(f".{output}")
        if index in mine:
            if mine[index].step != loop.step:
                return list(phases)
            same[loop.variable] = Name(mine[index].variable)
        else:
            loops.append(loop)
    if not loops:
        return list(phases)
    kept: list[Loop] = []
    along = {x.variable: _walked(compute, x) == compute.target.subscripts[-1] for x in loops}
    rows_first = sorted(loops, key=lambda x: (not along[x.variable], -_extent(x, output, extents)))
    for loop in rows_first:
        extent = _extent(loop, output, extents)
        compute, step = _wider(compute, loop, extent)
        if step < extent or (not kept and loop is rows_first[-1]):
            kept.append(replace(loop, step=step, stop=Num(extent)))
        else:
            same[loop.variable] = Num(0)
    kept.sort(key=lambda x: -(_extent(x, output, extents) // x.step))
    kept[0] = replace(kept[0], stop=fold(Binary("*", last, kept[0].stop)))
    body: Statement = map_expressions(compute, lambda e: fold(substitute(e, same)))
    for loop in reversed(kept):
        body = replace(loop, level="seq", body=(body,))
    whole = _with(phases[number - 1], body)
    return [*phases[: number - 1], whole, *phases[number + 1 :]]


def kept_places(
    phases: Sequence[tuple[Statement, ...]], outputs: Collection[str], inplace: frozenset[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """The (output, input) pairs that may still share memory where a last block writes those outputs while others go on:
    they have read of the input what they added for, if they read it nowhere but in the loop in which they add."""

    def around(body: Sequence[Statement]) -> Iterator[Loop]:
        for s in body:
            if isinstance(s, Loop):
                adds = any(isinstance(u, Unpack) and u.turns is not None for u in s.body)
                yield from (s,) if adds else around(s.body)

    def reads(body: Sequence[Statement], skip: Collection[int]) -> Iterator[str]:
        for s in body:
            match s:
                case Loop() if id(s) not in skip:
                    yield from reads(s.body, skip)
                case Compute():
                    yield from (a.tensor for e in (s.value, *s.target.subscripts) for a in accesses_in(e))
                case Pack():
                    yield s.source.tensor

    elsewhere = set(reads([s for p in phases for s in p], {id(loop) for p in phases for loop in around(p)}))
    return frozenset((out, given) for out, given in inplace if out not in outputs or given not in elsewhere)


def _only(phase: tuple[Statement, ...]) -> Compute | None:
    """The Compute of a phase where that is all there is in its grid loops."""
    _, body = grid_nest(phase)
    return body[0] if len(body) == 1 and isinstance(body[0], Compute) else None


def _extent(loop: Loop, output: str, extents: Mapping[str, int]) -> int:
    return extents[loop.variable.rpartition(".")[0].removesuffix(f".{output}")]


def _reads(c: Compute | None, name: str) -> bool:
    return c is not None and isinstance(c.value, Access) and c.value.tensor == name


def _walked(c: Compute, loop: Loop) -> Expr | None:
    """The index of the axis that begins where the loop stands."""
    return next((Name(a.name) for a in c.axes if a.start == Name(loop.variable)), None)


def _wider(c: Compute, loop: Loop, extent: int) -> tuple[Compute, int]:
    """The Compute over more of that loop's axis at a time, and how much."""
    axis = next((a for a in c.axes if a.start == Name(loop.variable)), None)
    if axis is None:
        return c, loop.step
    values = 1
    for a in c.axes:
        if a.spread is not None:
            values *= a.spread.per_thread(a.block)
    step = loop.step * max(1, min(VALUES // values, -(-extent // loop.step)))
    stop: Expr = Binary("+", Name(loop.variable), Num(step))
    if extent % step:
        stop = Call("min", (Num(extent), stop))
    wider = replace(axis, stop=stop, block=step)
    return replace(c, axes=tuple(wider if a is axis else a for a in c.axes)), step


def _with(phase: tuple[Statement, ...], more: Statement) -> tuple[Statement, ...]:
    """The phase with one more statement at the end of its blocks."""
    if len(phase) == 1 and isinstance(phase[0], Loop) and phase[0].level == "grid":
        return (replace(phase[0], body=_with(phase[0].body, more)),)
    return (*phase, more)
