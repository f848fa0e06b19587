"""Predicted and measured in one lockfile: a prediction is a proposal to who measures, and overrules no measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcomp.autotune.contest import Ratio, beats_by_prediction
from tcomp.autotune.instances import Instance, facts_of, schedule_of
from tcomp.autotune.judge import Choice, Chosen, Job, Outcome, Verdict
from tcomp.autotune.lockfile import Entry, read_lock
from tcomp.autotune.plan import Plan, Summary, summary_lines
from tcomp.autotune.space import Values, spaces_of
from tcomp.dsl.ast import Schedule
from tcomp.machine.cpu import detect
from tests.autotune.support import SHAPE, gpt2, gpt2_instance, search_on


@dataclass
class Told:
    """A judge whose times, over the default's, are `times` by the value of BQ (1 for all others)."""

    basis: str
    times: dict[int, float]
    seen: list[Values] = field(default_factory=list)

    def time(self, values: Chosen) -> float:
        return next((self.times.get(int(v), 1.0) for k, v in values.items() if k.endswith("BQ")), 1.0)

    def wins(self, ours: float, theirs: float) -> bool:
        share = ours / theirs
        return beats_by_prediction(ours, theirs) if self.basis == "predicted" else Ratio(share, share, share).beats

    def weigh(self, instance: Instance) -> list[float]:
        return [1.0] * 8

    def start(self, instance: Instance, patience: float = 0.0) -> list[float]:
        return [1e-3] * 8

    def predict(self, job: Job, values: Values) -> float | None:
        return 0.0

    def evaluate(self, job: Job, values: Values, patience: float, schedule: Schedule | None = None) -> Verdict:
        self.seen.append(values)
        return Verdict(self.time(values), 1e-3 * self.time(values))

    def best(self, job: Job, incumbent: Values, candidates: Sequence[Values], patience: float = 0.0) -> Values:
        found = min(candidates, key=self.time)
        return found if self.wins(self.time(found), self.time(incumbent)) else incumbent

    def confirm(self, instance: Instance, incumbent: Choice, choice: Choice, patience: float = 0.0) -> Outcome:
        old, new = self.time(incumbent.values), self.time(choice.values)
        better = choice != incumbent and self.wins(new, old)
        return Outcome(1e-3, 1e-3 * (new if better else old), 0.0, better)

    def check(self, instance: Instance, chosen: Chosen, schedule: Schedule | None = None) -> str:
        return ""

    def close(self) -> None:
        pass


def searched(folder: Path, judge: Told, lock: str = "") -> tuple[str, Entry]:
    """A search in the folder, where the lockfile with that text lies; what is in it then."""
    folder.mkdir()
    search = search_on(folder, Plan(SHAPE, trials=30, ops=("attention",)), judge=judge)
    if lock:
        search.lock.write_text(lock)
    search.run()
    (entry,) = read_lock(search.lock).entries.values()
    return search.lock.read_text(), entry


def others() -> tuple[int, int]:
    """Two choices of BQ that are not its default."""
    module = gpt2()
    instance = gpt2_instance("attention", module)
    schedule = schedule_of(instance.op, module, instance.dims, detect(), 1)
    (space,) = spaces_of(schedule, facts_of(instance, detect(), 1))
    (bq,) = [p for p in space.parameters if p.name == "BQ"]
    return tuple(int(c) for c in bq.choices if c != space.default["BQ"])[:2]  # type: ignore[return-value]


def test_to_who_measures_a_prediction_is_a_proposal(tmp_path: Path) -> None:
    first, second = others()
    text, entry = searched(tmp_path / "predicted", Told("predicted", {first: 0.5}))
    assert (entry.basis, entry.values["BQ"]) == ("predicted", first)
    loses = Told("measured", {first: 1.3, second: 0.7})
    _, entry = searched(tmp_path / "loses", loses, text)
    assert loses.seen[0]["BQ"] == first, "it is tried first"
    assert (entry.basis, entry.values["BQ"]) == ("measured", second)
    _, entry = searched(tmp_path / "holds", Told("measured", {first: 0.9}), text)
    assert (entry.basis, entry.values["BQ"]) == ("measured", first) and abs(entry.gain - 0.1) < 1e-9
    _, entry = searched(tmp_path / "ties", Told("measured", {}), text)
    assert (entry.basis, entry.values) == ("measured", {})


def test_no_prediction_overrules_a_measurement(tmp_path: Path) -> None:
    first, second = others()
    text, _ = searched(tmp_path / "measured", Told("measured", {second: 0.7}))
    assert searched(tmp_path / "predicted", Told("predicted", {first: 0.1}), text)[0] == text


def test_the_first_look_at_the_ops_ends_with_the_budget(tmp_path: Path) -> None:
    """A static model compiles them all for it."""
    looked: list[str] = []

    @dataclass
    class Slow(Told):
        def weigh(self, instance: Instance) -> list[float]:
            looked.append(instance.key)
            time.sleep(0.3)
            return super().weigh(instance)

    search = search_on(tmp_path, Plan(SHAPE, budget=0.5), judge=Slow("predicted", {}))
    followed: list[str] = []
    search.follow = lambda all: (followed.append(i.key) or i for i in all)
    summary = search.run()
    assert 0 < len(looked) <= 3 < len(followed)
    assert sum(text.endswith(": the budget is spent") for text in summary.skipped) >= len(followed) - len(looked)


def test_a_summary_of_what_takes_microseconds_shows_them() -> None:
    (line,) = summary_lines(Summary(before=9.01e-6, after=7.34e-6), "predicted")
    assert line == "tuned ops of a step, predicted: 9.01 us -> 7.34 us, 18.5% less"
