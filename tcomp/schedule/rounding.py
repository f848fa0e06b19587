"""What a schedule rounds: `cast p to bf16` holds a temporary so, `cast o.weight to bf16` its reads in one equation."""

from __future__ import annotations

from tcomp.dsl.ast import Access, Call, Expr, Reduction, map_children
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.nest import Leaf


def cast_reads(plan: KernelPlan, targets: tuple[str, ...], e: Expr) -> Expr:
    """The expression with the reads rounded that the schedule casts in the equation of these targets."""
    if isinstance(e, Access):
        dtype = next((d for t in targets if (d := plan.casts.get(f"{t}.{e.tensor}")) is not None), None)
        return e if dtype is None else Call(dtype.value, (e,), e.span)
    return map_children(e, lambda x: cast_reads(plan, targets, x))


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
