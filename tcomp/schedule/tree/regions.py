"""Where the values of temporaries are needed, so that code generators need not compute whole tiles of them.

    s[q, k] = sum d: ...                                      needed where k <= q, because the only reader
    p[q, k] = select(k <= q, exp(s[q, k]), 0.0)               chooses by that
    O[q, e] = sum k where k <= q: p[q, k] * V[k, e]           p is needed everywhere: its zeros stand for the guard

A product that is zero behind a guard only by one of its factors is written as a `select`, so that its other factors are
not needed there: what was never computed may be NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tcomp.dsl.ast import (
    Access,
    Call,
    Expr,
    Name,
    Num,
    Reduction,
    accesses_in,
    children,
    conjunction,
    conjuncts,
    names_in,
)
from tcomp.schedule.tree.bounds import zero_outside
from tcomp.schedule.tree.nest import Leaf


@dataclass(frozen=True)
class Needs:
    """By the leaf's number: the guards outside which nobody reads its result, and those outside which its value is zero
    and has to be written so."""

    within: dict[int, list[Expr]] = field(default_factory=dict)
    zeros: dict[int, list[Expr]] = field(default_factory=dict)


def needs(leaves: Sequence[Leaf], definitions: Mapping[str, Expr]) -> Needs:
    """What the kernel's equations need of each other; `definitions` are its pointwise temporaries. A guard that reads
    what the kernel computes tells nothing: its tensor may be made only behind the equation that would ask it."""
    out = Needs()
    written = [t for leaf in leaves for t in leaf.written]
    for leaf in reversed(leaves):
        if not leaf.readers or len(leaf.written) != 1 or written.count(leaf.written[0]) != 1 or leaf.sums_for:
            continue
        if leaf.equation.accumulate or any(not isinstance(s, Name) for s in leaf.equation.targets[0].subscripts):
            continue
        zeros: dict[int, list[Expr]] = {}
        parts = [_within(r, leaf, out, zeros, definitions) for r in leaf.readers]
        common = [
            g
            for g in parts[0]
            if all(g in p for p in parts[1:])
            and names_in(g) <= set(leaf.parallel)
            and not any(a.tensor in written for a in accesses_in(g))
        ]
        if common:
            out.within[leaf.number] = common
            for number, guards in zeros.items():
                mine = out.zeros.setdefault(number, [])
                mine += [g for g in guards if g in common and g not in mine]
    return out


def _within(
    reader: Leaf, leaf: Leaf, known: Needs, zeros: dict[int, list[Expr]], definitions: Mapping[str, Expr]
) -> list[Expr]:
    """The guards outside which a reader does without the leaf's values. Products that it has to write as a select for
    that are entered in `zeros`."""
    tensor, value = leaf.written[0], reader.equation.value
    target = leaf.writes()[0]
    accesses = [a for a in reader.reads() if a.tensor == tensor]
    inside = [a for e in _values(value) for a in accesses_in(e) if a.tensor == tensor]
    if any(a.subscripts != target.subscripts for a in accesses) or len(set(accesses)) != len(set(inside)):
        return []
    found = list(known.within.get(reader.number, []))
    if isinstance(value, Reduction):
        guards = conjuncts(value.guard)
        if value.key is not None:
            return found + (guards if all(a.tensor != tensor for e in value.values for a in accesses_in(e)) else [])
        sums = value.reducer == "sum"
        return found + [g for g in guards if not sums or not zero_outside(value.values[0], g, definitions)]
    found += _choosing(value, tensor) or []
    if isinstance(leaf.equation.value, Reduction):
        for g in _counting(reader):
            if g not in found and zero_outside(value, g, definitions):
                zeros.setdefault(reader.number, []).append(g)
                found.append(g)
    return found


def _values(value: Expr | Reduction) -> tuple[Expr, ...]:
    if isinstance(value, Reduction):
        return (*value.values, *((value.key,) if value.key is not None else ()))
    return (value,)


def _counting(leaf: Leaf) -> list[Expr]:
    """The guards of all the sums that a pointwise temporary is read by."""
    parts = [conjuncts(r.equation.value.guard) if isinstance(r.equation.value, Reduction) else [] for r in leaf.readers]
    return [g for g in parts[0] if all(g in p for p in parts[1:])] if parts else []


def _choosing(e: Expr, tensor: str) -> list[Expr] | None:
    """The conditions under which an expression chooses every read of the tensor; None where it reads none."""
    match e:
        case Access():
            return [] if e.tensor == tensor else None
        case Call("select", (c, a, b)):
            if _choosing(c, tensor) is None and _choosing(b, tensor) is None:
                found = _choosing(a, tensor)
                return None if found is None else found + conjuncts(c)
    parts = [p for p in (_choosing(k, tensor) for k in children(e)) if p is not None]
    return [g for g in parts[0] if all(g in p for p in parts[1:])] if parts else None


def zero_behind(value: Expr, guards: Sequence[Expr]) -> Expr:
    """The value where the guards hold, else zero."""
    chosen = conjunction(guards)
    return value if chosen is None else Call("select", (chosen, value, Num(0.0)))
