"""Maps behind a reduction move into it: each register tile goes on with them while its sums are in registers.

    for k.0 to 3072 by 768:                            for k.0 to 3072 by 768:
      acc[m, n] += sum k: X[m, k] * W[n, k]     -->      acc[m, n] += sum k: X[m, k] * W[n, k]
    P[m, n] = acc[m, n] + b[n]                             each register tile where k.0 + 768 >= 3072:
    Y[m, n] = gelu(P[m, n])                                  P[m, n] = acc[m, n] + b[n]
                                                             Y[m, n] = gelu(P[m, n])

So sums are not stored to be loaded again, and what the maps read and write goes to and from memory beside the
multiplication and not in a burst behind it. A map moves where it walks the same axes, reads what the reduction and the
maps before it write at the very point where they write it, and nobody else reads the sums. It may pass statements in
between that have nothing to do with it (gradients that are written behind all sums).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Expr, Name, Num, accesses_in, conjuncts, names_in
from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Buffer, Compute, Loop, Pack, Scope, Statement
from tcomp.ir.walk import computes, statements_in
from tcomp.schedule.tree.nest import disjoint


def with_epilogues(
    phases: Sequence[Body], tiles: Mapping[str, Buffer], inplace: frozenset[tuple[str, str]] = frozenset()
) -> list[Body]:
    """The phases with maps moved into the reductions before them. `inplace` are outputs that may share memory with
    inputs."""
    private = frozenset(b.name for b in tiles.values() if b.scope is Scope.SCRATCH)
    return [_with_maps(p, private, inplace) for p in phases]


def _with_maps(phase: Body, private: frozenset[str], inplace: frozenset[tuple[str, str]]) -> Body:
    return map_bodies(phase, lambda body, _: _moved(body, phase, private, inplace))


def _moved(body: Body, phase: Body, private: frozenset[str], inplace: frozenset[tuple[str, str]]) -> list[Statement]:
    out: list[Statement] = []
    rest = list(body)
    while rest:
        s = rest.pop(0)
        reduction = _reduction(s)
        if reduction is not None and reduction.target.tensor in private:
            maps = _following(reduction, rest, inplace)
            if maps and sum(_reads(m, reduction) for m in maps) == len(list(_readers(phase, reduction))):
                rest = [x for x in rest if not any(x is m for m in maps)]
                s = _with_epilogue(s, reduction, maps)
        out.append(s)
    return out


def _reduction(s: Statement) -> Compute | None:
    """The reduction that a statement is, or that a loop over parts of the sum ends with: one with a register tile of
    vectors, all of whose points count."""
    if isinstance(s, Loop):
        bounds = (s.start, s.stop)
        if s.level != "seq" or s.chunked or not all(isinstance(b, Num) for b in bounds):
            return None
        *before, s = s.body
        if not isinstance(s, Compute) or not s.accumulate:
            return None
        if any(b.target.tensor == s.target.tensor for b in computes(before)):
            return None
    if not isinstance(s, Compute) or not s.reduced or s.epilogue or not s.distinct or s.atomic or s.late:
        return None
    vector = _vector(s)
    # (A region that names a summed index leaves out zeros of the sum; one that names none would leave out points.)
    points = all(names_in(c) & s.reduced for c in conjuncts(s.region))
    return s if vector is not None and vector not in s.reduced and s.guard is None and points else None


def _following(reduction: Compute, rest: Sequence[Statement], inplace: frozenset[tuple[str, str]]) -> list[Compute]:
    """The maps behind it that can move into a reduction, in order."""
    maps: list[Compute] = []
    passed: list[Compute | Pack] = []
    for m in rest:
        if isinstance(m, Pack):
            passed.append(m)
            continue
        if not isinstance(m, Compute):
            break
        if m.reduced or m.accumulate or m.prefetch or not m.distinct or m.instruction or m.epilogue:
            passed.append(m)
            continue
        before = [reduction, *maps]
        written = {c.target.tensor: c.target for c in before}
        read = accesses_in(m.value)
        fits = (
            m.guard is None
            and m.region is None
            and _walk(m) == _walk(reduction)
            and _vector(m) == _vector(reduction)
            and any(a.tensor in written for a in read)
            and all(written.get(a.tensor, a).subscripts == a.subscripts for a in read)
            and m.target.tensor not in written
            and all(a.tensor != m.target.tensor for c in (*before, m) for a in accesses_in(c.value))
            and not any(_meet(m, x, inplace) for x in passed)
        )
        if fits:
            maps.append(m)
        else:
            passed.append(m)
    return maps


def _meet(m: Compute, other: Compute | Pack, inplace: frozenset[tuple[str, str]]) -> bool:
    """May one of two statements write what the other reads or writes?"""
    if isinstance(other, Pack):
        written, read = [Access(other.buffer, ())], [other.source]
    else:
        both = (other, *other.epilogue)
        values = [e for c in both for e in (c.value, c.guard) if e is not None]
        written, read = [c.target for c in both], [a for e in values for a in accesses_in(e)]
    own = accesses_in(m.value)
    if any((m.target.tensor, a.tensor) in inplace for a in read):
        return True
    return any(_same(m.target, a) for a in (*written, *read)) or any(_same(a, w) for a in own for w in written)


def _same(a: Access, b: Access) -> bool:
    """May two accesses mean one element?"""
    return a.tensor == b.tensor and not disjoint(a, b)


def _with_epilogue(s: Statement, reduction: Compute, maps: Sequence[Compute]) -> Statement:
    last: Expr | None = None
    if isinstance(s, Loop):
        last = Binary(">=", Binary("+", Name(s.variable), Num(s.step)), s.stop)
    parallel = tuple(a for a in reduction.axes if a.name not in reduction.reduced)
    moved = replace(reduction, epilogue=tuple(replace(m, axes=parallel) for m in maps), last=last)
    return replace(s, body=(*s.body[:-1], moved)) if isinstance(s, Loop) else moved


def _readers(phase: Body, reduction: Compute) -> Iterator[Statement]:
    """The statements that read a reduction's target."""
    yield from (c for c in computes(phase) if _reads(c, reduction))
    yield from (p for p in statements_in(phase) if isinstance(p, Pack) and p.source.tensor == reduction.target.tensor)


def _reads(s: Compute, reduction: Compute) -> bool:
    return any(a.tensor == reduction.target.tensor for a in accesses_in(s.value))


def _walk(c: Compute) -> dict[str, tuple[Expr, Expr, int]]:
    """Where the parallel axes run."""
    return {a.name: (a.start, a.stop, a.block) for a in c.axes if a.name not in c.reduced}


def _vector(c: Compute) -> str | None:
    return next((a.name for a in c.axes if a.lanes > 1), None)
