"""What a search asks of whoever decides which candidate is faster: by running them (`judge_measured`), or by a static
model (`judge_predicted`). The search itself knows neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tcomp.autotune.instances import Instance
from tcomp.autotune.space import Space, Values
from tcomp.dsl.ast import Schedule

Chosen = Mapping[str, int | float]


@dataclass(frozen=True)
class Choice:
    """What lowering takes for one op: values of the parameters, and a schedule in place of the model's own."""

    values: Chosen = field(default_factory=dict)
    schedule: Schedule | None = None

    def __bool__(self) -> bool:
        """Whether it differs from the schedule's own values."""
        return bool(self.values) or self.schedule is not None


@dataclass(frozen=True)
class Job:
    """One kernel of one instance to be tuned. `kernel` is its position among the instance's launches, `schedule_hash`
    and `op_hash` tell it from a changed one; `seconds` is its time with the schedule's own values."""

    instance: Instance
    key: str
    space: Space
    kernel: int
    op_hash: str
    schedule_hash: str
    seconds: float

    @property
    def weight(self) -> float:
        """Seconds of a step that this kernel takes."""
        return self.instance.count * self.seconds

    @property
    def label(self) -> str:
        return f"{self.key}" + (f" [{self.space.kernel}]" if self.space.kernel else "")


@dataclass(frozen=True)
class Verdict:
    """What became of a candidate: `value` is its time over the default's, None where it does not count; then `kind`
    (where | illegal | wrong | crash | timeout | slow | spill) and `reason` say why. `facts` are kept with the trial."""

    value: float | None
    seconds: float = 0.0
    kind: str = ""
    reason: str = ""
    facts: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Two whole ops compared: seconds of the default and of the choice, the half width of the ratio's confidence
    interval, and whether the choice beats the incumbent beyond noise. `problem`: why the choice was refused."""

    default_seconds: float
    seconds: float
    margin: float
    better: bool
    problem: str = ""


class Judge(Protocol):
    """What candidates are worth: times them, or predicts their times."""

    @property
    def basis(self) -> str:
        """measured | predicted"""
        ...

    def weigh(self, instance: Instance) -> list[float]:
        """A quick guess of each kernel's time with the schedule's own values, in any one unit: what shares of a budget
        go by."""
        ...

    def start(self, instance: Instance, patience: float = math.inf) -> list[float]:
        """Seconds of each of the instance's kernels with the schedule's own values. UserError when it fails,
        TimeoutError where it would take more than about `patience` seconds."""
        ...

    def predict(self, job: Job, values: Values) -> float | None:
        """A quick estimate to put candidates in order by (any unit); None where the candidate is illegal."""
        ...

    def evaluate(self, job: Job, values: Values, patience: float, schedule: Schedule | None = None) -> Verdict:
        """Build, check and judge one candidate within about `patience` seconds."""
        ...

    def best(self, job: Job, incumbent: Values, candidates: Sequence[Values], patience: float = math.inf) -> Values:
        """The winner of a closer comparison of about `patience` seconds; the incumbent unless another beats it beyond
        doubt."""
        ...

    def confirm(self, instance: Instance, incumbent: Choice, choice: Choice, patience: float = math.inf) -> Outcome:
        """The whole op with the choice against the incumbent, correctness included, in about `patience` seconds."""
        ...

    def wrong(self, instance: Instance, choice: Choice, patience: float = math.inf) -> str:
        """What is wrong with a whole op by a choice; empty when nothing is."""
        ...

    def check(self, instance: Instance, chosen: Chosen, schedule: Schedule | None = None) -> str:
        """What is wrong with a candidate beyond what `evaluate` looks at; empty when nothing is."""
        ...

    def close(self) -> None: ...
