"""A whole schedule as a text: what outside proposers write, and what a lockfile carries where such a text has won."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from tcomp.autotune.instances import HASH
from tcomp.dsl.ast import Module, Op, Schedule
from tcomp.dsl.check_schedules import check_schedule
from tcomp.dsl.errors import TcError
from tcomp.dsl.parse import parse
from tcomp.schedule.family import Machine, family_for


def schedule_from(text: str, op: Op, module: Module, machine: Machine, place: str = "<proposal>") -> Schedule:
    """The one schedule that a text holds, for the op on the machine. TcError (at `place`) for any other text."""
    source = parse(text, place)
    found = [i for i in source.items if isinstance(i, Schedule)]
    targets = family_for(machine, 1).targets
    if len(found) != 1 or len(source.items) != 1 or found[0].op != op.name or found[0].target not in targets:
        span = source.items[0].span if source.items else op.span
        wanted = f"schedule {op.name} on {targets[-1]}:"
        raise TcError(f"expected one schedule: {wanted}", span, f"begin with: {wanted}", text=text)
    sources = {**module.sources, place: text}
    check_schedule(found[0], replace(module, ops={**module.ops, op.name: op}, sources=sources))
    return found[0]


def text_hash(text: str) -> str:
    """Of a schedule's text as it stands."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH]
