"""The search over a model: which kernels, in what order, for how long; every trial kept, every outcome in the lockfile.

Kernels are tuned in the order of the time they take in a step, each for a share of the budget that follows that time.
The judge decides what a candidate is worth; a crash, a wrong result or a slow start costs one trial.
"""

from __future__ import annotations

import fnmatch
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.autotune.backend import Place
from tcomp.autotune.child import Failure
from tcomp.autotune.contest import ratio
from tcomp.autotune.instances import (
    Instance,
    facts_of,
    instances_of,
    machine_threads,
    op_hash,
    schedule_hash,
    schedule_of,
)
from tcomp.autotune.judge import Choice, Job, Judge, Outcome
from tcomp.autotune.kept_trials import study_names
from tcomp.autotune.lockfile import entry_key
from tcomp.autotune.outcomes import Outcomes
from tcomp.autotune.plan import Plan, Summary
from tcomp.autotune.space import Space, Values, spaces_of
from tcomp.autotune.step_final import StepFinal, instance_seconds
from tcomp.autotune.trials import LEAST, Trials
from tcomp.dsl.ast import Module, Schedule
from tcomp.dsl.errors import quoting
from tcomp.errors import UserError
from tcomp.schedule.lower import lower

if TYPE_CHECKING:
    import optuna

STARTING = 2.0
"""Seconds that a process for candidates takes to start."""
OPEN = 1.03
"""Up to this part of the default's time in its trial a candidate may turn out to be better within steps."""
SMALL = 0.002
"""Kernels that take less than this share of a step are left alone under a budget."""


@dataclass(frozen=True)
class Part:
    """An instance with what of it has a choice: spaces and weights (guessed time in a step, any one unit) of its
    kernels by their position."""

    instance: Instance
    schedule: Schedule
    spaces: Mapping[int, Space]
    weights: Mapping[int, float]

    @property
    def weight(self) -> float:
        return sum(self.weights.values())


@dataclass(frozen=True)
class Shown:
    """Where a search tells what it does; `follow` shows how far the first look at all instances has come."""

    say: Callable[[str], None] = print
    follow: Callable[[Sequence[Instance]], Iterable[Instance]] = iter


class Search:
    """One run of `tcomp tune`."""

    def __init__(
        self,
        module: Module,
        place: Place,
        plan: Plan,
        judge: Judge,
        trials: optuna.storages.BaseStorage,
        lock: Path,
        shown: Shown,
        steps: StepFinal | None = None,
    ) -> None:
        self.module, self.machine, self.threads = module, place.machine, place.threads
        self.plan, self.judge, self.trials, self.lock, self.say = plan, judge, trials, lock, shown.say
        self.threads_key = machine_threads(self.machine, self.threads)
        self.end = time.monotonic() + plan.budget - plan.spent if plan.budget else None
        self.defaults: dict[str, float] = {}
        """seconds of the instances that were started, with the schedules' own values"""
        self.start_rate = 0.0
        """seconds that making an instance ready takes per unit of its kernels' guessed time, as far as is known"""
        self.summary = Summary()
        self.outcomes = Outcomes(lock, module, place, plan, judge.basis, self.summary, shown.say)
        self.kernels = Trials(trials, self.machine.name, judge, plan, self.summary.kinds)
        self.follow = shown.follow
        self.first: dict[str, list[Values]] = {}
        """points to try before the cost model's, by instance"""
        self.steps = steps
        """where finals are of all ops together, within steps; without it they are of each op alone"""
        self.waiting: list[tuple[Instance, list[Job]]] = []
        """what is to be decided in that final"""

    def run(self) -> Summary:
        """Tune everything asked for. KeyboardInterrupt leaves all finished trials and entries behind."""
        self.outcomes.check()  # here, not after it
        try:
            parts = self._parts()
            order = sorted(self._worthwhile(parts), key=lambda p: -p.weight)
            if not parts and not self.summary.skipped:
                self.say("there is nothing to tune: no schedule of these ops has a `tune` line here")
            if order:
                self._prepare_final()
            for at, part in enumerate(order):
                self._instance(part, sum(p.weight for p in order[at:]))
            if self.waiting:
                self._final()
        finally:
            self.judge.close()
            if self.steps is not None:
                self.steps.close()
        return self.summary

    def _prepare_final(self) -> None:
        """Whether the final is within steps, where that is asked for."""
        if self.steps is None:
            return
        self.steps.prepare(math.inf if self.end is None else self.end - time.monotonic())
        if self.steps.effort is None:
            self.say(f"the finals are of each op alone: {self.steps.reason}")
        else:
            self.say(
                f"a step takes {self.steps.seconds * 1e3:.1f} ms; what is better is decided within steps, at the end"
            )

    def forget(self) -> None:
        """Remove the kept trials of the ops that are to be tuned."""
        import optuna

        labels = {entry_key(i.key, self.threads_key) for i in self._wanted()}
        for name in study_names(self.trials):
            where, label, *_ = name.split(" | ")
            if where == f"{self.machine.name} {self.judge.basis}" and label.partition(" [")[0] in labels:
                optuna.delete_study(study_name=name, storage=self.trials)

    def jobs(self) -> list[Job]:
        """All kernels asked for that have a choice, those that take most of a step first."""
        parts = [part for instance in self._wanted() if (part := self._part(instance)) is not None]
        return sorted((j for part in parts for j in self._jobs(part)), key=lambda j: -j.weight)

    # --------------------------------------------------------------------------------------- what to tune

    def _wanted(self) -> list[Instance]:
        every = instances_of(self.module, self.plan.step, self.machine)
        if not self.plan.ops:
            return list(every)
        names = sorted({i.op.name for i in every})
        for pattern in self.plan.ops:
            if not fnmatch.filter(names, pattern):
                raise UserError(f"no op of this step is named {pattern!r}", f"its ops: {', '.join(names)}")
        return [i for i in every if any(fnmatch.fnmatchcase(i.op.name, p) for p in self.plan.ops)]

    def _parts(self) -> list[Part]:
        """What has a choice, of as many instances as the budget lets be looked at."""
        found = []
        for instance in self.follow(self._wanted()):
            if self._left() <= 0:
                self._spent(instance)
            elif (part := self._part(instance)) is not None:
                found.append(part)
        return found

    def _spent(self, instance: Instance) -> None:
        self.summary.skipped.append(f"{entry_key(instance.key, self.threads_key)}: the budget is spent")

    def _part(self, instance: Instance) -> Part | None:
        """What of an instance has a choice; None when nothing has."""
        schedule = schedule_of(instance.op, self.module, instance.dims, self.machine, self.threads)
        with quoting(self.module.sources):
            spaces = spaces_of(schedule, facts_of(instance, self.machine, self.threads))
        if not spaces:
            return None
        kernels = lower(instance.op, self.module, dict(instance.dims), self.machine, self.threads).kernels
        places = {k.span: i for i, k in enumerate(kernels)}
        found = {places[s.span]: s for s in spaces if s.span in places}
        if not found:
            return None
        weights = self.judge.weigh(instance)
        return Part(instance, schedule, found, {i: instance.count * weights[i] for i in found})

    def _jobs(self, part: Part, patience: float = math.inf) -> list[Job]:
        """The kernels with their times as they are, those that take most of a step first. TimeoutError where
        `patience` ends before."""
        instance = part.instance
        began = time.monotonic()
        seconds = self.judge.start(instance, patience)
        self.defaults[instance.key] = sum(seconds)
        rate = (time.monotonic() - began - STARTING) * instance.count / max(part.weight, 1e-12)
        self.start_rate = max(self.start_rate, rate)
        text, shape = op_hash(instance.op, self.module), schedule_hash(part.schedule)
        key = entry_key(instance.key, self.threads_key)
        jobs = [Job(instance, key, space, i, text, shape, seconds[i]) for i, space in part.spaces.items()]
        return sorted(jobs, key=lambda j: -part.weights[j.kernel])

    def _worthwhile(self, parts: Sequence[Part]) -> list[Part]:
        """Under a budget, those that take a share of the step worth looking at."""
        if self.end is None or self.plan.ops:
            return list(parts)
        total = sum(p.weight for p in parts) or 1.0
        for p in parts:
            if p.weight < SMALL * total:
                self.summary.skipped.append(f"{p.instance.key}: about {p.weight / total:.2%} of the step's tuned time")
        return [p for p in parts if p.weight >= SMALL * total]

    def _left(self) -> float:
        """Seconds of the budget that are left before the final within steps, if there is to be one."""
        kept = self.steps.reserved if self.steps is not None else 0.0
        return float("inf") if self.end is None else self.end - kept - time.monotonic()

    # --------------------------------------------------------------------------------------- one instance

    def _instance(self, part: Part, weight_left: float) -> None:
        if STARTING + self.start_rate * part.weight / part.instance.count > self._left():
            self._spent(part.instance)
            return
        try:
            jobs = self._jobs(part, self._left())
        except TimeoutError:
            self._spent(part.instance)
            return
        for job in jobs:
            weight = part.weights[job.kernel]
            left = self._left()
            if left <= LEAST:
                self.summary.skipped.append(f"{job.label}: the budget is spent")
            else:
                end = time.monotonic() + left * weight / max(weight_left, 1e-12)
                self.kernels.run(job, end, [*self.first.get(job.instance.key, []), *self.outcomes.proposed(job)])
            weight_left -= weight
        if self.steps is not None and self.steps.effort is not None:
            self.say(self.kernels.so_far(jobs))
            self.waiting.append((part.instance, jobs))
        else:
            self.settle(part.instance, jobs)

    def _final(self) -> None:
        """The final of all kernels within steps, in what is left of the budget; its outcomes go into the lockfile."""
        assert self.steps is not None
        judged = [(i, jobs) for i, jobs in self.waiting if any(self.kernels.judged(j) for j in jobs)]
        overruled = {i.key for i, jobs in judged if self.outcomes.choice(i).schedule is not None}
        for instance, jobs in judged:
            if instance.key in overruled:  # a schedule of its own has no parameters that finalists are points of
                self.settle(instance, jobs)
        judged = [(i, jobs) for i, jobs in judged if i.key not in overruled]
        if not judged:
            return
        self.judge.close()
        left = math.inf if self.end is None else max(1.0, self.end - time.monotonic())
        incumbents = {i.key: self.outcomes.incumbent(i) for i, _ in judged}
        every = [j for _, jobs in judged for j in jobs]
        found = self.steps.decide(every, incumbents, self._in_question, self._wrong, left)
        if isinstance(found, Failure):
            cut = found.kind == "timeout"
            reason = "the budget ended in it" if cut else f"{found.kind}: {found.reason}"
            self.say(f"the final within steps failed: {reason}; the lockfile is as it was, the same command goes on")
            return
        for instance, jobs in judged:
            choice, now = found.choices[instance.key], incumbents[instance.key]
            if choice == now:
                self.outcomes.keep(instance, jobs[0], now, self.defaults[instance.key])
                continue
            own, mine = (instance_seconds(t, instance.key) for t in (found.own, found.chosen))
            r, default = ratio(mine, own), statistics.median(own) / instance.count
            outcome = Outcome(default, default * r.value, r.margin, True)
            self.outcomes.record(instance, jobs[0], choice, outcome)
        self.summary.step_seconds = self.steps.seconds
        if found.own:
            self.summary.step_seconds = statistics.median(t.whole for t in found.own)
            self.summary.step = found.step

    def _in_question(self, job: Job) -> list[Values]:
        """A kernel's finalists, the best first: those of which single runs leave open whether they are better."""
        own = job.space.own(self.outcomes.incumbent(job.instance).values)
        return [v for v in self.kernels.finalists(job, OPEN) if v != own]

    def _wrong(self, instance: Instance, choice: Choice) -> str:
        left = math.inf if self.end is None else self.end - time.monotonic()
        problem = self.judge.wrong(instance, choice, max(LEAST, left))
        if problem:
            self.say(f"{instance.key}: the choice was refused: {problem}")
        return problem

    def settle(self, instance: Instance, jobs: list[Job]) -> None:
        """Finals of the kernels and of the whole op, within what is left of the budget; the outcome goes into the
        lockfile."""
        if not any(self.kernels.judged(job) for job in jobs):
            return  # there was no time for a candidate
        incumbent = self.outcomes.incumbent(instance)
        choice = dict(incumbent.values)
        for job in jobs:
            own = job.space.own(incumbent.values)
            finalists = [v for v in self.kernels.finalists(job) if v != own]
            best = self.judge.best(job, own, finalists, max(1.0, self._left())) if finalists else own
            if best != job.space.default or incumbent:
                choice |= job.space.chosen(best)
        self._decide(instance, jobs[0], incumbent, Choice(choice))

    def settle_schedule(self, job: Job, schedule: Schedule) -> None:
        """The final of a whole schedule against what the lockfile has for its op; the outcome goes into the
        lockfile."""
        self._decide(job.instance, job, self.outcomes.incumbent(job.instance), Choice({}, schedule))

    def _decide(self, instance: Instance, job: Job, incumbent: Choice, choice: Choice) -> None:
        if self.outcomes.overrules(instance):
            self.say(f"{job.key}: was measured, and no prediction overrules that; kept as it is")
            self.summary.kept.append(job.key)
            return
        if choice == incumbent:
            self.outcomes.keep(instance, job, incumbent, self.defaults[instance.key])
            return
        outcome = self.judge.confirm(instance, incumbent, choice, max(1.0, self._left()))
        if outcome.problem:
            self.say(f"{job.key}: the choice was refused: {outcome.problem}")
        else:
            self.outcomes.record(instance, job, choice if outcome.better else incumbent, outcome)
