"""The schedule of an op that has none: sound, plain, and printable by `tcomp show --schedule`.

One kernel per output. Its first left-hand index that no equation reduces or scatters is divided among cores,
and the last left-hand index (or the reduced one, for reductions to a row) becomes the vector.
"""

from __future__ import annotations

from tcomp.dsl.ast import Equation, KernelSchedule, Level, MapLoops, Name, Num, Op, Reduction, Schedule, Span
from tcomp.schedule.normal import needed
from tcomp.schedule.tree.nest import scatter_indices


def _mapping(equations: tuple[Equation, ...], output: str, extents: dict[str, int]) -> tuple[MapLoops, ...]:
    reduced: set[str] = set()
    scattered: set[str] = set()
    for eq in equations:
        if isinstance(eq.value, Reduction):
            reduced |= set(eq.value.indices)
        scattered |= scatter_indices(eq, extents)
    mine = [t for eq in equations for t in eq.targets if t.name == output]
    bare = [s.id for s in mine[0].subscripts if isinstance(s, Name)]
    free = [i for i in bare if i not in reduced | scattered and extents[i] > 1]
    levels: dict[str, list[Level]] = {}
    if free:
        chosen = free[0]
        if len(free) == 1 or chosen != bare[-1]:
            whole = chosen == bare[-1]
            levels[chosen] = [Level("core", () if whole else (Num(1),))]
    for eq in equations:
        last = eq.target.subscripts[-1] if eq.target.subscripts else None
        if isinstance(last, Name) and last.id not in scattered:
            levels.setdefault(last.id, [])
        if isinstance(eq.value, Reduction):
            levels.setdefault(eq.value.indices[-1], [])
    out = []
    for index, tiles in levels.items():
        single = any(t.kind == "core" and t.args for t in tiles)
        tail = () if single else (Level("unroll", (Num(2),)), Level("vec"))
        if tiles or tail:
            out.append(MapLoops((index,), (), (*tiles, *tail)))
    return tuple(out)


def default_schedule(op: Op, equations: tuple[Equation, ...], extents: dict[str, int]) -> Schedule:
    """A sound schedule for any op."""
    operands = frozenset(o.name for o in op.operands)
    outputs = [o.name for o in op.written]
    defined = {t.name for eq in equations for t in eq.targets}
    outputs = [o for o in outputs if o in defined]
    kernels = []
    order = {o: max(i for i, eq in enumerate(equations) if any(t.name == o for t in eq.targets)) for o in outputs}
    for o in sorted(outputs, key=lambda x: order[x]):
        kept = tuple(equations[i] for i in needed(equations, frozenset({o}), operands - {o}))
        kernels.append(KernelSchedule((o,), _mapping(kept, o, extents)))
    if len(kernels) == 1:
        return Schedule(op.name, "cpu", kernels[0].directives, (), Span("<default schedule>", 0, 0, 0, 0))
    return Schedule(op.name, "cpu", (), tuple(kernels), Span("<default schedule>", 0, 0, 0, 0))
