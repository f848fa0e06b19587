"""The final of a search on a CPU: the best candidates of all kernels in turns, each where it runs, in whole steps.

One run of a step compares a candidate of every kernel at once, so that all finals together take a few dozen steps.
What wins is run once more, all of it together, against what a step has now: that ratio is what tuning gives. Rules of
winning are those of `contest`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.child import Child, Failure
from tcomp.autotune.contest import Ratio, ratio, winner
from tcomp.autotune.instances import Instance
from tcomp.autotune.judge import Choice, Job
from tcomp.autotune.space import Values
from tcomp.autotune.step_bench import Choices, Part, StepSubject, Turn, TurnsRequest, serve_steps
from tcomp.dsl.ast import Module
from tcomp.errors import UserError
from tcomp.model.request import StepRequest

CHECKING = 15.0
"""Seconds for looking once more whether the winners are right."""
SHARE, MOST = 0.4, 600.0
"""The greatest part of a budget for finals in steps, and seconds without a budget. Where they do not suffice, finals
are of each op alone."""
FIRST_LOOK = 3


@dataclass(frozen=True)
class Effort:
    """Candidates per kernel and timed rounds of a final."""

    candidates: int
    rounds: int

    def seconds(self, step: float, opening: float) -> float:
        """For the final and for the run of the winners, each beside the schedules' own values and after a round that
        does not count, when building and opening a step takes `opening`. (What a step has from earlier runs, if
        anything, comes on top.)"""
        return CHECKING + (self.candidates + 1 + 2) * (opening + (1 + self.rounds) * step)


EFFORTS = (Effort(3, 9), Effort(2, 9), Effort(2, 7), Effort(1, 7), Effort(1, 5))


@dataclass(frozen=True)
class Winners:
    """What the final decided: a choice for each instance, what it has now where nothing is better; and, where any is
    new, the turns of the schedules' own values and those of all choices together."""

    choices: dict[str, Choice]
    own: Sequence[Turn] = ()
    chosen: Sequence[Turn] = ()

    @property
    def step(self) -> Ratio:
        """The part of a step's time by the schedules' own values that one by all choices takes."""
        return ratio([t.whole for t in self.chosen], [t.whole for t in self.own])


class StepFinal:
    """Times whole steps in a process of its own. `seconds` is what one takes by the schedules' own values, `effort`
    what the time allows; no effort: not at all, and `reason` says why."""

    def __init__(
        self,
        module: Module,
        step: StepRequest,
        backend: CpuBackend,
        alone: Path | None = None,
        target: Callable[..., None] = serve_steps,
    ) -> None:
        self._child = Child(StepSubject(module, step, backend), target)
        self.alone = alone
        self.seconds = self.opening = 0.0
        self.effort: Effort | None = None
        self.reason = ""

    def prepare(self, budget: float) -> None:
        """Run a few steps, and decide on the effort. The process ends: its memory is not needed until the final."""
        began = time.monotonic()
        try:
            seconds = min(SHARE * budget, MOST)
            found = self._turns([{}], FIRST_LOOK, seconds, seconds)
        except UserError as e:
            self.reason = str(e).splitlines()[0]
            return
        finally:
            self._child.close()
        if isinstance(found, Failure):
            self.reason = f"{found.kind}: {found.reason}"
            return
        self.seconds = statistics.median(t.whole for t in found[0])
        self.opening = max(0.0, time.monotonic() - began - (1 + len(found[0])) * self.seconds)
        left = min(SHARE * budget - (time.monotonic() - began), MOST)
        self.effort = next((e for e in EFFORTS if e.seconds(self.seconds, self.opening) <= left), None)
        if self.effort is None:
            needed = EFFORTS[-1].seconds(self.seconds, self.opening)
            self.reason = f"one within steps takes {needed:.0f} s, more than {SHARE:.0%} of the budget allow"

    @property
    def reserved(self) -> float:
        """Seconds that the final is expected to take."""
        return self.effort.seconds(self.seconds, self.opening) if self.effort else 0.0

    def decide(
        self,
        jobs: Sequence[Job],
        incumbents: Choices,
        finalists: Callable[[Job], list[Values]],
        right: Callable[[Instance, Choice], str],
        patience: float,
    ) -> Winners | Failure:
        """The winners among the jobs' finalists and what a step has now. `right` says what is wrong with a choice."""
        assert self.effort is not None
        patience = min(patience, 2 * MOST)
        end = time.monotonic() + patience
        ranked = {j.label: finalists(j)[: self.effort.candidates] for j in jobs}
        sets: list[Choices] = [incumbents]
        for place in range(self.effort.candidates):
            values = {j.label: ranked[j.label][place] for j in jobs if len(ranked[j.label]) > place}
            if values:
                sets.append(_with(incumbents, jobs, values))
        first = self._turns(sets, self.effort.rounds, patience * len(sets) / (len(sets) + 2), patience)
        if isinstance(first, Failure):
            return first
        best: dict[str, Values] = {}
        for j in jobs:
            part, mine = (j.instance.key, j.kernel), ranked[j.label]
            at = winner([_seconds(t, part) for t in first[: 1 + len(mine)]])
            if at:
                best[j.label] = mine[at - 1]
        choices = dict(incumbents)
        for key, choice in _with(incumbents, jobs, best).items():
            instance = next(j.instance for j in jobs if j.instance.key == key)
            if choice != incumbents.get(key, Choice()) and not right(instance, choice):
                choices[key] = choice
        while True:
            changed = [k for k, c in choices.items() if c != incumbents.get(k, Choice())]
            if not changed:
                return Winners(choices)
            known = [incumbents] if any(incumbents.values()) else []
            left = end - time.monotonic()
            again = self._turns([{}, choices, *known], self.effort.rounds, left, left)
            if isinstance(again, Failure):
                return again
            lost = [k for k in changed if not _instance_ratio(again[1], again[2 if known else 0], k).beats]
            if not lost:
                return Winners(choices, again[0], again[1])
            choices |= {k: incumbents.get(k, Choice()) for k in lost}

    def _turns(
        self, sets: Sequence[Choices], rounds: int, seconds: float, patience: float
    ) -> list[list[Turn]] | Failure:
        """The sets in turns, as many rounds as `seconds` allow beside opening the step, the round that does not count
        and the last one; a Failure where `patience` ends before."""
        for_rounds = max(0.0, seconds - len(sets) * (self.opening + 2 * self.seconds))
        request = TurnsRequest(tuple(sets), rounds, for_rounds, self.alone)
        answer: Any = self._child.ask(request, max(1.0, patience))
        return answer if isinstance(answer, Failure) else list(answer)

    def close(self) -> None:
        self._child.close()


def _with(incumbents: Choices, jobs: Sequence[Job], values: dict[str, Values]) -> dict[str, Choice]:
    """The incumbents with the jobs' values in place of their own."""
    out = dict(incumbents)
    for j in jobs:
        if j.label in values:
            now = out.get(j.instance.key, Choice())
            out[j.instance.key] = Choice({**now.values, **j.space.chosen(values[j.label])})
    return out


def _seconds(turns: Sequence[Turn], part: Part) -> list[float]:
    return [t.kernels[part] for t in turns]


def instance_seconds(turns: Sequence[Turn], key: str) -> list[float]:
    """Seconds of all kernels of an instance in a step, by turn."""
    return [sum(s for (k, _), s in t.kernels.items() if k == key) for t in turns]


def _instance_ratio(ours: Sequence[Turn], theirs: Sequence[Turn], key: str) -> Ratio:
    return ratio(instance_seconds(ours, key), instance_seconds(theirs, key))
