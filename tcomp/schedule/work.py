"""What a kernel's equations ask for at least, whatever its schedule: arithmetic, and traffic with memory.

    sum k where k <= q: p[q, k] * V[k, e]      counts the points with k <= q only, and so do the equations that are
                                               computed for it alone

A function such as exp counts no arithmetic, since what it costs is the implementation's: evaluations are counted apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

from tcomp.dsl.ast import (
    Access,
    Binary,
    Call,
    DType,
    Expr,
    Monoid,
    Name,
    Num,
    Reduction,
    accesses_in,
    conjuncts,
    names_in,
    walk,
)
from tcomp.monoid import rescaled_sum
from tcomp.schedule.tree.nest import Leaf

FUNCTIONS = ("exp", "log", "tanh", "sin", "cos", "sqrt", "rsqrt", "divide")
"""What has a ceiling of its own: it takes many instructions, or a unit that is not pipelined as multiplication is."""


def arithmetic(leaves: Sequence[Leaf], extents: Mapping[str, int], local: Collection[str]) -> int:
    """Additions, subtractions, multiplications and divisions of floats. `local` names the kernel's temporaries."""
    guards = {g for leaf in leaves for g in own_guards(leaf)}
    return sum(_operations(leaf, extents, [g for g in guards if _only_under(leaf, g, local)]) for leaf in leaves)


def evaluations(
    leaves: Sequence[Leaf], extents: Mapping[str, int], local: Collection[str], monoids: Mapping[str, Monoid]
) -> tuple[tuple[str, int], ...]:
    """How often each of `FUNCTIONS` is evaluated, as the equations are written: once a point for equal terms of one
    equation, and for a monoid once a point for its weight. In the order of `FUNCTIONS`, those that occur."""
    guards = {g for leaf in leaves for g in own_guards(leaf)}
    found: dict[str, int] = {}
    for leaf in leaves:
        v = leaf.equation.value
        under = [g for g in guards if _only_under(leaf, g, local)]
        parts: list[tuple[Collection[str], Sequence[Expr]]]
        if not isinstance(v, Reduction):
            parts = [(leaf.domain, [v])]
        else:
            parts = [(leaf.domain, v.values)]
            if v.key is not None:
                keys = _indices(leaf.equation.targets[0].subscripts, extents) | {*leaf.reduced}
                form = rescaled_sum(monoids[v.reducer])
                parts = [(keys, [v.key, *([form.factor] if form else [])])]
                for t, value in zip(leaf.equation.targets[1:], v.values, strict=True):
                    parts.append((_indices(t.subscripts, extents) | {*leaf.reduced}, [value]))
        for domain, expressions in parts:
            for name in _functions(expressions):
                found[name] = found.get(name, 0) + _points(domain, extents, under)
    return tuple((f, found[f]) for f in FUNCTIONS if f in found)


def _functions(expressions: Sequence[Expr]) -> list[str]:
    """The functions of distinct terms."""
    terms = {n for e in expressions for n in walk(e)}
    names = [n.function for n in terms if isinstance(n, Call) and n.function in FUNCTIONS]
    return names + ["divide" for n in terms if isinstance(n, Binary) and n.op == "/" and not isinstance(n.right, Num)]


def traffic(
    leaves: Sequence[Leaf],
    extents: Mapping[str, int],
    operands: Mapping[str, tuple[DType, int]],
    cleared: Collection[str] = (),
) -> int:
    """Bytes read and written: each element of an operand (type and number of elements) that an equation names, once
    for reading and once for writing, and of outputs that the kernel clears every element."""
    read: dict[str, dict[tuple[Expr, ...], int]] = {}
    written: dict[str, dict[tuple[Expr, ...], int]] = {}
    for leaf in leaves:
        for accesses, found in ((leaf.reads(), read), (leaf.writes(), written)):
            for a in accesses:
                found.setdefault(a.tensor, {})[a.subscripts] = _elements(a, extents)
    total = 0
    for found, whole in ((read, ()), (written, cleared)):
        for name, parts in found.items():
            if name in operands:
                dtype, elements = operands[name]
                total += (elements if name in whole else min(elements, sum(parts.values()))) * dtype.bytes
    return total


def gathered(
    leaves: Sequence[Leaf], extents: Mapping[str, int], operands: Mapping[str, tuple[DType, int]]
) -> tuple[tuple[int, int], ...]:
    """Of the traffic, the bytes in rows that data chooses (`wte[tokens[b, t], c]`), by the bytes of such a row: what
    the subscripts behind the last chosen one walk."""
    found: dict[tuple[str, tuple[Expr, ...], bool], tuple[int, int]] = {}
    for leaf in leaves:
        for written, accesses in ((False, leaf.reads()), (True, leaf.writes())):
            for a in accesses:
                chosen = [n for n, s in enumerate(a.subscripts) if accesses_in(s)]
                if chosen and a.tensor in operands:
                    dtype, elements = operands[a.tensor]
                    row = 1
                    for i in _indices(a.subscripts[chosen[-1] + 1 :], extents):
                        row *= extents[i]
                    moved = min(elements, _elements(a, extents)) * dtype.bytes
                    found[a.tensor, a.subscripts, written] = row * dtype.bytes, moved
    total: dict[int, int] = {}
    for row, moved in found.values():
        total[row] = total.get(row, 0) + moved
    return tuple(sorted(total.items()))


def own_guards(leaf: Leaf) -> list[Binary]:
    """The conditions `a <= b` between two indices under which the leaf's reduction counts."""
    value = leaf.equation.value
    if not isinstance(value, Reduction):
        return []
    return [
        g
        for g in conjuncts(value.guard)
        if isinstance(g, Binary) and g.op == "<=" and isinstance(g.left, Name) and isinstance(g.right, Name)
    ]


def _only_under(leaf: Leaf, guard: Binary, local: Collection[str], seen: tuple[Leaf, ...] = ()) -> bool:
    """Whether the leaf is needed only at points where the guard holds."""
    if leaf in seen:
        return True
    if not names_in(guard) <= leaf.domain:
        return False
    if guard in own_guards(leaf):
        return True
    kept = any(t not in local for t in leaf.written)
    return not kept and bool(leaf.readers) and all(_only_under(r, guard, local, (*seen, leaf)) for r in leaf.readers)


def _operations(leaf: Leaf, extents: Mapping[str, int], guards: Sequence[Binary]) -> int:
    v = leaf.equation.value
    if not isinstance(v, Reduction):
        return _points(leaf.domain, extents, guards) * _written(v)
    if v.key is None:
        return _points(leaf.domain, extents, guards) * (sum(map(_written, v.values)) + 1)
    # A monoid: the key's extremum, and for each carried field a sum of weighted values over the field's own indices.
    key, *fields = leaf.equation.targets
    total = _points(_indices(key.subscripts, extents) | {*leaf.reduced}, extents, guards) * (_written(v.key) + 1)
    for t, value in zip(fields, v.values, strict=True):
        domain = _indices(t.subscripts, extents) | {*leaf.reduced}
        total += _points(domain, extents, guards) * (_written(value) + (1 if isinstance(value, Num) else 2))
    return total


def _points(domain: Collection[str], extents: Mapping[str, int], guards: Sequence[Binary]) -> int:
    points = Fraction(1)
    for i in domain:
        if not (i.endswith(".part") and i.removesuffix(".part") in domain):  # the parts of a divided sum, counted once
            points *= extents[i]
    for g in guards:
        assert isinstance(g.left, Name) and isinstance(g.right, Name)
        low, high = extents[g.left.id], extents[g.right.id]
        points *= Fraction(sum(min(low, b + 1) for b in range(high)), low * high)
    return int(points)


def _written(e: Expr) -> int:
    """Operations of one evaluation."""
    return sum(isinstance(n, Binary) and n.op in "+-*/" for n in walk(e))


def _indices(subscripts: Sequence[Expr], extents: Mapping[str, int]) -> set[str]:
    return {i for s in subscripts for i in names_in(s)} & set(extents)


def _elements(a: Access, extents: Mapping[str, int]) -> int:
    """Most elements that an access names: one per combination of the indices in its subscripts."""
    n = 1
    for i in _indices(a.subscripts, extents):
        n *= extents[i]
    return n
