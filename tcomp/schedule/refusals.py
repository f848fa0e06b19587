"""Why a schedule is not taken for an op instance: its instructions, its tensor copies or its `where` lines do not take
the instance's types or shapes. Each question gives a `Refusal`, or None where nothing stands against the schedule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import (
    Access,
    Directive,
    DType,
    Equation,
    Expr,
    KernelSchedule,
    MapLoops,
    Name,
    Num,
    Op,
    Reduction,
    Schedule,
    Span,
    Stage,
    Use,
    Where,
    accesses_in,
    names_in,
)
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.printer import print_expression
from tcomp.grad.parts import reads, writes
from tcomp.instructions import INSTRUCTIONS, VECTOR
from tcomp.instructions.matching import Declared, factors, instruction_for, types_of
from tcomp.schedule.normal import part_of
from tcomp.schedule.resolve import casts_in

DECLARED: tuple[Declared, ...] = (*INSTRUCTIONS, *VECTOR)
ALIGNED = 16
"""bytes that rows of a tensor must be apart for the copy engine"""


@dataclass(frozen=True)
class Refusal:
    """Why a schedule is not taken for an op instance: for its element "types", for "copies" that the engine cannot make
    of its shapes, for "sizes" that a `where` line leaves out, or for "results" that were to be computed beside a
    product. `span` is the line to blame."""

    schedule: Schedule
    kind: str
    reason: str
    hint: str
    span: Span


def _directives(schedule: Schedule) -> Iterator[tuple[KernelSchedule, tuple[Directive, ...]]]:
    """Each kernel with all directives that hold for it."""
    whole = KernelSchedule((), (), schedule.span)
    for kernel in schedule.kernels or (whole,):
        yield kernel, (*schedule.shared, *kernel.directives)


def of_results(written: Schedule, own: Schedule, whole: Op | None) -> Refusal | None:
    """The first kernel that computes something beside a product of matrix instructions, of which an op that gives only
    some of the results has not the product. `own` is the written schedule cut to what the op has: a `use` whose sums,
    results or temporaries, are all gone is not in it. `whole` is the op with all results, if that is known."""
    made = _made_of(whole) if whole is not None else {}
    kept = {kernel.span: (kernel, directives) for kernel, directives in _directives(own)}
    for kernel, directives in _directives(written):
        found, left = kept.get(kernel.span, (kernel, directives))
        lost = found.outputs != kernel.outputs or not kernel.outputs
        elsewhere = {o for k in written.kernels for o in k.outputs} - set(kernel.outputs)
        if lost and _uses(directives, elsewhere, made) and not _uses(left, elsewhere, made):
            what = f"its kernel of {', '.join(found.outputs)}" if found.outputs else "it"
            reason = f"{what} is that of a product which this op does not give"
            return Refusal(own, "results", reason, "give the rest a kernel of its own", kernel.span)
    return None


def _uses(directives: Sequence[Directive], elsewhere: Collection[str], made: Mapping[str, set[str]]) -> bool:
    """Does a line name a matrix instruction, for another sum than those of the results that other kernels give?"""
    uses = (d for d in directives if isinstance(d, Use) and d.instruction != "fma")
    return any(not made.get(n, {n}) <= set(elsewhere) for d in uses for n in d.names)


def _made_of(op: Op) -> dict[str, set[str]]:
    """By each tensor of an op, the results that are made of it: itself where it is one."""
    results = {o.name for o in op.written}
    made = {n: {n} for n in results}
    for e in reversed(op.equations):
        given = set[str]().union(*(made.get(n, set()) for n in writes(e)))
        for n in reads(e) - results:
            made.setdefault(n, set()).update(given)
    return made


def of_types(
    schedule: Schedule, target: str, equations: Sequence[Equation], dtypes: Mapping[str, DType], storage: DType
) -> Refusal | None:
    """The first `use` that names no instruction for the types that its equation multiplies."""
    for kernel, directives in _directives(schedule):
        casts = casts_in(directives, storage)
        own = [e for e in equations if _computes(kernel, e)]
        for use in directives:
            if not isinstance(use, Use) or use.instruction == "fma":
                continue
            for name in use.names:
                types = _factor_types(name, own, {**dtypes, **casts})
                if types is not None and instruction_for(use.instruction, *types, target, DECLARED) is None:
                    a, b = types
                    reason = f"{use.instruction} does not multiply {a.value} by {b.value} on {target}"
                    hint = f"it takes {types_of(use.instruction, target, DECLARED)}"
                    return Refusal(schedule, "types", reason, hint, use.span)
    return None


def _computes(kernel: KernelSchedule, e: Equation) -> bool:
    """Could the kernel compute this equation: it is not another part of a tensor that the kernel writes in part?"""
    for t in e.targets:
        parts = [o for o in kernel.outputs if o.startswith(f"{t.name}.")]
        if parts and part_of(t) not in parts:
            return False
    return True


def of_copies(
    schedule: Schedule,
    op: Op,
    equations: Sequence[Equation],
    dtypes: Mapping[str, DType],
    shapes: Mapping[str, tuple[int, ...]],
) -> Refusal | None:
    """What is staged `by tma` though its rows are no multiple of 16 bytes apart. A vector that is only read may have
    any (`ir/tensor_map.py`)."""
    found: dict[str, Stage] = {}
    sizes = dict(_dimensions(op, shapes))
    results = {o.name for o in op.written}
    for kernel, directives in _directives(schedule):
        single = _single(directives, sizes)
        own = [e for e in equations if _computes(kernel, e)]
        for stage in directives:
            if not isinstance(stage, Stage) or stage.by != "tma":
                continue
            for name in dict.fromkeys(t.partition(".")[0] for t in stage.tensors):
                if len(shapes.get(name, ())) < 2 or shapes[name][-1] * dtypes[name].bytes % ALIGNED == 0:
                    continue
                if name in results or not all(_vector(a, single) for e in own for a in _reads(e) if a.tensor == name):
                    found.setdefault(name, stage)
    if not found:
        return None
    wrong = [f"{n} of {shapes[n][-1] * dtypes[n].bytes} bytes" for n in found]
    reason = f"tensor copies need rows of a multiple of {ALIGNED} bytes, and those of {', '.join(wrong)} are not"
    advice = dict.fromkeys(_rounded(op, n, shapes[n][-1], ALIGNED // dtypes[n].bytes, sizes) for n in found)
    return Refusal(schedule, "copies", reason, "; ".join(advice), next(iter(found.values())).span)


def _single(directives: Sequence[Directive], sizes: Mapping[str, int]) -> set[str]:
    """The loops whose tiles are one value wide: `b, h -> grid(1)`."""

    def one(e: Expr) -> bool:
        try:
            return evaluate_dim(e, sizes) == 1
        except TcError:
            return False

    return {
        loop
        for d in directives
        if isinstance(d, MapLoops) and not d.of
        for level in d.levels
        if level.kind.partition(".")[0] in ("grid", "seq", "pipe") and level.args and one(level.args[0])
        for loop in d.loops
    }


def _vector(access: Access, single: set[str]) -> bool:
    """Does a tile of the access extend along its last subscript only?"""
    return all(isinstance(s, Num) or (isinstance(s, Name) and s.id in single) for s in access.subscripts[:-1])


def _reads(e: Equation) -> Iterator[Access]:
    value = e.value
    parts = (*value.values, value.key) if isinstance(value, Reduction) else (value,)
    for part in parts:
        if part is not None:
            yield from accesses_in(part)


def _rounded(op: Op, name: str, extent: int, multiple: int, sizes: Mapping[str, int]) -> str:
    """`make C (here 100) a multiple of 8: 104`: what the last extent of a tensor would have to be. That of a temporary
    is named by the only dimension of this size."""
    same = [d for d, n in sizes.items() if n == extent]
    own: Expr = Name(same[0]) if len(same) == 1 else Num(extent)
    last = next((o.shape[-1] for o in op.operands if o.name == name), own)
    shown = print_expression(last) if names_in(last) else f"the last extent of {name}"
    return f"make {shown} (here {extent}) a multiple of {multiple}: {-(-extent // multiple) * multiple}"


def _dimensions(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The dimensions that the operands' shapes give."""
    return {d.id: n for o in op.operands for d, n in zip(o.shape, shapes[o.name], strict=True) if isinstance(d, Name)}


def of_sizes(schedule: Schedule, op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Refusal | None:
    """The first condition on dimensions alone that does not hold; one without a value (`M % 0`) does not."""
    sizes = _dimensions(op, shapes)

    def holds(c: Expr) -> bool:
        try:
            return bool(evaluate_dim(c, sizes))
        except TcError:
            return False

    every = (*schedule.shared, *(d for k in schedule.kernels for d in k.directives))
    for d in every:
        for c in d.conditions if isinstance(d, Where) else ():
            if names_in(c) and names_in(c) <= set(sizes) and not holds(c):
                values = ", ".join(f"{n} = {sizes[n]}" for n in sorted(names_in(c)))
                reason = f"it is for other sizes: {print_expression(c)} does not hold for {values}"
                return Refusal(schedule, "sizes", reason, "write a schedule for these sizes where that pays", d.span)
    return None


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
