"""What processes that share a step need of an optimizer's ops: sums over a part of a vector, updates of a part.

    op global_norm(g: f32[N], clip: f32[]) -> norm: f32[], scale: f32[]:
      s = sum i: g[i] * g[i]
      norm = sqrt(s)
      scale = ...
is, of a process's share of the gradients  -->
    op global_norm(g: f32[N]) -> s: f32[]:                and when all have said theirs, with the sum of these,
      s = sum i: g[i] * g[i]                              op global_norm.rest(clip: f32[], s: f32[]) -> norm, scale
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcomp.dsl.ast import DType, Equation, Op, Operand, Reduction
from tcomp.dsl.elementwise import pointwise
from tcomp.grad.parts import names, reads, writes


@dataclass(frozen=True)
class InParts:
    """An op over a whole vector as two: `part` gives the `sums` of a part of it, `rest` takes those of all parts and
    gives the op's results."""

    part: Op
    rest: Op
    sums: tuple[str, ...]


def in_parts(op: Op) -> InParts | None:
    """The op's sums and the rest of it, where all that it reads of vectors goes into scalar f32 sums; else None."""
    if op.ranges or op.requires or any(p.dtype is DType.F64 for p in op.operands):
        return None  # it says how much of a vector it reads, or how long one is; f64 sums are of more digits
    vectors = {p.name for p in op.params if p.shape}
    results = {r.name for r in op.operands if r.inout} | {r.name for r in op.outputs}
    sums = tuple(eq for eq in op.equations if reads(eq) & vectors)
    rest = tuple(eq for eq in op.equations if eq not in sums)
    made = {name for eq in sums for name in writes(eq)}
    given = {p.name for p in op.params}
    if any(p.inout for p in op.params) or not sums or not rest or made & results:
        return None
    if not all(_plain_sum(eq) and reads(eq) <= given for eq in sums) or any(names(eq) for eq in rest):
        return None
    if any(t.subscripts for eq in rest for t in eq.targets):
        return None
    outputs = tuple(Operand(name, DType.F32, ()) for eq in sums for name in sorted(writes(eq)))
    part = replace(
        op, params=tuple(p for p in op.params if any(p.name in reads(eq) for eq in sums)), outputs=outputs,
        equations=tuple(replace(eq, targets=tuple(replace(t, dtype=None) for t in eq.targets)) for eq in sums),
    )  # fmt: skip
    wanted = {name for eq in rest for name in reads(eq)}
    params = tuple(p for p in (*op.params, *outputs) if p.name in wanted)
    left = replace(op, name=f"{op.name}.rest", params=params, dims=(), ranges=(), requires=(), equations=rest)
    return InParts(part, left, tuple(o.name for o in outputs))


def _plain_sum(eq: Equation) -> bool:
    """`s = sum i: ...`, a scalar f32, of values that say nothing of their place or of the vector's length."""
    v = eq.value
    if eq.accumulate or len(eq.targets) != 1 or eq.target.subscripts or eq.target.dtype not in (None, DType.F32):
        return False
    if not isinstance(v, Reduction) or v.reducer != "sum" or v.guard is not None or v.key is not None:
        return False
    return len(v.indices) == 1 and all(pointwise(e, v.indices[0]) for e in v.values)
