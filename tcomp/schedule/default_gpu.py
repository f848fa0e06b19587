"""The schedule on GPUs of an op that has none: every tensor a kernel of its own, sound at any size.

Temporaries with axes are kept in device memory between the kernels, so nothing must fit a block. All parallel loops
are divided among blocks; threads take the last one where reads are contiguous along it, else the reduced one.
"""

from __future__ import annotations

from tcomp.dsl.ast import (
    Binary,
    Equation,
    KernelSchedule,
    Level,
    MapLoops,
    Name,
    Num,
    Op,
    Reduction,
    Schedule,
    Span,
    accesses_in,
    names_in,
)
from tcomp.schedule.normal import expressions, needed
from tcomp.schedule.tree.nest import scatter_indices

THREADS = (Level("warp", (Binary("*", Name("lanes"), Name("vector")), Num(8))), Level("lane"), Level("vec"))


def default_gpu_schedule(op: Op, equations: tuple[Equation, ...], extents: dict[str, int]) -> Schedule:
    """A sound schedule for any op."""
    span = Span("<default schedule>", 0, 0, 0, 0)
    operands = frozenset(o.name for o in op.operands)
    last: dict[str, int] = {}
    for i, eq in enumerate(equations):
        for t in eq.targets:
            last[t.name] = i
    live = [equations[i] for i in needed(equations, operands, frozenset())]  # temporaries may be read by none of these
    read = {a.tensor for eq in live for e in expressions(eq) for a in accesses_in(e)}
    groups: dict[int, list[str]] = {}
    for name, i in last.items():
        if name in operands or (name in read and any(t.name == name and t.subscripts for t in equations[i].targets)):
            groups.setdefault(i, []).append(name)
    kernels = []
    made = operands
    for i in sorted(groups):
        own = frozenset(groups[i])
        kept = tuple(equations[j] for j in needed(equations, own, made - own))
        kernels.append(KernelSchedule(tuple(sorted(own)), _mapping(kept, own, extents)))
        made |= own
    if len(kernels) == 1:
        return Schedule(op.name, "gpu", kernels[0].directives, (), span)
    return Schedule(op.name, "gpu", (), tuple(kernels), span)


def _mapping(equations: tuple[Equation, ...], own: frozenset[str], extents: dict[str, int]) -> tuple[MapLoops, ...]:
    reduced: set[str] = set()
    scattered: set[str] = set()
    for eq in equations:
        if isinstance(eq.value, Reduction):
            reduced |= set(eq.value.indices)
        scattered |= scatter_indices(eq, extents)
    main = [eq.target for eq in equations if any(t.name in own for t in eq.targets)]
    bare = [s.id for s in main[-1].subscripts if isinstance(s, Name)]
    free = [
        i for i in dict.fromkeys(bare) if i not in reduced | scattered and all(Name(i) in t.subscripts for t in main)
    ]
    along = bool(free) and (not reduced or _contiguous(equations, free[-1]))
    levels: dict[str, tuple[Level, ...]] = {}
    for i in free:
        threads = along and i == free[-1]
        levels[i] = (Level("grid", (Num(1024 if threads else 1),)), *(THREADS if threads else ()))
    for eq in equations:
        for t in eq.targets:
            if t.subscripts and isinstance(s := t.subscripts[-1], Name) and s.id not in scattered:
                levels.setdefault(s.id, THREADS)
        if isinstance(eq.value, Reduction) and eq.value.indices[-1] not in scattered:
            levels.setdefault(eq.value.indices[-1], THREADS)
    return tuple(MapLoops((i,), (), tiles) for i, tiles in levels.items())


def _contiguous(equations: tuple[Equation, ...], index: str) -> bool:
    """Some read has the index as its last subscript."""
    found = [a for eq in equations for e in expressions(eq) for a in accesses_in(e) if a.subscripts]
    return any(index in names_in(a.subscripts[-1]) for a in found)
