"""A lockfile put to use: a lowering that gives each op instance the values chosen for it.

What is stale (the op or its schedule changed, a value is no longer among the choices) is left out, and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcomp.autotune.instances import Instance, facts_of, machine_threads, op_hash, schedule_hash, schedule_of
from tcomp.autotune.judge import Choice
from tcomp.autotune.lockfile import Entry, Lock, entry_key, read_lock_for
from tcomp.autotune.schedule_text import schedule_from, text_hash
from tcomp.autotune.space import spaces_of
from tcomp.dsl.ast import Module, Op, Schedule
from tcomp.dsl.errors import TcError, quoting
from tcomp.dsl.hints import count
from tcomp.schedule.family import Machine
from tcomp.schedule.lower import LoweredOp, lower


@dataclass
class Applied:
    """A lock for a module on a machine. `used` and `stale` fill while ops are lowered: entry -> reason."""

    lock: Lock
    module: Module
    machine: Machine
    threads: int
    deterministic: bool = True
    used: dict[str, Entry] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)

    def lower(self, op: Op, module: Module, dims: dict[str, int]) -> LoweredOp:
        """`tcomp.schedule.lower.lower` with the lock's values, and its schedule where it carries one."""
        choice = self.choice(Instance(op, dims))
        given = (self.machine, self.threads, choice.values, choice.schedule, self.deterministic)
        return lower(op, module, dims, *given)

    def choice(self, instance: Instance) -> Choice:
        """What was chosen for an instance; nothing where there is no entry, or a stale one."""
        key = entry_key(instance.key, machine_threads(self.machine, self.threads))
        entry = self.lock.entries.get(key)
        if entry is None:
            return Choice()
        reason = staleness(entry, instance, self.module, self.machine, self.threads)
        if reason:
            self.stale[key] = reason
            return Choice()
        self.used[key] = entry
        schedule = _carried(entry, instance, self.module, self.machine) if entry.text else None
        return Choice(dict(entry.values), schedule)

    def warnings(self, path: Path) -> list[str]:
        """What to tell the user: that the lock is of another model, stale entries, and why."""
        other = self.lock.model not in self.module.models and bool(self.module.models)
        lines = [f"{path}: tuned for model {self.lock.model}, not {', '.join(self.module.models)}"] if other else []
        if lines:
            lines.append(f"  {len(self.used)} of its {count(len(self.lock.entries), 'entry', 'entries')} are used here")
        if not self.stale:
            return lines
        lines += [f"{path}: {len(self.stale)} of {len(self.stale) + len(self.used)} entries in use here are stale:"]
        lines += [f"  {key}: {reason}" for key, reason in sorted(self.stale.items())]
        return [*lines, "  their ops get the schedules' own values; tune again with `tcomp tune`"]


def staleness(entry: Entry, instance: Instance, module: Module, machine: Machine, threads: int) -> str:
    """Why an entry no longer holds for an instance; empty when it does."""
    if entry.op != op_hash(instance.op, module):
        return "the op's text has changed"
    schedule = schedule_of(instance.op, module, instance.dims, machine, threads)
    if entry.schedule != schedule_hash(schedule):
        return "its schedule has changed"
    if entry.text:
        if entry.text_hash != text_hash(entry.text):
            return "the schedule it carries was edited, and has not been judged"
        try:
            carried = _carried(entry, instance, module, machine)
            lower(instance.op, module, dict(instance.dims), machine, threads, entry.values, carried)
        except TcError as e:
            return f"the schedule it carries is refused: {e.message}"
        return ""
    try:
        for space in spaces_of(schedule, facts_of(instance, machine, threads)):
            problem = space.problem(space.own(entry.values))
            if problem:
                return problem
    except TcError as e:
        return e.message
    return ""


def _carried(entry: Entry, instance: Instance, module: Module, machine: Machine) -> Schedule:
    """The schedule whose text an entry carries."""
    return schedule_from(entry.text, instance.op, module, machine, "<lockfile>")


def check(
    lock: Lock, module: Module, instances: Sequence[Instance], machine: Machine, threads: int
) -> tuple[list[str], list[str]]:
    """(stale, missing): entries that no longer hold with their reasons, and instances with something to tune that
    have no entry."""
    stale, missing = [], []
    for instance in instances:
        key = entry_key(instance.key, machine_threads(machine, threads))
        entry = lock.entries.get(key)
        if entry is None:
            schedule = schedule_of(instance.op, module, instance.dims, machine, threads)
            with quoting(module.sources):
                spaces = spaces_of(schedule, facts_of(instance, machine, threads))
            missing += [key] if spaces else []
        elif reason := staleness(entry, instance, module, machine, threads):
            stale.append(f"{key}: {reason}")
    return stale, missing


def load_lock(path: Path, module: Module, machine: Machine, threads: int, deterministic: bool = True) -> Applied:
    """The lock ready for lowering. UserError for a file that is missing, no lockfile, or of another machine."""
    return Applied(read_lock_for(path, machine.name), module, machine, threads, deterministic)
