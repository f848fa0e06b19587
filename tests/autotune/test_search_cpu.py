"""Searches on this computer: only right candidates win, nothing done is lost, the budget holds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tcomp.autotune import storage
from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.bench import Bench
from tcomp.autotune.child import Failure, Rejected
from tcomp.autotune.contest import ratio
from tcomp.autotune.instances import facts_of, schedule_of
from tcomp.autotune.judge import Choice, Job, Outcome
from tcomp.autotune.judge_measured import MeasuredJudge
from tcomp.autotune.kept_trials import values_of
from tcomp.autotune.lockfile import read_lock
from tcomp.autotune.plan import Plan, lockfile_line
from tcomp.autotune.space import Values, spaces_of
from tcomp.dsl.errors import TcError
from tcomp.machine.cpu import detect
from tests.autotune.support import SHAPE, gpt2, gpt2_instance, planted, scale, search_on, sluggish, tune


def trials(folder: Path) -> list[tuple[str, str, Values | None]]:
    """(kind, reason, values) of all trials."""
    import optuna

    kept = storage.open_storage(folder / "trials.sqlite3")
    return [
        (t.user_attrs.get("kind", ""), t.user_attrs.get("reason", ""), values_of(t))
        for name in optuna.get_all_study_names(kept)
        for t in optuna.load_study(study_name=name, storage=kept).trials
        if t.state.is_finished()
    ]


@pytest.mark.parametrize(
    "op", ["linear", "attention.backward", pytest.param("linear_gelu.backward", marks=pytest.mark.slow)]
)
@settings(derandomize=True, max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000))
def test_any_point_of_a_schedule_s_space_gives_the_oracle_s_result(op: str, seed: int, tmp_path: Path) -> None:
    module = gpt2()
    instance = gpt2_instance(op, module)
    bench = Bench(module, instance.op, instance.dims, CpuBackend(detect(), 1, tmp_path), 0)
    schedule = schedule_of(instance.op, module, instance.dims, detect(), 1)
    for space in spaces_of(schedule, facts_of(instance, detect(), 1)):
        for values in list(space.points(seed))[:3]:
            try:
                bench.build(space.chosen(values)).close()  # raises Rejected where the result is off
            except TcError as e:
                assert "register" in e.message, "only a register tile that does not fit is illegal here"


@pytest.mark.slow
def test_planted_faults_never_win_and_are_explained(tmp_path: Path) -> None:
    search = search_on(tmp_path, Plan(SHAPE, trials=3, ops=("linear",)), planted, patience=5.0)
    instance = gpt2_instance("linear", search.module)
    schedule = schedule_of(instance.op, search.module, instance.dims, detect(), 1)
    (space,) = spaces_of(schedule, facts_of(instance, detect(), 1))
    search.first[instance.key] = [{**space.default, "MR": mr, "NV": 1} for mr in (6, 8, 12)]
    summary = search.run()
    found = {int(v["MR"]): (kind, reason) for kind, reason, v in trials(tmp_path) if v and kind not in ("", "default")}
    assert found[6][0] == "wrong" and "from the oracle" in found[6][1]
    assert found[8] == ("crash", "its process died of SIGSEGV")
    assert found[12] == ("timeout", "no answer within 5 s")
    assert all(summary.kinds[k] for k in ("crash", "wrong", "timeout"))
    for entry in read_lock(search.lock).entries.values():
        assert entry.values.get("MR", 4) not in (6, 8, 12)


@pytest.mark.parametrize(
    ("better", "said"),
    [(False, "1 entry written that keeps what there was"), (True, "1 entry with better values")],
)
def test_the_search_says_what_it_wrote(better: bool, said: str, tmp_path: Path) -> None:
    module, instance, space = scale()
    job = Job(instance, instance.key, space, 0, "a", "b", 2e-6)
    for line in (said, said if better else "its entries are as they were"):
        search = search_on(tmp_path, Plan(SHAPE), module=module)
        assert lockfile_line(search.summary, tmp_path / "none.lock").endswith(": not written")
        search.outcomes.record(instance, job, Choice(), Outcome(2e-6, 1e-6 if better else 2e-6, 0.0, better))
        assert lockfile_line(search.summary, search.lock) == f"lockfile {search.lock}: {line}"


@pytest.mark.slow
def test_a_second_search_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    tune(tmp_path, Plan(SHAPE, trials=4, ops=("attention",)))
    first = trials(tmp_path)
    assert len([t for t in first if t[0] != "repeated"]) == 5, "four and the default"
    tune(tmp_path, Plan(SHAPE, trials=4, ops=("attention",)))
    assert trials(tmp_path) == first
    tune(tmp_path, Plan(SHAPE, trials=7, ops=("attention",)))
    later = trials(tmp_path)
    assert later[: len(first)] == first
    points = [json.dumps(v, sort_keys=True) for k, _, v in later if k != "repeated"]
    assert len(points) == len(set(points)) == 8, "no point is timed twice"


@pytest.mark.slow
def test_the_budget_holds(tmp_path: Path) -> None:
    """Within one candidate, though there are hundreds and each takes most of a second to build (more beside others)."""
    search = search_on(tmp_path, Plan(SHAPE, budget=6.0, ops=("linear",)), sluggish)
    started = time.monotonic()
    search.run()
    assert time.monotonic() - started < 6.0 + 5.0  # (a candidate, on a machine that is busy)
    assert any(kind not in ("default", "cut") for kind, _, _ in trials(tmp_path))
    assert search.lock.exists()


def test_a_result_past_its_end_or_in_its_inputs_is_seen(tmp_path: Path) -> None:
    module = gpt2()
    instance = gpt2_instance("linear", module)
    bench = Bench(module, instance.op, instance.dims, CpuBackend(detect(), 1, tmp_path), 0)
    candidate = bench.build({})
    try:
        case = bench.case(bench.dims)
        guard = candidate.executor.array("guard.Y")
        run = candidate.executor.run

        def spoiling(slot: str, at: int) -> None:
            def spoilt(program: str) -> None:
                run(program)
                candidate.executor.array(slot).reshape(-1)[at] += 1

            candidate.executor.run = spoilt  # type: ignore[method-assign]

        for slot, at, words in (("guard.Y", 0, "past the end of Y"), ("W", 5, "input W"), ("Y", 7, "from the oracle")):
            spoiling(slot, at)
            with pytest.raises(Rejected, match=words):
                bench.check(candidate.executor, case, "")
        assert guard.size
    finally:
        candidate.close()


def test_a_ratio_s_interval_covers_noise() -> None:
    base = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.2, 0.85, 1.0, 1.0]
    same = ratio([b * f for b, f in zip(base, [0.97, 1.03] * 5, strict=True)], base)
    assert same.low < 1 < same.high
    faster = ratio([0.8 * b for b in base], base)
    assert faster.high < 0.9 and abs(faster.value - 0.8) < 1e-9


@pytest.mark.parametrize("left", [-5.0, 0.0, 3.0])
def test_what_a_comparison_may_take_is_what_is_left(left: float, tmp_path: Path) -> None:
    """Never less than a floor, and never the two minutes that a candidate has without a budget."""
    asked: list[tuple[float, float]] = []

    class Asked:
        def build(
            self, name: str, chosen: object, kernel: object, schedule: object, patience: float
        ) -> dict[str, float]:
            asked.append((0.0, patience))
            return {}

        def times(self, names: tuple[str, ...], rounds: int, seconds: float, alone: object, patience: float):  # type: ignore[no-untyped-def]
            asked.append((seconds, patience))
            return Failure("timeout", "")

        def drop(self, name: str) -> None: ...

        def close(self) -> None: ...

    module, instance, space = scale()
    job = Job(instance, instance.key, space, 0, "", "", 1e-3)
    judge = MeasuredJudge(module, CpuBackend(detect(), 1, tmp_path), 0)
    other = next(v for v in space.points(0) if v != space.default)
    for act in (
        lambda: judge.evaluate(job, other, left),
        lambda: judge.best(job, space.default, [other], max(1.0, left)),
        lambda: judge.confirm(instance, Choice(), Choice(space.chosen(other)), left),
    ):
        judge._evaluator, judge._instance, judge._kernel, judge._built = Asked(), instance, None, True  # type: ignore[assignment]
        act()
    assert len(asked) == 2 + 3 + 3 and all(0 <= seconds <= 4 and 1 <= p <= 4 for seconds, p in asked)
    with pytest.raises(TimeoutError):
        judge.start(instance, left)
