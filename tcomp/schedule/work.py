"""What a kernel's equations ask for at least, whatever its schedule: arithmetic, and traffic with memory.

    sum k where k <= q: p[q, k] * V[k, e]      counts the points with k <= q only, and so do the equations that are
                                               computed for it alone

A function such as exp counts nothing: what it costs is the implementation's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

from tcomp.dsl.ast import Access, Binary, DType, Expr, Name, Reduction, names_in, walk
from tcomp.schedule.bounds import conjuncts
from tcomp.schedule.nest import Leaf


def arithmetic(leaves: Sequence[Leaf], extents: Mapping[str, int], local: Collection[str]) -> int:
    """Additions, subtractions, multiplications and divisions of floats. `local` names the kernel's temporaries."""
    guards = {g for leaf in leaves for g in own_guards(leaf)}
    return sum(_operations(leaf, extents, [g for g in guards if _only_under(leaf, g, local)]) for leaf in leaves)


def traffic(leaves: Sequence[Leaf], extents: Mapping[str, int], operands: Mapping[str, tuple[DType, int]]) -> int:
    """Bytes read and written: each element of an operand (type and number of elements) that an equation names, once
    for reading and once for writing."""
    read: dict[str, dict[tuple[Expr, ...], int]] = {}
    written: dict[str, dict[tuple[Expr, ...], int]] = {}
    for leaf in leaves:
        for accesses, found in ((leaf.reads(), read), (leaf.writes(), written)):
            for a in accesses:
                found.setdefault(a.tensor, {})[a.subscripts] = _elements(a, extents)
    total = 0
    for found in (read, written):
        for name, parts in found.items():
            if name in operands:
                dtype, elements = operands[name]
                total += min(elements, sum(parts.values())) * dtype.bytes
    return total


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
    points = Fraction(1)
    for i in leaf.domain:
        points *= extents[i]
    for g in guards:
        assert isinstance(g.left, Name) and isinstance(g.right, Name)
        low, high = extents[g.left.id], extents[g.right.id]
        points *= Fraction(sum(min(low, b + 1) for b in range(high)), low * high)
    v = leaf.equation.value
    exprs = (*v.values, *([v.key] if v.key is not None else [])) if isinstance(v, Reduction) else (v,)
    work = sum(isinstance(n, Binary) and n.op in "+-*/" for e in exprs for n in walk(e))
    return int(points) * (work + isinstance(v, Reduction))


def _elements(a: Access, extents: Mapping[str, int]) -> int:
    """Most elements that an access names: one per combination of the indices in its subscripts."""
    n = 1
    for i in sorted({i for s in a.subscripts for i in names_in(s)} & set(extents)):
        n *= extents[i]
    return n
