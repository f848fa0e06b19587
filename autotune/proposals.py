"""Candidates from outside: what there is to tune as JSON lines (`ask`), proposals judged like any other (`tell`).

A proposal is values for one kernel's parameters, or a whole schedule text for its op. Both go through the same gates
as the search's own candidates: legality, what the assembler says, the oracle's result, time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tcomp.autotune import storage
from tcomp.autotune.instances import facts_of, schedule_of
from tcomp.autotune.judge import Job, Verdict
from tcomp.autotune.kept_trials import checked, reading, values_of
from tcomp.autotune.schedule_text import schedule_from
from tcomp.autotune.search import Search
from tcomp.dsl.ast import Schedule
from tcomp.dsl.errors import TcError
from tcomp.dsl.printer import print_expression, print_op, print_schedule
from tcomp.errors import UserError
from tcomp.runtime.documents import parse_json

if TYPE_CHECKING:
    import optuna

PATIENCE = 60.0
"""Seconds that one proposal may take."""
HISTORY = 50
"""Newest trials that a question tells of."""


def ask(search: Search) -> Iterator[dict[str, Any]]:
    """One question per kernel that can be tuned: its op, schedule, parameters, the target, and what was tried."""
    for job in search.jobs():
        instance = job.instance
        schedule = schedule_of(instance.op, search.module, instance.dims, search.machine, search.threads)
        study = storage.open_study(search.trials, job, search.machine.name, search.judge.basis, search.plan.seed)
        history = [*_history(study), *_history(proposed_study(search, job))]
        timed = [h for h in history if h["value"] is not None]
        yield {
            "job": job.label,
            "kernel": job.space.kernel,
            "dims": dict(instance.dims),
            "count": instance.count,
            "op": print_op(replace(instance.op, doc="")),
            "schedule": print_schedule(schedule),
            "parameters": [
                {
                    "name": p.name,
                    "choices": list(p.choices),
                    "default": job.space.default[p.name],
                    "needs": sorted(p.needs),
                }
                for p in job.space.parameters
            ],
            "where": [print_expression(c) for c in job.space.conditions],
            "target": {
                "machine": search.machine.name,
                "facts": facts_of(instance, search.machine, search.threads),
                "description": asdict(search.machine),
            },
            "basis": search.judge.basis,
            "default_us": round(job.seconds * 1e6, 3),
            "best": min(timed, key=lambda h: h["value"]) if timed else None,
            "history": history[-HISTORY:],
        }


def _history(study: optuna.Study) -> list[dict[str, Any]]:
    """The finished trials of a study, oldest first: value is time over the default's."""
    out = []
    for t in study.get_trials(deepcopy=False):
        kind = t.user_attrs.get("kind", "")
        if not t.state.is_finished() or kind in ("", "repeated", "killed", "cut"):
            continue
        what: dict[str, Any] = {"kind": kind, "reason": t.user_attrs.get("reason", ""), "value": t.value}
        if "schedule" in t.user_attrs:
            what["schedule"] = t.user_attrs["schedule"]
        else:
            what["values"] = values_of(t)
        if "binding" in t.user_attrs:
            what["binding"] = t.user_attrs["binding"]
        out.append(what)
    return out


def tell(search: Search, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Judge proposals, one JSON object a line: {"job", "values"} or {"job", "schedule"}; one answer each. At the end
    what was spoken of is settled, values first, then of each op the schedules that beat the model's own, the fastest
    first: what is better than the lockfile's choice beyond noise goes into the lockfile.

    UserError for a line that is no proposal: those behind it are not read, and what was judged before is settled.
    """
    jobs = {j.label: j for j in search.jobs()}
    touched: dict[str, Job] = {}
    schedules: list[tuple[float, Job, Schedule]] = []
    fault: UserError | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given, job = _proposal(line, number, jobs)
        except UserError as e:
            fault = e
            break
        if "schedule" in given:
            verdict, schedule = _judge_schedule(search, job, given["schedule"])
            if schedule is not None and not verdict.kind and verdict.value is not None and verdict.value < 1:
                schedules.append((verdict.value, job, schedule))
        else:
            touched[job.label] = job
            verdict = _judge_values(search, job, given["values"])
        yield {
            "job": job.label, "kind": verdict.kind or "timed", "reason": verdict.reason, "value": verdict.value,
            "us": round(verdict.seconds * 1e6, 3), **dict(verdict.facts),
        }  # fmt: skip
    by_instance: dict[str, list[Job]] = {}
    for job in touched.values():
        by_instance.setdefault(job.key, []).append(job)
    for together in by_instance.values():
        search.settle(together[0].instance, together)
    for _, job, schedule in sorted(schedules, key=lambda s: s[0]):
        search.settle_schedule(job, schedule)
    if fault is not None:
        raise fault


def _proposal(line: str, number: int, jobs: Mapping[str, Job]) -> tuple[dict[str, Any], Job]:
    """A line's proposal, and the job that it is for."""
    try:
        given = parse_json(line)
    except ValueError as e:
        raise UserError(f"line {number}: not JSON: {e}", "one object a line, as docs/proposers.md shows") from e
    good = (
        isinstance(given, dict) and isinstance(given.get("job"), str) and ("values" in given) != ("schedule" in given)
    )
    if good and "values" in given:
        values = given["values"]
        good = isinstance(values, dict) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values.values()
        )
    if good and "schedule" in given:
        good = isinstance(given["schedule"], str)
    if not good:
        raise UserError(
            f"line {number}: not a proposal",
            'write {"job": ..., "values": {"KC": 256}} or {"job": ..., "schedule": "schedule linear on cpu:\\n ..."}',
        )
    if (job := jobs.get(given["job"])) is None:
        raise UserError(f"line {number}: there is no job {given['job']!r}", "`tcomp tune --ask` lists them")
    return dict(given), job


def _judge_values(search: Search, job: Job, values: Mapping[str, Any]) -> Verdict:
    """The verdict on values, which is kept among the job's trials."""
    study = storage.open_study(search.trials, job, search.machine.name, search.judge.basis, search.plan.seed)
    try:
        full = {**job.space.filled(values), **values}
        problem = job.space.problem(full)
    except TcError as e:
        problem = e.message
    if problem:
        return Verdict(None, 0.0, "where", problem)
    search.kernels.begin(study, job)
    storage.enqueue_first(study, job.space, full)
    trial, proposed = storage.ask(study, job.space)
    verdict = _checked(search, job, search.judge.evaluate(job, proposed, PATIENCE), job.space.chosen(proposed), None)
    search.kernels.close_trial(study, trial, verdict)
    return verdict


def _judge_schedule(search: Search, job: Job, text: str) -> tuple[Verdict, Schedule | None]:
    """The verdict on a whole schedule for the job's op, and the schedule. It is timed as a whole op."""
    import optuna

    schedule = None
    try:
        schedule = schedule_from(text, job.instance.op, search.module, search.machine)
        verdict = search.judge.evaluate(job, {}, PATIENCE, schedule)
        verdict = _checked(search, job, verdict, {}, schedule)
    except TcError as e:
        verdict = Verdict(None, 0.0, "illegal", e.message)
    attributes = {
        "kind": verdict.kind or "timed",
        "reason": verdict.reason,
        "schedule": text,
        "seconds": verdict.seconds,
    }
    done = verdict.value is not None and not verdict.kind
    proposed_study(search, job).add_trial(
        optuna.trial.create_trial(
            value=verdict.value if done else None,
            state=optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.FAIL,
            user_attrs={**attributes, **dict(verdict.facts)},
        )
    )
    return verdict, schedule


def _checked(
    search: Search, job: Job, verdict: Verdict, chosen: Mapping[str, int | float], schedule: Schedule | None
) -> Verdict:
    """The verdict after the judge's last gate: with no GPU, the virtual one."""
    if verdict.kind:
        return verdict
    problem = search.judge.check(job.instance, chosen, schedule)
    return Verdict(None, verdict.seconds, "wrong", problem) if problem else verdict


def proposed_study(search: Search, job: Job) -> optuna.Study:
    """Where whole schedules are kept: a study beside the job's own."""
    import optuna

    name = f"{search.machine.name} {search.judge.basis} | {job.label} | {job.op_hash} | proposed schedules"
    with reading():
        study = optuna.create_study(storage=search.trials, study_name=name, load_if_exists=True)
    checked(study)
    study.set_user_attr("job", f"{job.label}, proposed schedules")
    study.set_user_attr("default_seconds", job.seconds)
    study.set_user_attr("basis", search.judge.basis)
    return study
