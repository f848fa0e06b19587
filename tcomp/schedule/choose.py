"""Which schedule of an op holds: the most specific one for the machine whose instructions take the op's element types
and whose tensor copies take its shapes.

    schedule linear on sm_80:  use mma.sync for acc        for bf16 operands on an A100 and on newer GPUs
    schedule linear on gpu:                                for f32 operands, which mma.sync does not multiply

A `where` line about dimensions alone says for which shapes a schedule is meant: `where C % 256 == 0`.

Where no less specific schedule is left, the `use` line is refused by the matcher instead, which says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.dsl.ast import (
    Access,
    DType,
    Equation,
    Expr,
    KernelSchedule,
    Module,
    Name,
    Op,
    Reduction,
    Schedule,
    Stage,
    Use,
    Where,
    names_in,
)
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import schedule_for
from tcomp.instructions import INSTRUCTIONS, VECTOR
from tcomp.instructions.matching import Declared, factors, instruction_for
from tcomp.schedule.normal import part_of
from tcomp.schedule.resolve import casts_in

DECLARED: tuple[Declared, ...] = (*INSTRUCTIONS, *VECTOR)


def choose_schedule(
    op: Op,
    module: Module,
    targets: Sequence[str],
    equations: Sequence[Equation],
    dtypes: Mapping[str, DType],
    shapes: Mapping[str, tuple[int, ...]],
) -> Schedule | None:
    """The schedule for the first of `targets` (the machine's own, then less specific ones) whose instructions exist
    there for these types and whose copies can be made; the first of all where none fits; None when nothing is
    written."""
    written = [s for t in targets if (s := schedule_for(module, op.name, (t,))) is not None]
    storage = storage_of(op)
    sizes = _sizes(op, shapes)
    fitting = (
        s
        for s in written
        if _applies(s, targets[0], equations, dtypes, storage) and _copies(s, dtypes, shapes) and _meant(s, sizes)
    )
    return next(fitting, written[0] if written else None)


def _applies(
    schedule: Schedule, target: str, equations: Sequence[Equation], dtypes: Mapping[str, DType], storage: DType
) -> bool:
    """Does every `use` name an instruction that multiplies the types its equation has?"""
    whole = KernelSchedule((), (), schedule.span)
    for kernel in schedule.kernels or (whole,):
        directives = (*schedule.shared, *kernel.directives)
        casts = casts_in(directives, storage)
        own = [e for e in equations if _computes(kernel, e)]
        for use in directives:
            if not isinstance(use, Use) or use.instruction == "fma":
                continue
            for name in use.names:
                types = _factor_types(name, own, {**dtypes, **casts})
                if types is not None and instruction_for(use.instruction, *types, target, DECLARED) is None:
                    return False
    return True


def _computes(kernel: KernelSchedule, e: Equation) -> bool:
    """Could the kernel compute this equation: it is not another part of a tensor that the kernel writes in part?"""
    for t in e.targets:
        parts = [o for o in kernel.outputs if o.startswith(f"{t.name}.")]
        if parts and part_of(t) not in parts:
            return False
    return True


def _copies(schedule: Schedule, dtypes: Mapping[str, DType], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Can the copy engine read what is staged `by tma`: rows a multiple of 16 bytes apart?"""
    for directives in (schedule.shared, *(k.directives for k in schedule.kernels)):
        for stage in directives:
            if not isinstance(stage, Stage) or stage.by != "tma":
                continue
            for name in (t.partition(".")[0] for t in stage.tensors):
                if name in shapes and len(shapes[name]) > 1 and shapes[name][-1] * dtypes[name].bytes % 16:
                    return False
    return True


def _sizes(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The dimensions that the operands' shapes give."""
    return {d.id: n for o in op.operands for d, n in zip(o.shape, shapes[o.name], strict=True) if isinstance(d, Name)}


def _meant(schedule: Schedule, sizes: Mapping[str, int]) -> bool:
    """Do the conditions hold that name dimensions only? One without a value (`M % 0`) does not."""

    def holds(c: Expr) -> bool:
        try:
            return bool(evaluate_dim(c, sizes))
        except TcError:
            return False

    every = (*schedule.shared, *(d for k in schedule.kernels for d in k.directives))
    conditions = [c for d in every if isinstance(d, Where) for c in d.conditions]
    return all(holds(c) for c in conditions if names_in(c) and names_in(c) <= set(sizes))


def _factor_types(name: str, equations: Sequence[Equation], dtypes: Mapping[str, DType]) -> tuple[DType, DType] | None:
    """The element types that a reduction into `name` multiplies; None where it is no product of two tensors."""

    def dtype_of(tensor: str) -> DType:
        return dtypes.get(f"{name}.{tensor}", dtypes[tensor])

    for e in equations:
        position = next((i for i, t in enumerate(e.targets) if t.name == name), None)
        if position is None or not isinstance(e.value, Reduction):
            continue
        if e.value.key is not None:  # a carried monoid: the weight times the field's value
            value = e.value.values[position - 1] if position else None
            weight = dtypes.get(f"{name}.weight", DType.F32)
            return (weight, dtype_of(value.tensor)) if isinstance(value, Access) else None
        pair = factors(e.value.values[0])
        if pair is not None:
            a, b = (f.cast or dtype_of(f.access.tensor) for f in pair)
            return a, b
    return None


def storage_of(op: Op) -> DType:
    """The type that an op stores its tensors in: the narrowest of its operands'."""
    floats = (o.dtype for o in op.operands if o.shape and o.dtype.is_float)
    return min(floats, key=lambda d: d.bytes, default=DType.F32)
