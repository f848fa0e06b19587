"""The lockfile of a search: what it has for an op instance already, and the outcomes that go into it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tcomp.autotune.apply import Applied
from tcomp.autotune.backend import Place
from tcomp.autotune.instances import Instance, step_text
from tcomp.autotune.judge import Choice, Job, Outcome
from tcomp.autotune.lockfile import Entry, Lock, check_writable, read_lock_for, tool_versions, update_lock, with_entry
from tcomp.autotune.plan import Plan, Summary
from tcomp.autotune.schedule_text import text_hash
from tcomp.autotune.space import Values
from tcomp.dsl.ast import Module
from tcomp.dsl.printer import print_schedule


@dataclass(frozen=True)
class Outcomes:
    """`basis` is the judge's: what a search measures overrules what was predicted, and never the other way round.
    Outcomes are told to `say` and counted in `summary`."""

    path: Path
    module: Module
    place: Place
    plan: Plan
    basis: str
    summary: Summary
    say: Callable[[str], None]

    def check(self) -> None:
        """UserError where the file cannot be written, or what is there cannot be read."""
        check_writable(self.path)
        self._read()

    def choice(self, instance: Instance) -> Choice:
        """What it has for an instance; nothing where it has no entry, or a stale one."""
        return self._entry(self._read(), instance)[0]

    def incumbent(self, instance: Instance) -> Choice:
        """What it has for an instance, and a candidate must beat. To one who measures, what was predicted is a proposal
        like any other."""
        choice, basis = self._entry(self._read(), instance)
        return Choice() if (basis, self.basis) == ("predicted", "measured") else choice

    def overrules(self, instance: Instance) -> bool:
        """Was what it has for an instance measured, where this search only predicts?"""
        return (self._entry(self._read(), instance)[1], self.basis) == ("measured", "predicted")

    def proposed(self, job: Job) -> list[Values]:
        """What lockfiles have for a kernel: its first candidates."""
        locks = [self._read(), *([self.plan.known] if self.plan.known is not None else [])]
        return [job.space.own(choice.values) for lock in locks if (choice := self._entry(lock, job.instance)[0]).values]

    def keep(self, instance: Instance, job: Job, incumbent: Choice, default: float) -> None:
        """Nothing was better. `default`: seconds of the instance with the schedule's own values."""
        old = self._read().entries.get(job.key)
        known = (old.default_seconds, old.seconds) if old is not None and incumbent else (default, default)
        self.record(instance, job, incumbent, Outcome(*known, 0.0, False))

    def record(self, instance: Instance, job: Job, winner: Choice, outcome: Outcome) -> None:
        """Write what an instance's search came to."""
        key = job.key
        text = print_schedule(winner.schedule) if winner.schedule else ""
        entry = Entry(
            job.op_hash, job.schedule_hash, winner.values, self.basis, outcome.default_seconds, outcome.seconds,
            outcome.margin, tool_versions(), _now(), text, text_hash(text) if text else "",
        )  # fmt: skip

        def change(lock: Lock) -> Lock:
            old = lock.entries.get(key)
            same = old is not None and (old.op, old.schedule, old.basis) == (entry.op, entry.schedule, entry.basis)
            kept = old if old and same and not outcome.better else entry
            if kept != old and not outcome.better:
                self.summary.entered.append(key)
            return with_entry(lock, key, kept, step_text(self.plan.step))

        update_lock(self.path, change, self._empty())
        (self.summary.tuned.__setitem__(key, entry) if outcome.better else self.summary.kept.append(key))
        self.summary.before += instance.count * outcome.default_seconds
        self.summary.after += instance.count * outcome.seconds
        what = f"{outcome.seconds * 1e6:.1f} us, {1 - outcome.seconds / outcome.default_seconds:+.1%} time saved"
        if outcome.better:
            by = ", by the proposed schedule" if winner.schedule else ""
            self.say(f"{key}: {self.basis} {what} against the schedule's own values{by}")
        else:
            self.say(f"{key}: {self.basis}, no candidate is better beyond noise; kept as it is")

    def _empty(self) -> Lock:
        return Lock(self.plan.step.model, self.place.machine.name)

    def _read(self) -> Lock:
        new = self._empty()
        return read_lock_for(self.path, new.machine, new.model) if self.path.exists() else new

    def _entry(self, lock: Lock, instance: Instance) -> tuple[Choice, str]:
        """A lockfile's choice and its basis; nothing where it has none, or a stale one."""
        applied = Applied(lock, self.module, self.place.machine, self.place.threads)
        choice = applied.choice(instance)
        return choice, next((e.basis for e in applied.used.values()), "")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
