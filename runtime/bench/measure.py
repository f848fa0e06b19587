"""Programs measured against each other: cold and warm starts, agreeing losses, then turns of steps.

Every program is first started with empty caches, then again with full ones: each start is timed to its first finished
step. Then the programs take turns; while one runs, the others are stopped (SIGSTOP) and take no processor time.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tcomp.errors import UserError
from tcomp.runtime.bench.noise import Noise, processor_time
from tcomp.runtime.bench.own_program import label
from tcomp.runtime.bench.running import Running
from tcomp.runtime.bench.workload import Workload

CHECKED = 3
"""Steps whose losses must agree before anything is timed: the first, and two more that also warm the program up."""
TOLERANCE = {"f32": 1e-4, "bf16": 1e-2}
"""Relative difference of a loss from tcomp's. bf16: PyTorch's autocast rounds at other places than a recipe does."""


@dataclass
class Measured:
    """What is known about one program. Times in seconds, memory in bytes.

    `cold`, `warm`: from the start of the process to the end of its first step. `phases` are those of the cold start.
    `memory`: (seconds since the start, resident bytes) of the warm start and the first steps. `clock` is "host", "gpu",
    or "" for times that say nothing.
    """

    program: str
    clock: str = "host"
    cold: float = 0.0
    warm: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_rss: int = 0
    device_bytes: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)
    noise: Noise = field(default_factory=Noise)

    @property
    def median(self) -> float:
        """The median step; 0 when there are no times."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def spread(self) -> float:
        """The interquartile range over the median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / self.median if self.seconds else 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median

    @property
    def compiling(self) -> float:
        """Seconds of the cold start that went into making code: tcomp's own phases, else what the first step took
        beyond an ordinary one."""
        if "compile" in self.phases:
            return self.phases["build"] + self.phases["compile"]
        eager = self.program.startswith("eager")
        return 0.0 if eager else max(0.0, self.phases.get("first step", 0.0) - self.median)


@dataclass
class Comparison:
    """A workload's programs, tcomp first, and tcomp's kernels and plan."""

    workload: Workload
    programs: list[Measured]
    profile: dict[str, Any]
    ceilings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def noise(self) -> Noise:
        """Of all turns together."""
        parts = [p.noise for p in self.programs]
        return Noise(sum(n.others for n in parts), sum(n.all for n in parts))


@dataclass(frozen=True)
class Contest:
    """Who is measured and how long: `rounds` turns of `steps` steps each (0: as many as make about 1280 tokens).

    `entry` is the module that a program's process runs. `tolerance` is that of the losses (None: the dtype's).
    """

    programs: Sequence[str]
    entry: str
    rounds: int
    steps: int = 0
    tolerance: float | None = None


def compare(
    workload: Workload,
    folder: Path,
    contest: Contest,
    note: Callable[[str], None],
    ceilings: Callable[[], list[dict[str, Any]]] = list,
) -> Comparison:
    """Measure programs at a workload written to `folder`. `ceilings` is called while all programs are stopped.

    UserError where the losses of a program differ from the first one's by more than the tolerance.
    """
    programs, entry = contest.programs, contest.entry
    steps = contest.steps or max(1, 1280 // workload.tokens)
    tolerance = TOLERANCE[workload.dtype] if contest.tolerance is None else contest.tolerance
    results = [Measured(label(name)) for name in programs]
    with ExitStack() as stack:
        place = tempfile.TemporaryDirectory(prefix="tcomp-bench-", ignore_cleanup_errors=True)
        caches = Path(stack.enter_context(place))
        running: list[Running] = []
        for name, r in zip(programs, results, strict=True):
            start = partial(Running, name, workload, folder, caches / r.program, entry)
            running.append(_start(r, start, stack, note))
            check_losses(results[0], r, tolerance)
            running[-1].pause()
        found = ceilings()
        for turn in range(contest.rounds):
            shift = turn % len(running)
            for i in [*range(shift, len(running)), *range(shift)]:
                _turn(running[i], results[i], steps)
            note(f"round {turn + 1} of {contest.rounds}: " + ", ".join(_progress(r) for r in results))
        for r in results[1:]:
            check_losses(results[0], r, tolerance)
        running[0].go_on()
        profile = running[0].profile() if programs[0] == "tcomp" else {}
        return Comparison(workload, results, profile, found)


def _start(r: Measured, start: partial[Running], stack: ExitStack, note: Callable[[str], None]) -> Running:
    """A cold start, then a warm one whose program stays and does its first steps."""
    note(f"{r.program}: cold start")
    with start() as cold:
        r.cold, r.phases, r.clock = cold.first["since_start"], cold.first["phases"], cold.first["clock"]
    note(f"{r.program}: first step after {r.cold:.2f} s; warm start")
    warm = stack.enter_context(start(watch=True))
    r.warm = warm.first["since_start"]
    note(f"{r.program}: first step after {r.warm:.2f} s")
    _take(r, warm.first, timed=False)
    _take(r, warm.run(CHECKED - 1), timed=False)
    warm.stop_watching()
    r.memory = list(warm.memory)
    return warm


def _turn(program: Running, r: Measured, steps: int) -> None:
    own, before = program.cpu_seconds(), processor_time()
    program.go_on()
    answer = program.run(steps)
    program.pause()
    r.noise.add(before, processor_time(), program.cpu_seconds() - own)
    _take(r, answer, timed=True)


def _take(r: Measured, answer: dict[str, Any], timed: bool) -> None:
    r.losses += answer["losses"]
    r.seconds += answer["seconds"] if timed else []
    r.peak_rss, r.device_bytes = answer["peak_rss"], answer["device_bytes"]


def _progress(r: Measured) -> str:
    return f"{r.program} {r.median * 1e3:.0f} ms" if r.seconds else f"{r.program} done"


def difference(reference: Measured, other: Measured) -> float:
    """The largest relative difference between the losses of the two; infinite where one is not finite."""
    pairs = list(zip(other.losses, reference.losses, strict=False))
    if not all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        return math.inf
    return max((abs(a - b) / max(abs(b), 1e-30) for a, b in pairs), default=0.0)


def check_losses(reference: Measured, other: Measured, tolerance: float) -> None:
    """UserError for programs that do not compute the same: nothing about them may be compared."""
    found = difference(reference, other)
    if found <= tolerance:
        return
    shown = [
        f"    step {i}: {reference.program} {a:.7g}, {other.program} {b:.7g}"
        for i, (a, b) in enumerate(zip(reference.losses[:6], other.losses, strict=False))
    ]
    raise UserError(
        f"the losses of '{other.program}' differ from those of '{reference.program}' by {found:.1e} relative, more "
        f"than {tolerance:g}: the programs do not compute the same, so they are not compared\n" + "\n".join(shown),
        "a fault in one of them, or a --tolerance too small for the dtype",
    )
