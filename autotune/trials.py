"""The trials of single kernels: what is tried next, what is kept of each, which are worth a final.

A kernel's trials are an Optuna study in the storage. The first are what is proposed and what the judge's quick
estimates like best; then the study's sampler proposes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.autotune import storage
from tcomp.autotune.child import PATIENCE
from tcomp.autotune.judge import Job, Judge, Verdict
from tcomp.autotune.kept_trials import values_of
from tcomp.autotune.plan import Plan
from tcomp.autotune.space import Values

if TYPE_CHECKING:
    import optuna

TRIALS = 40
"""Trials per kernel when neither a number nor a budget is given."""
RANKED, FIRST_BATCH = 256, 8
"""Points that the cost model puts in order before the first trial, and how many of them are tried first."""
RANKING = 0.15
"""Share of a kernel's time that this may take."""
FINALISTS = 3
CLOSING = 0.15
"""Share of a kernel's time that is kept for its final."""
LEAST = 1.0
"""Seconds without which a trial is not begun."""


class Trials:
    """Runs and keeps trials for a machine (its name). `kinds` counts them by outcome."""

    def __init__(
        self, kept: optuna.storages.BaseStorage, machine: str, judge: Judge, plan: Plan, kinds: dict[str, int]
    ) -> None:
        self.storage, self.machine, self.judge, self.plan, self.kinds = kept, machine, judge, plan, kinds

    def run(self, job: Job, limit: float, first: Sequence[Values] = ()) -> None:
        """Trials of a kernel until it has enough or the time (monotonic) is `limit`; new studies begin with `first`."""
        import optuna

        study = self.study(job)
        self.begin(study, job)
        tried = _tried(study)
        wanted = self._count(job)
        if len(tried) <= 1:
            for values in [*first, *self._first_batch(job, limit)]:
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

    def study(self, job: Job) -> optuna.Study:
        return storage.open_study(self.storage, job, self.machine, self.judge.basis, self.plan.seed)

    def begin(self, study: optuna.Study, job: Job) -> None:
        """The default as the study's first trial."""
        if not _tried(study):
            storage.add_default(study, job.space, job.seconds)

    def close_trial(self, study: optuna.Study, trial: optuna.Trial, verdict: Verdict) -> None:
        """The verdict into the storage: a value, or why there is none."""
        import optuna

        kind = verdict.kind or "timed"
        self.kinds[kind] = self.kinds.get(kind, 0) + (kind != "repeated")
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

    def finalists(self, job: Job, below: float = 1.0) -> list[Values]:
        """The best points whose time over the default's is below that, the best first."""
        import optuna

        study = self.study(job)
        done = [
            t
            for t in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            if t.value is not None and t.value < below and t.number and values_of(t)
        ]
        done.sort(key=lambda t: (t.value + t.user_attrs.get("margin", 0.0), t.number))  # luck is not what to choose by
        return [v for t in done[:FINALISTS] if (v := values_of(t)) is not None]

    def _count(self, job: Job) -> int:
        most = job.space.size
        if self.plan.trials is not None:
            return min(most, self.plan.trials + 1)
        return most if self.plan.budget is not None else min(most, TRIALS + 1)

    def _settled(self, study: optuna.Study) -> bool:
        """Whether `until` says that more trials are not worth it."""
        if self.plan.until is None:
            return False
        values = [t.value for t in study.get_trials(deepcopy=False) if t.value is not None]
        return len(values) > 16 and min(values[:-8]) - min(values) < self.plan.until * min(values)

    def judged(self, job: Job) -> bool:
        """Whether there is a trial beside the default's."""
        passed = (None, "default", "killed", "cut", "repeated")
        trials = self.study(job).get_trials(deepcopy=False)
        return any(t.state.is_finished() and t.user_attrs.get("kind") not in passed for t in trials)

    def so_far(self, jobs: Sequence[Job]) -> str:
        """What the trials of an instance found."""
        parts = []
        for job in sorted(jobs, key=lambda j: j.kernel):
            done = self.study(job).get_trials(deepcopy=False)
            found = [t.value for t in done if t.value is not None and t.user_attrs.get("kind") == "timed"]
            best = f", best {min(found):.2f} of the default's time" if found else ""
            parts.append(f"{f'{job.space.kernel}: ' if job.space.kernel else ''}{len(found)} timed{best}")
        return f"{jobs[0].key}: {'; '.join(parts)}"


def _tried(study: optuna.Study) -> set[str]:
    """The points that need no further trial: all that ended but for those a kill or a time limit ended."""
    out = set()
    for t in study.get_trials(deepcopy=False):
        values = values_of(t)
        if values and t.state.is_finished() and t.user_attrs.get("kind") not in (None, "killed", "cut", "repeated"):
            out.add(_text(values))
    return out


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
