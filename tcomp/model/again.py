"""Forms of a forward op that compute some of its results again from the others, for the backward pass.

  op linear_gelu(X: f32[M, K], W: f32[N, K], b: f32[N]) -> P: f32[M, N], Y: f32[M, N]:
    acc[m, n] = sum k: X[m, k] * W[n, k]
    P[m, n] = acc[m, n] + b[n]
    Y[m, n] = gelu(P[m, n])
computing Y again, P being kept  -->
  op linear_gelu.Y(P: f32[M, N]) -> Y: f32[M, N]:
    Y[m, n] = gelu(P[m, n])

Such a form must give the same bits as the op itself. So it has no reductions (whose order a schedule chooses), and
no temporary in it is inlined by a schedule of the op (which would round elsewhere; inlined results are rounded as they
are stored). A kept result of a narrow type is read as it was rounded, which is what reading it within the op gives: the
language rounds on assignment.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Equation, Flag, Module, Name, Op, Reduction
from tcomp.grad.accumulate import restricted
from tcomp.grad.parts import reads, writes


def again(op: Op, results: frozenset[str], module: Module) -> Op | None:
    """The form of `op` that gives `results`, reading its other results: the op itself when those are all of them,
    None when there is no form that gives the same bits."""
    given = {o.name for o in op.outputs} - results
    if not given:
        return op
    kept = _needed(op.equations, results, given)
    if any(isinstance(eq.value, Reduction) or eq.accumulate or writes(eq) & given for eq in kept):
        return None
    used = {name for eq in kept for name in reads(eq)} & given
    touched = used | {name for eq in kept for name in reads(eq) | writes(eq)}
    for o in op.outputs:
        if o.name in used and _times_written(op, o.name) != 1:
            return None
    if touched & _inlined(op, module):
        return None
    inputs = tuple(o for o in op.outputs if o.name in used)
    rest = tuple(o for o in op.outputs if o.name in results)
    form = restricted(replace(op, params=(*op.params, *inputs), outputs=rest, equations=tuple(kept)), results)
    return replace(form, name=f"{op.name}.{'+'.join(sorted(results))}")


def _needed(equations: tuple[Equation, ...], results: frozenset[str], given: set[str]) -> list[Equation]:
    """The equations that `results` need when `given` are there already."""
    wanted, kept = set(results), []
    for eq in reversed(equations):
        if writes(eq) & wanted:
            kept.append(eq)
            wanted |= reads(eq) - given
    return kept[::-1]


def _times_written(op: Op, name: str) -> int:
    return sum(t.name == name for eq in op.equations for t in eq.targets)


def _inlined(op: Op, module: Module) -> set[str]:
    """The temporaries that some schedule of the op inlines."""
    found: set[str] = set()
    for (name, _), schedule in module.schedules.items():
        if name == op.name:
            for directives in (schedule.shared, *(k.directives for k in schedule.kernels)):
                flags = [d for d in directives if isinstance(d, Flag) and d.name == "inline"]
                found |= {a.id for d in flags for a in d.args if isinstance(a, Name)}
    return found - {o.name for o in op.outputs}
