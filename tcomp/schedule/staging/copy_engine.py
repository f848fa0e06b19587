"""Directives that GPUs before sm_90a cannot follow: the remedy is another target, not another line beside them.

Sums in turns leave by the copy engine, producers issue its copies, warpgroups multiply by wgmma.
"""

from __future__ import annotations

from tcomp.dsl.errors import TcError
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.staging.tensor_copies import FIRST_SM

WGMMA = "sm_90a"
"""the target that has it"""


def check_copy_engine(plan: KernelPlan, machine: GpuMachine) -> None:
    """TcError at the first such directive of a plan for a GPU without a copy engine, and at `stagger` without wgmma."""
    flags = plan.flags
    if machine.sm >= FIRST_SM:
        if flags.staggered and machine.target != WGMMA:
            raise TcError(
                f"`stagger` keeps the warpgroups of a product by wgmma apart, and {machine.target} has no wgmma",
                flags.span("stagger"),
                f"leave the line out here, and keep it for a schedule on {WGMMA}",
            )
        return
    meant = {"producer": flags.producer is not None, "stagger": flags.staggered, "pingpong": flags.sides > 1,
             "stream": flags.stream}  # fmt: skip
    lines = [(f"`{name}`", flags.span(name)) for name, is_meant in meant.items() if is_meant]
    lines += [(f"`overlap {n.name}`", n.span) for n in plan.overlap.values() if n.number != 0]
    lines += [("`by turns`", c.span) for c in plan.combine if c.by == "turns"]
    if lines:
        what, span = lines[0]
        instead = "combine by partials here" if what == "`by turns`" else "leave the line out here"
        raise TcError(
            f"{what} needs the copy engine or wgmma, and {machine.target} has neither",
            span,
            f"{instead}, and keep it for a schedule on {WGMMA}",
        )
