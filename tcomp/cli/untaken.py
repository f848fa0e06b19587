"""Schedules for a target that a build's op instances could not take, told like the assembler's findings.

A warning, which counts as a finding, where the shapes are at fault; a note where the schedule is for other sizes by its
own `where` line, or (one for all ops) for other element types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcomp.dsl.ast import Module, Op

if TYPE_CHECKING:
    from tcomp.machine.gpu import GpuMachine
    from tcomp.schedule.choose import Choice


@dataclass(frozen=True)
class Untaken:
    """`count` of them are findings."""

    lines: tuple[str, ...] = ()
    count: int = 0


def schedules(module: Module, instances: Iterable[tuple[Op, Mapping[str, int]]], machine: GpuMachine) -> Untaken:
    """What to say of op instances: a line and a remedy for each whose best schedule is not taken."""
    from tcomp.schedule.choose import choice_of

    told: dict[str, str] = {}
    count = 0
    types: dict[str, list[str]] = {}
    for op, dims in instances:
        choice = choice_of(op, module, dims, machine.targets)
        if not choice.refused:
            continue
        best = next((r for r in choice.refused if r.kind == "copies"), choice.refused[0])
        if best.kind == "types":
            names = types.setdefault(best.reason, [])
            names += [op.name] if op.name not in names else []
            continue
        shown = ", ".join(f"{k} = {v}" for k, v in dims.items())
        severity = "warning" if best.kind == "copies" else "note"
        line = (
            f"{best.span}: {severity}: {op.name} at {shown} does not take its schedule on {best.schedule.target}, but "
            f"{_other(choice)}: {best.reason} [schedule]"
        )
        count += severity == "warning" and line not in told
        told[line] = f"  help: {best.hint}"
    lines = [x for pair in told.items() for x in pair]
    lines += [f"note: {reason}, so other schedules are taken for {', '.join(ops)}" for reason, ops in types.items()]
    return Untaken(tuple(lines), count)


def _other(choice: Choice) -> str:
    return f"that on {choice.schedule.target}" if choice.schedule is not None else "the default"
