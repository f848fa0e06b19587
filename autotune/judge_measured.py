"""Candidates judged by running them, on a CPU or a GPU: built and checked in a process of their own, timed in turns
with the default (`contest` has the rules; the backend knows the device).
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tcomp.autotune.backend import Backend
from tcomp.autotune.child import PATIENCE, Failure
from tcomp.autotune.contest import FINAL, FIRST, MORE, SLOW, ratio, winner
from tcomp.autotune.evaluator import Evaluator, Serve, Subject, serve
from tcomp.autotune.instances import Instance
from tcomp.autotune.judge import Choice, Chosen, Job, Outcome, Verdict
from tcomp.autotune.space import Values
from tcomp.dsl.ast import Module, Schedule
from tcomp.dsl.errors import TcError
from tcomp.errors import UserError
from tcomp.ir.tile import Kernel
from tcomp.schedule.lower import lower

DEFAULT = "default"
LEAST, ROUNDS = 1.0, 20
"""Seconds that every step of a comparison gets, however little is left of the budget, and beside them the runs."""


class MeasuredJudge:
    """Judges instances one after the other. `alone` is the lock file that keeps two tuning processes from measuring at
    the same time; `target` is what the child runs (tests plant faults in it), `patience` how many seconds a candidate
    may take to build and check."""

    basis = "measured"

    def __init__(
        self,
        module: Module,
        backend: Backend,
        seed: int,
        alone: Path | None = None,
        target: Serve = serve,
        patience: float = PATIENCE,
    ) -> None:
        self.module, self.backend, self.seed, self.alone = module, backend, seed, alone
        self.target, self.patience = target, patience
        self._evaluator: Evaluator | None = None
        self._instance: Instance | None = None
        self._kernel: int | None = None
        self._built = False
        self._defaults: dict[tuple[str, int], Kernel] = {}
        self._started: dict[str, float] = {}
        """seconds of the instances with the schedules' own values"""
        self._names = (f"candidate{i}" for i in itertools.count())

    def weigh(self, instance: Instance) -> list[float]:
        return [self.backend.estimate(k) for k in self._lower(instance, {})]

    def start(self, instance: Instance, patience: float = math.inf) -> list[float]:
        end = time.monotonic() + patience
        kernels = self._lower(instance, {})
        evaluator = self._for(instance)
        found = []
        for i in range(len(kernels)):
            self._default(evaluator, i if len(kernels) > 1 else None, _left(end))
            left = min(PATIENCE, _left(end))
            times = evaluator.times((DEFAULT,), 5, 0.5, self.alone, left)
            if isinstance(times, Failure):
                if times.kind == "timeout" and left < PATIENCE:
                    raise TimeoutError("the time ended before the schedule's own values were timed")
                raise UserError(
                    f"{instance.key}: cannot be timed: {times.reason}",
                    "leave the op out by naming others: --ops NAME; or use smaller sizes",
                )
            found.append(statistics.median(times[0]))
        self._started[instance.key] = sum(found)
        return found

    def predict(self, job: Job, values: Values) -> float | None:
        try:
            chosen = job.space.chosen(values)
            kernels = self._lower(job.instance, chosen)
        except TcError:
            return None
        if self._spill(job, kernels[job.kernel]):
            return None
        return self.backend.estimate(kernels[job.kernel])

    def _spill(self, job: Job, kernel: Kernel) -> str:
        """Why a candidate of the job would spill registers; empty when it may not."""
        at = job.key, job.kernel
        if at not in self._defaults:
            self._defaults[at] = self._lower(job.instance, {})[job.kernel]
        return self.backend.refusal(kernel, self._defaults[at])

    def evaluate(self, job: Job, values: Values, patience: float, schedule: Schedule | None = None) -> Verdict:
        refused = self._refused(job, values) if schedule is None else None
        if refused:
            return refused
        patience = min(self.patience, max(LEAST, patience))
        end = time.monotonic() + patience
        try:
            evaluator = self._ready(job, schedule, patience)
        except TimeoutError as e:
            return Verdict(None, 0.0, "timeout", str(e))
        name = next(self._names)
        try:
            built = evaluator.build(name, job.space.chosen(values), self._kernel, schedule, _left(end))
            if isinstance(built, Failure):
                return Verdict(None, 0.0, built.kind, built.reason)
            left = _left(end, job.seconds)
            first = evaluator.times((DEFAULT, name), FIRST, left / 2, self.alone, left)
            if isinstance(first, Failure):
                return Verdict(None, 0.0, first.kind, first.reason)
            early = ratio(first[1], first[0])
            if min(first[1]) > SLOW * min(first[0]):
                return Verdict(
                    early.value, min(first[1]), "slow", f"{early.value:.2f} of the default's time at first", built
                )
            left = _left(end, job.seconds)
            seconds = min(left / 2, MORE * 3 * job.seconds + 0.5)
            times = evaluator.times((DEFAULT, name), MORE, seconds, self.alone, left)
            if isinstance(times, Failure):
                return Verdict(None, 0.0, times.kind, times.reason)
            r = ratio(first[1] + times[1], first[0] + times[0])
            return Verdict(r.value, statistics.median(times[1]), facts={**built, "margin": r.margin})
        finally:
            evaluator.drop(name)

    def _refused(self, job: Job, values: Values) -> Verdict | None:
        """The verdict on a candidate that need not be compiled: it does not lower, or it would spill."""
        try:
            kernels = self._lower(job.instance, job.space.chosen(values))
        except TcError as e:
            return Verdict(None, 0.0, "illegal", e.message)
        spill = self._spill(job, kernels[job.kernel])
        return Verdict(None, 0.0, "spill", spill) if spill else None

    def best(self, job: Job, incumbent: Values, candidates: Sequence[Values], patience: float = math.inf) -> Values:
        end = time.monotonic() + patience
        try:
            evaluator = self._ready(job, None, patience)
        except TimeoutError:
            return incumbent
        standing: list[tuple[str, Values]] = []
        for values in (incumbent, *(c for c in candidates if c != incumbent)):
            name, left = next(self._names), end - time.monotonic()
            if left <= 0:
                break
            built = evaluator.build(
                name, job.space.chosen(values), self._kernel, None, min(self.patience, max(LEAST, left))
            )
            if not isinstance(built, Failure):
                standing.append((name, values))
        try:
            if len(standing) < 2 or standing[0][1] != incumbent:
                return incumbent
            names = tuple(n for n, _ in standing)
            wanted = max(2.0, FINAL * len(names) * job.seconds)
            left = _left(end, job.seconds)
            times = evaluator.times(names, FINAL, min(wanted, left / 2), self.alone, min(self.patience, left))
            if isinstance(times, Failure):
                return incumbent
            return standing[winner(times)][1]
        finally:
            for name, _ in standing:
                evaluator.drop(name)

    def confirm(self, instance: Instance, incumbent: Choice, choice: Choice, patience: float = math.inf) -> Outcome:
        evaluator = self._for(instance)
        end = time.monotonic() + patience
        if (self._kernel, self._built) != (None, True):
            try:
                self._default(evaluator, None, patience)
            except TimeoutError as e:
                return Outcome(0.0, 0.0, 0.0, False, f"{e}; run again")
        names = [DEFAULT]
        for candidate in (incumbent, choice):
            name = next(self._names)
            left = min(self.patience, _left(end))
            failure = evaluator.build(name, candidate.values, None, candidate.schedule, left)
            if isinstance(failure, Failure):
                for n in names[1:]:
                    evaluator.drop(n)
                cut = failure.kind == "timeout" and left < self.patience
                reason = "the budget ended in its final; run again" if cut else f"{failure.kind}: {failure.reason}"
                return Outcome(0.0, 0.0, 0.0, False, reason)
            names.append(name)
        left = _left(end, self._started.get(instance.key, 0.0))
        times = evaluator.times(tuple(names), FINAL, min(3.0, left / 2), self.alone, min(self.patience, left))
        for n in names[1:]:
            evaluator.drop(n)
        if isinstance(times, Failure):
            return Outcome(0.0, 0.0, 0.0, False, f"{times.kind}: {times.reason}")
        # (Without an incumbent the default stands in both places, and both must be beaten: luck does not come twice.)
        better = (
            choice != incumbent and bool(winner(times[1:])) and (bool(incumbent) or ratio(times[2], times[0]).beats)
        )
        default = statistics.median(times[0])
        if not better and not incumbent:
            return Outcome(default, default, 0.0, False)
        r = ratio(times[2] if better else times[1], times[0])
        return Outcome(default, default * r.value, r.margin, better)

    def wrong(self, instance: Instance, choice: Choice, patience: float = math.inf) -> str:
        """What is wrong with a whole op by a choice; empty when its result is the oracle's."""
        evaluator, name = self._for(instance), next(self._names)
        found = evaluator.build(name, choice.values, None, choice.schedule, min(self.patience, patience))
        evaluator.drop(name)
        return f"{found.kind}: {found.reason}" if isinstance(found, Failure) else ""

    def check(self, instance: Instance, chosen: Chosen, schedule: Schedule | None = None) -> str:
        return ""  # `evaluate` has run it beside the oracle

    def close(self) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
        self._evaluator = self._instance = None

    def _ready(self, job: Job, schedule: Schedule | None, patience: float) -> Evaluator:
        """The evaluator with the job's kernel built by default values. A whole schedule is timed as a whole op."""
        evaluator = self._for(job.instance)
        single = len(self._lower(job.instance, {}))
        wanted = None if single == 1 or schedule is not None else job.kernel
        if (wanted, True) != (self._kernel, self._built):
            self._default(evaluator, wanted, patience)
        return evaluator

    def _default(self, evaluator: Evaluator, kernel: int | None, patience: float = math.inf) -> None:
        """Build the default. TimeoutError where `patience` ends first, UserError where it is not right."""
        failure = evaluator.build(DEFAULT, {}, kernel, None, min(PATIENCE, patience))
        if isinstance(failure, Failure):
            self._built = False
            if failure.kind == "timeout" and patience < PATIENCE:
                raise TimeoutError("the time ended before the schedule's own values were built")
            assert self._instance is not None
            raise UserError(
                f"{self._instance.key}: the schedule's own values give no right result: {failure.reason}",
                "run `tcomp check` on the model's file",
            )
        self._kernel, self._built = kernel, True

    def _for(self, instance: Instance) -> Evaluator:
        if self._evaluator is None or self._instance != instance:
            self.close()
            subject = Subject(self.module, instance.op, instance.dims, self.backend, self.seed)
            self._evaluator, self._instance = Evaluator(subject, self.target), instance
            self._kernel, self._built = None, False
        return self._evaluator

    def _lower(self, instance: Instance, chosen: Chosen) -> tuple[Kernel, ...]:
        b = self.backend
        return lower(instance.op, self.module, dict(instance.dims), b.machine, b.threads, chosen).kernels


def _left(end: float, seconds: float = 0.0) -> float:
    """Seconds until then, and never fewer than a step gets: time for the rounds that are run in any case of a candidate
    that takes so many seconds."""
    return max(LEAST + ROUNDS * seconds, end - time.monotonic())
