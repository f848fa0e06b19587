"""`promote acc`: what the matrix instructions of a turn sum goes to a result of its own, and from there to f32.

    each turn of k: acc += X W        -->        each turn of k: acc.turn = X W; acc += acc.turn

Matrix units may add with fewer bits than f32 has (Hopper's about 14 for 8-bit products), and what that loses grows with
the sum; promoted, only the products of a turn are added so. It is f32 already wherever no matrix instruction adds.
"""

from __future__ import annotations

from tcomp.dsl.errors import TcError
from tcomp.ir.tile import Kernel
from tcomp.ir.walk import computes
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.tree.nest import Leaf
from tcomp.schedule.tree.storage import reduction_loops

STEP = 32
"""Values that every matrix instruction's step along the sum divides."""


def promoted(plan: KernelPlan, leaf: Leaf) -> bool:
    """Is the leaf's sum over several turns promoted after each of them? TcError where a `promote` line says another
    number of values than a turn sums."""
    line = next((plan.promote[n] for n in (leaf.written[0], *leaf.sums_for) if n in plan.promote), None)
    loops = reduction_loops(leaf)
    if line is None or line.number == 0 or not loops:
        return False
    inner = loops[-1].level
    if line.number not in (None, inner.block):
        hint = f"write promote {line.name}({inner.block})"
        if line.number is not None and line.number % STEP == 0:
            hint += f", or map {inner.index} to pipe({line.number}, ...)"
        raise TcError(
            f"a turn of the loop over {inner.index} sums {inner.block} values, not {line.number}", line.span, hint
        )
    return True


def check_promotion(kernel: Kernel, plan: KernelPlan) -> None:
    """TcError at a `promote` line whose sum no matrix instruction adds. (Its `use` lines have been checked.)"""
    added = {c.target.tensor for phase in kernel.phases for c in computes(phase) if c.instruction}
    for name, line in plan.promote.items():
        if not any(t == name or t.startswith(f"{name}.") for t in added):
            message = f"'{name}' is not a matrix product of this kernel: it is added up in f32 without being promoted"
            raise TcError(message, line.span, "name an equation that a `use` line names")
