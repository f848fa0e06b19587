"""The search over a model: which kernels, in what order, for how long; every trial kept, every outcome in the lockfile.

Kernels are tuned in the order of the time they take in a step, each for a share of the budget that follows that time.
The judge decides what a candidate is worth; a crash, a wrong result or a slow start costs one trial.
"""

from __future__ import annotations

import datetime
import fnmatch
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.autotune import storage
from tcomp.autotune.apply import Applied
from tcomp.autotune.child import PATIENCE, Failure
from tcomp.autotune.contest import Ratio, ratio
from tcomp.autotune.instances import (
    Instance,
    StepShape,
    facts_of,
    instances_of,
    machine_threads,
    op_hash,
    schedule_hash,
    schedule_of,
)
from tcomp.autotune.judge import Choice, Job, Judge, Outcome, Verdict
from tcomp.autotune.lockfile import (
    Entry,
    Lock,
    check_writable,
    entry_key,
    read_lock_for,
    tool_versions,
    update_lock,
    with_entry,
)
from tcomp.autotune.schedule_text import text_hash
from tcomp.autotune.space import Space, Values, spaces_of
from tcomp.autotune.step_final import StepFinal, instance_seconds
from tcomp.dsl.ast import Module, Schedule
from tcomp.dsl.printer import print_schedule
from tcomp.errors import UserError
from tcomp.schedule.family import Machine
from tcomp.schedule.lower import lower

if TYPE_CHECKING:
    import optuna

TRIALS = 40
"""Trials per kernel when neither a number nor a budget is given."""
RANKED, FIRST_BATCH = 256, 8
"""Points that the cost model puts in order before the first trial, and how many of them are tried first."""
RANKING = 0.15
"""Share of a kernel's time that this may take."""
STARTING = 2.0
"""Seconds that a process for candidates takes to start."""
FINALISTS = 3
OPEN = 1.03
"""Up to this part of the default's time in its trial a candidate may turn out to be better within steps."""
SMALL = 0.002
"""Kernels that take less than this share of a step are left alone under a budget."""
CLOSING = 0.15
"""Share of a kernel's time that is kept for its final."""
LEAST = 1.0
"""Seconds without which a trial is not begun."""


@dataclass(frozen=True)
class Plan:
    """What to tune and how long. `budget` in seconds for everything, `spent` of which are gone before the search
    begins; `trials` per kernel, those of earlier runs included. `until` stops a kernel when the last eight trials
    gained less than this share."""

    shape: StepShape
    budget: float | None = None
    trials: int | None = None
    ops: tuple[str, ...] = ()
    seed: int = 0
    until: float | None = None
    spent: float = 0.0


@dataclass
class Summary:
    """What a search did. `kinds` counts the trials by outcome."""

    tuned: dict[str, Entry] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0
    """seconds of a step's tuned ops, with the schedules' own values and with the choices"""
    step_seconds: float = 0.0
    step: Ratio | None = None
    """a whole step by the schedules' own values, and the part of that which one with all choices takes"""


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


Say = Callable[[str], None]
Follow = Callable[[Sequence[Instance]], Iterable[Instance]]


class Search:
    """One run of `tcomp tune`."""

    def __init__(
        self,
        module: Module,
        model: str,
        machine: Machine,
        threads: int,
        plan: Plan,
        judge: Judge,
        trials: optuna.storages.BaseStorage,
        lock: Path,
        say: Say = print,
        known: Lock | None = None,
        follow: Follow = iter,
        steps: StepFinal | None = None,
    ) -> None:
        self.module, self.model, self.machine, self.threads = module, model, machine, threads
        self.plan, self.judge, self.trials, self.lock, self.say = plan, judge, trials, lock, say
        self.threads_key = machine_threads(machine, threads)
        self.end = time.monotonic() + plan.budget - plan.spent if plan.budget else None
        self.defaults: dict[str, float] = {}
        """seconds of the instances that were started, with the schedules' own values"""
        self.start_rate = 0.0
        """seconds that making an instance ready takes per unit of its kernels' guessed time, as far as is known"""
        self.summary = Summary()
        self.follow = follow
        """shows how far the first look at all instances has come"""
        self.first: dict[str, list[Values]] = {}
        """points to try before the cost model's, by instance"""
        self.known = known
        """a lockfile whose values are tried before those as well: one that came with the model, say"""
        self.steps = steps
        """where finals are of all ops together, within steps; without it they are of each op alone"""
        self.waiting: list[tuple[Instance, list[Job]]] = []
        """what is to be decided in that final"""

    def run(self) -> Summary:
        """Tune everything asked for. KeyboardInterrupt leaves all finished trials and entries behind."""
        check_writable(self.lock)
        self._lock()  # a damaged one ends the search here and not after it
        try:
            parts = self._parts()
            order = sorted(self._worthwhile(parts), key=lambda p: -p.weight)
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
        for name in optuna.get_all_study_names(self.trials):
            where, label, *_ = name.split(" | ")
            if where == f"{self.machine.name} {self.judge.basis}" and label.partition(" [")[0] in labels:
                optuna.delete_study(study_name=name, storage=self.trials)

    def jobs(self) -> list[Job]:
        """All kernels asked for that have a choice, those that take most of a step first."""
        parts = [part for instance in self._wanted() if (part := self._part(instance)) is not None]
        return sorted((j for part in parts for j in self._jobs(part)), key=lambda j: -j.weight)

    # --------------------------------------------------------------------------------------- what to tune

    def _wanted(self) -> list[Instance]:
        every = instances_of(self.module, self.model, self.plan.shape)
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
                self._trials(job, time.monotonic() + left * weight / max(weight_left, 1e-12))
            weight_left -= weight
        if self.steps is not None and self.steps.effort is not None:
            self.say(self._so_far(jobs))
            self.waiting.append((part.instance, jobs))
        else:
            self.settle(part.instance, jobs)

    def _so_far(self, jobs: Sequence[Job]) -> str:
        """What the trials of an instance found."""
        parts = []
        for job in sorted(jobs, key=lambda j: j.kernel):
            done = self._study(job).get_trials(deepcopy=False)
            found = [t.value for t in done if t.value is not None and t.user_attrs.get("kind") == "timed"]
            best = f", best {min(found):.2f} of the default's time" if found else ""
            parts.append(f"{f'{job.space.kernel}: ' if job.space.kernel else ''}{len(found)} timed{best}")
        return f"{jobs[0].key}: {'; '.join(parts)}"

    def _final(self) -> None:
        """The final of all kernels within steps, in what is left of the budget; its outcomes go into the lockfile."""
        assert self.steps is not None
        judged = [(i, jobs) for i, jobs in self.waiting if any(_judged(self._study(j)) for j in jobs)]
        overruled = {i.key for i, jobs in judged if self._entry(self._lock(), i)[0].schedule is not None}
        for instance, jobs in judged:
            if instance.key in overruled:  # a schedule of its own has no parameters that finalists are points of
                self.settle(instance, jobs)
        judged = [(i, jobs) for i, jobs in judged if i.key not in overruled]
        if not judged:
            return
        self.judge.close()
        left = math.inf if self.end is None else max(1.0, self.end - time.monotonic())
        incumbents = {i.key: self._incumbent(i) for i, _ in judged}
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
                self._keep(instance, jobs[0], now)
                continue
            own, mine = (instance_seconds(t, instance.key) for t in (found.own, found.chosen))
            r, default = ratio(mine, own), statistics.median(own) / instance.count
            self._record(instance, jobs[0], choice, Outcome(default, default * r.value, r.margin, True))
        self.summary.step_seconds = self.steps.seconds
        if found.own:
            self.summary.step_seconds = statistics.median(t.whole for t in found.own)
            self.summary.step = found.step

    def _in_question(self, job: Job) -> list[Values]:
        """A kernel's finalists, the best first: those of which single runs leave open whether they are better."""
        own = job.space.own(self._incumbent(job.instance).values)
        return [v for v in self._finalists(job, OPEN) if v != own]

    def _wrong(self, instance: Instance, choice: Choice) -> str:
        problem = self.judge.wrong(instance, choice, max(LEAST, self._left()))
        if problem:
            self.say(f"{instance.key}: the choice was refused: {problem}")
        return problem

    def settle(self, instance: Instance, jobs: list[Job]) -> None:
        """Finals of the kernels and of the whole op, within what is left of the budget; the outcome goes into the
        lockfile."""
        if not any(_judged(self._study(job)) for job in jobs):
            return  # there was no time for a candidate
        incumbent = self._incumbent(instance)
        choice = dict(incumbent.values)
        for job in jobs:
            own = job.space.own(incumbent.values)
            finalists = [v for v in self._finalists(job) if v != own]
            best = self.judge.best(job, own, finalists, max(1.0, self._left())) if finalists else own
            if best != job.space.default or incumbent:
                choice |= job.space.chosen(best)
        self._decide(instance, jobs[0], incumbent, Choice(choice))

    def settle_schedule(self, job: Job, schedule: Schedule) -> None:
        """The final of a whole schedule against what the lockfile has for its op; the outcome goes into the
        lockfile."""
        self._decide(job.instance, job, self._incumbent(job.instance), Choice({}, schedule))

    def _incumbent(self, instance: Instance) -> Choice:
        """What the lockfile has for an instance, and a candidate must beat. To one who measures, what was predicted is
        a proposal like any other."""
        choice, basis = self._entry(self._lock(), instance)
        return Choice() if (basis, self.judge.basis) == ("predicted", "measured") else choice

    def _lock(self) -> Lock:
        new = Lock(self.model, self.machine.name)
        return read_lock_for(self.lock, self.machine.name, self.model) if self.lock.exists() else new

    def _entry(self, lock: Lock, instance: Instance) -> tuple[Choice, str]:
        """A lockfile's choice and its basis; nothing where it has none, or a stale one."""
        applied = Applied(lock, self.module, self.machine, self.threads)
        choice = applied.choice(instance)
        return choice, next((e.basis for e in applied.used.values()), "")

    def _proposed(self, job: Job) -> list[Values]:
        """What lockfiles have for a kernel: its first candidates."""
        locks = [self._lock(), *([self.known] if self.known is not None else [])]
        return [job.space.own(choice.values) for lock in locks if (choice := self._entry(lock, job.instance)[0]).values]

    def _decide(self, instance: Instance, job: Job, incumbent: Choice, choice: Choice) -> None:
        if (self._entry(self._lock(), instance)[1], self.judge.basis) == ("measured", "predicted"):
            self.say(f"{job.key}: was measured, and no prediction overrules that; kept as it is")
            self.summary.kept.append(job.key)
            return
        if choice == incumbent:
            self._keep(instance, job, incumbent)
            return
        outcome = self.judge.confirm(instance, incumbent, choice, max(1.0, self._left()))
        if outcome.problem:
            self.say(f"{job.key}: the choice was refused: {outcome.problem}")
        else:
            self._record(instance, job, choice if outcome.better else incumbent, outcome)

    def _keep(self, instance: Instance, job: Job, incumbent: Choice) -> None:
        """Nothing was better."""
        old = self._lock().entries.get(job.key)
        default = self.defaults[instance.key]
        known = (old.default_seconds, old.seconds) if old is not None and incumbent else (default, default)
        self._record(instance, job, incumbent, Outcome(*known, 0.0, False))

    def _record(self, instance: Instance, job: Job, winner: Choice, outcome: Outcome) -> None:
        key = job.key
        text = print_schedule(winner.schedule) if winner.schedule else ""
        entry = Entry(
            job.op_hash, job.schedule_hash, winner.values, self.judge.basis, outcome.default_seconds, outcome.seconds,
            outcome.margin, tool_versions(), _now(), text, text_hash(text) if text else "",
        )  # fmt: skip

        def change(lock: Lock) -> Lock:
            old = lock.entries.get(key)
            same = old is not None and (old.op, old.schedule, old.basis) == (entry.op, entry.schedule, entry.basis)
            return with_entry(lock, key, old if old and same and not outcome.better else entry, self.plan.shape.text)

        update_lock(self.lock, change, Lock(self.model, self.machine.name))
        (self.summary.tuned.__setitem__(key, entry) if outcome.better else self.summary.kept.append(key))
        self.summary.before += instance.count * outcome.default_seconds
        self.summary.after += instance.count * outcome.seconds
        word = self.judge.basis
        what = f"{outcome.seconds * 1e6:.1f} us, {1 - outcome.seconds / outcome.default_seconds:+.1%} time saved"
        if outcome.better:
            by = ", by the proposed schedule" if winner.schedule else ""
            self.say(f"{key}: {word} {what} against the schedule's own values{by}")
        else:
            self.say(f"{key}: {word}, no candidate is better beyond noise; kept as it is")

    # --------------------------------------------------------------------------------------- one kernel

    def _trials(self, job: Job, limit: float) -> None:
        import optuna

        study = self._study(job)
        self.begin(study, job)
        tried = _tried(study)
        wanted = self._count(job)
        if len(tried) <= 1:
            for values in [*self.first.get(job.instance.key, []), *self._proposed(job), *self._first_batch(job, limit)]:
                storage.enqueue(study, job.space, values)
        if len(tried) >= wanted:
            return
        fresh = job.space.points(self.plan.seed + len(study.get_trials(deepcopy=False)))
        start = time.monotonic()
        longest = 0.0
        while len(tried) < wanted:
            now = time.monotonic()
            closing = max(CLOSING * (limit - start), 2 * longest)
            if now + max(longest, LEAST) > limit - closing or self._settled(study):
                break
            trial, values = storage.ask(study, job.space)
            if _text(values) in tried or job.space.problem(values):
                why = job.space.problem(values)
                self.close_trial(study, trial, Verdict(None, kind="where" if why else "repeated", reason=why))
                another = next((v for v in fresh if _text(v) not in tried), None)
                if another is None:
                    break  # every point has been tried
                storage.enqueue(study, job.space, another)
                continue
            try:
                estimate = self.judge.predict(job, values)
                if estimate:
                    trial.set_user_attr("model", estimate)
                verdict = self.judge.evaluate(job, values, max(1.0, limit - now))
            except KeyboardInterrupt:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            if verdict.kind == "timeout" and limit - now < PATIENCE:
                verdict = replace(verdict, kind="cut", reason="the budget ended before it was judged")
            self.close_trial(study, trial, verdict)
            tried = _tried(study)
            if verdict.kind not in ("illegal", "timeout"):
                longest = max(longest, time.monotonic() - now)

    def _study(self, job: Job) -> optuna.Study:
        return storage.open_study(self.trials, job, self.machine.name, self.judge.basis, self.plan.seed)

    def begin(self, study: optuna.Study, job: Job) -> None:
        """The default as the study's first trial."""
        if not _tried(study):
            storage.add_default(study, job.space, job.seconds)

    def close_trial(self, study: optuna.Study, trial: optuna.Trial, verdict: Verdict) -> None:
        """The verdict into the storage: a value, or why there is none."""
        import optuna

        kind = verdict.kind or "timed"
        self.summary.kinds[kind] = self.summary.kinds.get(kind, 0) + (kind != "repeated")
        trial.set_user_attr("kind", kind)
        trial.set_user_attr("reason", verdict.reason)
        trial.set_user_attr("seconds", verdict.seconds)
        for name, fact in verdict.facts.items():
            trial.set_user_attr(name, fact)
        if verdict.kind in ("where", "illegal", "spill"):
            trial.set_user_attr("violation", 1.0)
        if not verdict.kind:
            study.tell(trial, verdict.value)
        elif verdict.kind == "slow" and verdict.value is not None:
            trial.report(verdict.value, 0)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif verdict.kind in ("where", "illegal", "spill", "repeated"):
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _first_batch(self, job: Job, limit: float) -> list[Values]:
        """The points that the cost model likes best, of those that lower at all and can be looked at in a share of
        the time."""
        ranked: list[tuple[float, int, Values]] = []
        now = time.monotonic()
        end = now + RANKING * (limit - now)
        for i, values in enumerate(job.space.points(self.plan.seed)):
            if i >= RANKED or (ranked and time.monotonic() > end):
                break
            cost = self.judge.predict(job, values)
            if cost is not None:
                ranked.append((cost, i, values))
        ranked.sort(key=lambda r: r[:2])
        return [v for _, _, v in ranked[:FIRST_BATCH]]

    def _finalists(self, job: Job, below: float = 1.0) -> list[Values]:
        import optuna

        study = self._study(job)
        done = [
            t
            for t in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            if t.value is not None and t.value < below and t.number and storage.values_of(t)
        ]
        done.sort(key=lambda t: (t.value + t.user_attrs.get("margin", 0.0), t.number))  # luck is not what to choose by
        return [v for t in done[:FINALISTS] if (v := storage.values_of(t)) is not None]

    def _count(self, job: Job) -> int:
        most = job.space.size
        if self.plan.trials is not None:
            return min(most, self.plan.trials + 1)
        return most if self.end is not None else min(most, TRIALS + 1)

    def _settled(self, study: optuna.Study) -> bool:
        """Whether `until` says that more trials are not worth it."""
        if self.plan.until is None:
            return False
        values = [t.value for t in study.get_trials(deepcopy=False) if t.value is not None]
        return len(values) > 16 and min(values[:-8]) - min(values) < self.plan.until * min(values)


def _tried(study: optuna.Study) -> set[str]:
    """The points that need no further trial: all that ended but for those a kill or a time limit ended."""
    out = set()
    for t in study.get_trials(deepcopy=False):
        values = storage.values_of(t)
        if values and t.state.is_finished() and t.user_attrs.get("kind") not in (None, "killed", "cut", "repeated"):
            out.add(_text(values))
    return out


def _judged(study: optuna.Study) -> bool:
    """Whether there is a trial beside the default's."""
    passed = (None, "default", "killed", "cut", "repeated")
    return any(t.state.is_finished() and t.user_attrs.get("kind") not in passed for t in study.get_trials(False))


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def summary_lines(summary: Summary, basis: str) -> Sequence[str]:
    """The end of a run, for people."""
    lines = []
    if summary.kinds:
        counts = ", ".join(f"{n} {k}" for k, n in sorted(summary.kinds.items()) if n)
        lines.append(f"trials: {counts}")
    if summary.before and not summary.step_seconds:
        saved = 1 - summary.after / summary.before
        lines.append(
            f"tuned ops of a step, {basis}: {summary.before * 1e3:.2f} ms -> {summary.after * 1e3:.2f} ms, "
            f"{saved:.1%} less"
        )
    if summary.step is not None:
        r, own = summary.step, summary.step_seconds * 1e3
        lines.append(
            f"whole step, {basis} in turns: {own:.1f} ms -> {own * r.value:.1f} ms, {1 - r.value:.1%} less "
            f"(95% interval {1 - r.high:.1%} to {1 - r.low:.1%})"
        )
    elif summary.step_seconds:
        lines.append(f"whole step: {summary.step_seconds * 1e3:.1f} ms; nothing better was found")
    lines += [f"left alone: {text}" for text in summary.skipped]
    return lines
