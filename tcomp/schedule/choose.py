"""Which schedule of an op holds: the most specific one for the machine whose instructions take the op's element types
and whose tensor copies take its shapes.

    schedule linear on sm_80:  use mma.sync for acc        for bf16 operands on an A100 and on newer GPUs
    schedule linear on gpu:                                for f32 operands, which mma.sync does not multiply

A `where` line about dimensions alone says for which shapes a schedule is meant: `where C % 256 == 0`.

A schedule that is passed over leaves a `Refusal`, which says what would make it apply. Where no less specific schedule
is left, the `use` line is refused by the matcher instead, which says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import DType, Equation, Module, Op, Schedule
from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.load import schedule_for
from tcomp.dsl.shared_schedules import fitted
from tcomp.grad import backward_of
from tcomp.grad.early import with_sums
from tcomp.schedule.normal import normalise
from tcomp.schedule.refusals import Refusal, of_copies, of_results, of_sizes, of_types


@dataclass(frozen=True)
class Choice:
    """The schedule that is taken, None when none is written, and those before it that are not."""

    schedule: Schedule | None
    refused: tuple[Refusal, ...] = ()


def choose_schedule(
    op: Op,
    module: Module,
    targets: Sequence[str],
    equations: Sequence[Equation],
    dtypes: Mapping[str, DType],
    shapes: Mapping[str, tuple[int, ...]],
) -> Choice:
    """The schedule for the first of `targets` (the machine's own, then less specific ones) whose instructions exist
    there for these types and whose copies can be made; the first of all, with nothing refused, where none fits."""
    whole = [s for t in targets if (s := schedule_for(module, op.name, (t,))) is not None]
    written = whole if as_written(op, module) else [fitted(s, op, module) for s in whole]
    every = _with_all_results(op, module) if written != whole else op
    refused: list[Refusal] = []
    for w, s in zip(whole, written, strict=True):
        problem = (
            of_results(w, s, every)
            or of_types(s, targets[0], equations, dtypes, storage_of(op))
            or of_copies(s, op, equations, dtypes, shapes)
            or of_sizes(s, op, shapes)
        )
        if problem is None:
            return Choice(s, tuple(refused))
        refused.append(problem)
    return Choice(written[0] if written else None)


def as_written(op: Op, module: Module) -> bool:
    """Whether the op has all that its schedule was checked for: it is no derived one, nor a part of a written one that
    gives only some of its results (of a backward, where operands need no gradient, or one at a time)."""
    whole = module.ops.get(op.name)
    return whole is not None and _results(whole) <= _results(op)


def _with_all_results(op: Op, module: Module) -> Op | None:
    """What the schedules of an op were written for: the written op of its name, or the derived backward."""
    found = module.ops.get(op.name)
    if found is None and op.backward_of in module.ops:
        found = backward_of(op.backward_of, module)
    return with_sums(found) if found is not None else None


def _results(op: Op) -> set[str]:
    """What an op gives, outputs and operands that it adds to alike."""
    return {o.name for o in op.written}


def choice_of(op: Op, module: Module, dims: Mapping[str, int], targets: Sequence[str]) -> Choice:
    """The choice for an op instance, all of whose dimensions `dims` binds."""
    info = infer(op, module)
    types = {o.name: o.dtype for o in op.operands} | {t.name: t.dtype for t in info.temporaries.values()}
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    shapes = {o.name: operand_shape(o, dims) for o in op.operands}
    shapes |= {t.name: tuple(extents[i] for i in t.indices) for t in info.temporaries.values()}
    return choose_schedule(op, module, targets, normalise(op, module, dict(dims)), types, shapes)


def storage_of(op: Op) -> DType:
    """The type that an op stores its tensors in: the narrowest of its operands', 8-bit copies of them aside."""
    floats = [o.dtype for o in op.operands if o.shape and o.dtype.is_float]
    return min((d for d in floats if d.bytes > 1), key=lambda d: d.bytes, default=floats[0] if floats else DType.F32)
