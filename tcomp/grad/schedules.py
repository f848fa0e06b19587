"""Schedules of derived backward ops, checked as a text checks those of written ones (dsl/check_schedules.py):
the op's names come with its equations, so it has to be derived first.

A name in a schedule that several ops share is right when one of them has it. `dX_sum` is what `dX` is before another
op's equation makes `dX` of it (tcomp/grad/early.py), so every op that gives `dX` has it.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.check_schedules import check_schedule
from tcomp.dsl.errors import TcError, quoting
from tcomp.dsl.shared_schedules import fit_shared
from tcomp.grad import backward_of
from tcomp.grad.early import with_sums


def check_derived_schedules(module: Module) -> None:
    """TcError, at its line, at the first name in a derived backward op's schedule that neither this op nor one that
    shares the schedule has."""
    scheduled = dict.fromkeys(op for op, _ in module.schedules)
    derived = {n: op for n in scheduled if n not in module.ops and (op := _derived(n, module))}
    whole = replace(module, ops={**module.ops, **derived}, schedules=dict(module.schedules))
    fit_shared(whole)
    for schedule in whole.schedules.values():
        if schedule.op in derived:
            with quoting(module.sources):
                check_schedule(schedule, whole)


def _derived(name: str, module: Module) -> Op | None:
    """The derived op of that name; None where there is nothing to derive."""
    forward = name.removesuffix(".backward")
    if forward == name or forward not in module.ops:
        return None
    try:
        found = backward_of(forward, module)
    except TcError:
        return None
    return None if found is None else with_sums(found)
