"""Trials kept as they finish: one Optuna study per tuned kernel in one SQLite file.

A study is named by its instance, kernel, and the hashes of op and schedule. Its choices are not part of that: when the
`tune` lines change, the trials that are points of the new space are taken over. A trial that a killed process left
running is closed as failed when the study is next opened.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcomp.autotune.guard import guarded
from tcomp.autotune.judge import Job
from tcomp.autotune.kept_trials import Damage, checked, load_study, reading, study_names, values_of
from tcomp.autotune.space import Parameter, Space, Values, valid
from tcomp.dsl.dims import Number
from tcomp.errors import UserError

if TYPE_CHECKING:
    import optuna

UNMARKED = 60.0
"""Seconds after which a running trial that no process has put its mark on is taken for abandoned."""
STARTUP = 6
"""Random trials before the sampler learns; the cost model's first batch counts among them."""


def open_storage(path: Path) -> optuna.storages.BaseStorage:
    """The storage file, made if need be. Several processes may have it open. UserError when it is no such file."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with guarded(path):
            return optuna.storages.RDBStorage(
                f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": 60}}
            )
    except Exception as e:  # SQLAlchemy's own classes, one per way to fail
        raise _unusable(path, e) from e


@contextmanager
def failures_of(path: Path) -> Iterator[None]:
    """What the storage file's own failures become: one UserError. Trials that were stored before are still there."""
    import optuna
    import sqlalchemy

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, UnicodeDecodeError, Damage) as e:
        raise _unusable(path, e) from e


def _unusable(path: Path, e: Exception) -> UserError:
    first: BaseException = e
    while isinstance(first.__cause__, Exception) and not isinstance(first, Damage):  # Optuna's says less than SQLite's
        first = first.__cause__
    reason = (str(first).strip() or type(first).__name__).splitlines()[0]
    damaged = isinstance(first, Damage) or (
        path.is_file() and any(word in reason for word in ("not a database", "malformed", "decode", "no such"))
    )
    if damaged:
        return UserError(
            f"{path}: the tuning results are damaged: {reason}", f"remove the file to start over: rm {path}"
        )
    return UserError(
        f"{path}: the tuning results cannot be used: {reason}", "make room there, or name another --storage"
    )


def study_name(job: Job, machine: str, basis: str) -> str:
    """`h100 predicted | linear Y: K=768 M=256 N=2304 [dX] | op hash | schedule hash | space hash`"""
    digest = hashlib.sha256(repr([(p.name, p.choices, p.places) for p in job.space.parameters]).encode()).hexdigest()[
        :8
    ]
    return f"{_stem(job, machine, basis)} | {digest}"


def _stem(job: Job, machine: str, basis: str) -> str:
    return f"{machine} {basis} | {job.label} | {job.op_hash} | {job.schedule_hash}"


def open_study(storage: optuna.storages.BaseStorage, job: Job, machine: str, basis: str, seed: int) -> optuna.Study:
    """The job's study, with earlier trials of the same kernel under other choices taken over."""
    import optuna

    name = study_name(job, machine, basis)
    names = study_names(storage)
    sampler = _sampler(seed)
    with reading():
        made = optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True)
    study = checked(made)
    if name not in names:
        study.set_user_attr("job", job.label)
        study.set_user_attr("default_seconds", job.seconds)
        study.set_user_attr("count", job.instance.count)
        study.set_user_attr("basis", basis)
        for other in names:
            if other.startswith(_stem(job, machine, basis) + " | "):
                _take_over(load_study(storage, other, sampler=sampler), study, job.space)
    _close_orphans(study)
    study.sampler = _sampler(seed + len(study.get_trials(deepcopy=False)))
    return study


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=True, constraints_func=_violation
        )


def _violation(trial: optuna.trial.FrozenTrial) -> tuple[float]:
    """Above 0 for a candidate that could not be built."""
    return (float(trial.user_attrs.get("violation", 0.0)),)


def ask(study: optuna.Study, space: Space) -> tuple[optuna.Trial, Values]:
    """A new trial and the values it proposes. The trial is marked as this process's. One process asks at a time: SQLite
    would give two of them the same waiting trial."""
    path = _file_of(study)
    with guarded(path) if path is not None else nullcontext():
        trial = study.ask(dict(distribution_of(p) for p in space.parameters))
        trial.set_user_attr("process", _this_process())
    values = decoded_point(space, trial.params)
    trial.set_user_attr("values", json.dumps(values))
    return trial, values


def _file_of(study: optuna.Study) -> Path | None:
    """The study's SQLite file; None where it is in memory."""
    url = str(getattr(getattr(study._storage, "_backend", None), "url", ""))
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def enqueue(study: optuna.Study, space: Space, values: Mapping[str, Number]) -> None:
    """Make the values the next trial's, unless they have been tried or wait already."""
    study.enqueue_trial(encoded_point(space, values), skip_if_exists=True)


def enqueue_first(study: optuna.Study, space: Space, values: Mapping[str, Number]) -> None:
    """Make the values the next trial's before all that wait, even if they were tried before."""
    import optuna

    for t in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        study.tell(t.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    study.enqueue_trial(encoded_point(space, values))


def add_default(study: optuna.Study, space: Space, seconds: float) -> None:
    """The schedule's own values as a trial of its own: by definition 1."""
    import optuna

    point = encoded_point(space, space.default)
    trial = optuna.trial.create_trial(
        params=point,
        distributions=dict(distribution_of(p) for p in space.parameters),
        value=1.0,
        user_attrs={"values": json.dumps(space.default), "seconds": seconds, "kind": "default"},
    )
    study.add_trial(trial)


def distribution_of(p: Parameter) -> tuple[str, optuna.distributions.BaseDistribution]:
    """A parameter's name and distribution in the study: exponents for powers of two, a stepped range for an arithmetic
    series, else categories. Where the choices depend on other parameters, the place among those allowed: so every
    draw is a point, and what was learnt of a place holds whatever the values above are."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if p.needs:
        return f"place of {p.name}", IntDistribution(0, p.places - 1)
    c = p.choices
    if len(c) >= 3 and all(isinstance(v, int) and v > 0 for v in c):
        numbers = [int(v) for v in c]
        if all(v & (v - 1) == 0 for v in numbers) and numbers[-1] == numbers[0] << (len(numbers) - 1):
            return f"log2 {p.name}", IntDistribution(numbers[0].bit_length() - 1, numbers[-1].bit_length() - 1)
        step = numbers[1] - numbers[0]
        if all(b - a == step for a, b in itertools.pairwise(numbers)):
            return p.name, IntDistribution(numbers[0], numbers[-1], step=step)
    return p.name, CategoricalDistribution(c)


def decoded(p: Parameter, stored: Any) -> Number:
    return 1 << int(stored) if distribution_of(p)[0].startswith("log2 ") else stored


def decoded_point(space: Space, stored: Mapping[str, Any]) -> Values:
    """The study's parameters as values. A place beyond those allowed is the last."""
    values: Values = {}
    for p in space.parameters:
        given = stored[distribution_of(p)[0]]
        if p.needs:
            allowed = space.allowed(p, values)
            values[p.name] = allowed[min(int(given), len(allowed) - 1)]
        else:
            values[p.name] = decoded(p, given)
    return values


def encoded_point(space: Space, values: Mapping[str, Number]) -> dict[str, Any]:
    """Values as the study's parameters."""
    point: dict[str, Any] = {}
    for p in space.parameters:
        label, _ = distribution_of(p)
        v = values[p.name]
        if p.needs:
            point[label] = space.allowed(p, values).index(v)
            continue
        point[label] = int(v).bit_length() - 1 if label.startswith("log2 ") else v
    return point


def _take_over(old: optuna.Study, new: optuna.Study, space: Space) -> None:
    import optuna

    distributions = dict(distribution_of(p) for p in space.parameters)
    known = {t.user_attrs.get("values") for t in new.get_trials(deepcopy=False)}
    for t in old.get_trials(deepcopy=False):
        values = values_of(t)
        if t.user_attrs.get("values") in known:
            continue
        if not t.state.is_finished() or values is None or set(values) != {p.name for p in space.parameters}:
            continue
        if not valid(space, values) or any(values[p.name] not in p.choices for p in space.parameters):
            continue
        attributes = {k: v for k, v in t.user_attrs.items() if k != "process"}
        new.add_trial(
            optuna.trial.create_trial(
                state=t.state,
                value=t.value if t.state == optuna.trial.TrialState.COMPLETE else None,
                params=encoded_point(space, values),
                distributions=distributions,
                user_attrs=attributes,
                intermediate_values=t.intermediate_values,
            )
        )


def _close_orphans(study: optuna.Study) -> None:
    """Trials of processes that are no longer there."""
    import optuna

    running = (optuna.trial.TrialState.RUNNING,)
    for t in study.get_trials(deepcopy=False, states=running):
        mark, began = t.user_attrs.get("process"), t.datetime_start
        age = (datetime.datetime.now() - began).total_seconds() if began else UNMARKED
        if not _alive(mark) and (mark or age >= UNMARKED):
            study._storage.set_trial_user_attr(t._trial_id, "kind", "killed")
            study._storage.set_trial_user_attr(t._trial_id, "reason", "its tuning process was killed")
            study.tell(t.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(mark: str | None) -> bool:
    if not mark:
        return False
    host, pid, started = mark.rsplit(" ", 2)
    return host != socket.gethostname() or (bool(started) and _started(int(pid)) == started)
