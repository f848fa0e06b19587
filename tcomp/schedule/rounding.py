"""What a schedule rounds: `cast p to bf16` holds a temporary so, `cast o.weight to bf16` its reads in one equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import replace

from tcomp.dsl.ast import Access, Call, DType, Equation, Expr, Op, Reduction, map_children
from tcomp.grad.parts import map_value
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.tree.nest import Leaf


def cast_reads(plan: KernelPlan, targets: tuple[str, ...], e: Expr) -> Expr:
    """The expression with the reads rounded that the schedule casts in the equation of these targets."""
    return _reads_as(e, lambda tensor: _cast_in(plan.casts, targets, tensor))


def with_casts(op: Op, casts: Mapping[str, DType], temporaries: Set[str]) -> Op:
    """The op whose equations round what a schedule's `cast` lines do, but for the weights of monoids.

    acc[m] = sum k: p[m, k] * q[k]      cast p to bf16, cast acc.q to bf16  -->
    acc[m] = sum k: bf16(p[m, k]) * bf16(q[k])
    """

    def rounded(e: Equation) -> Equation:
        targets = tuple(t.name for t in e.targets)

        def dtype(tensor: str) -> DType | None:
            return _cast_in(casts, targets, tensor) or (casts.get(tensor) if tensor in temporaries else None)

        return replace(e, value=map_value(e.value, lambda v: _reads_as(v, dtype)))

    return replace(op, equations=tuple(map(rounded, op.equations)))


def _cast_in(casts: Mapping[str, DType], targets: tuple[str, ...], tensor: str) -> DType | None:
    """The type that a tensor is read in by the equation of these targets; None where none is named."""
    return next((d for t in targets if (d := casts.get(f"{t}.{tensor}")) is not None), None)


def _reads_as(e: Expr, dtype: Callable[[str], DType | None]) -> Expr:
    """The expression with tensors read in other types, where `dtype` gives one."""
    if isinstance(e, Access):
        found = dtype(e.tensor)
        return e if found is None else Call(found.value, (e,), e.span)
    return map_children(e, lambda x: _reads_as(x, dtype))


def ends_rounded(plan: KernelPlan, tensor: str, leaf: Leaf) -> bool:
    """Is a value that the leaf gives `tensor` held in 16 bits or less, or does all that is computed from it end so?"""
    return _rounded(plan, tensor) or _read_rounded(plan, leaf)


def _rounded(plan: KernelPlan, tensor: str) -> bool:
    """Does the schedule hold the tensor in 16 bits or less, or read it so somewhere?"""
    return any(d.bytes < 4 for what, d in plan.casts.items() if what.rpartition(".")[2] == tensor)


def _read_rounded(plan: KernelPlan, leaf: Leaf, met: tuple[Leaf, ...] = ()) -> bool:
    """Does whatever is computed from the leaf's tensor end up rounded, in one step or several pointwise ones? `met` are
    the equations on the way here: one that adds to a temporary reads it itself."""
    name, met = leaf.written[0], (*met, leaf)

    def rounds(r: Leaf) -> bool:
        casts = (plan.casts.get(f"{t}.{name}") for t in (*r.written, *r.sums_for))
        return any(d is not None and d.bytes < 4 for d in casts) or (
            not isinstance(r.equation.value, Reduction) and _read_rounded(plan, r, met)
        )

    others = [r for r in leaf.readers if r not in met]
    return bool(others) and all(rounds(r) for r in others)
