"""What a search is asked for, and what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcomp.autotune.contest import Ratio
from tcomp.autotune.lockfile import Entry, Lock
from tcomp.dsl.hints import count
from tcomp.model.request import StepRequest


@dataclass(frozen=True)
class Plan:
    """What to tune and how long. `budget` in seconds for everything, `spent` of which are gone before the search
    begins; `trials` per kernel, those of earlier runs included. `until` stops a kernel when the last eight trials
    gained less than this share. `known` is a lockfile whose values are tried first: one that came with the model."""

    step: StepRequest
    budget: float | None = None
    trials: int | None = None
    ops: tuple[str, ...] = ()
    seed: int = 0
    until: float | None = None
    spent: float = 0.0
    known: Lock | None = None


@dataclass
class Summary:
    """What a search did. `kinds` counts the trials by outcome."""

    tuned: dict[str, Entry] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    entered: list[str] = field(default_factory=list)
    """those of `kept` whose entry in the lockfile is new or renewed, with the values there were before"""
    skipped: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0
    """seconds of a step's tuned ops, with the schedules' own values and with the choices"""
    step_seconds: float = 0.0
    step: Ratio | None = None
    """a whole step by the schedules' own values, and the part of that which one with all choices takes"""


def summary_lines(summary: Summary, basis: str) -> Sequence[str]:
    """The end of a run, for people."""
    lines = []
    if summary.kinds:
        counts = ", ".join(f"{n} {k}" for k, n in sorted(summary.kinds.items()) if n)
        lines.append(f"trials: {counts}")
    if summary.before and not summary.step_seconds:
        unit, scale = ("ms", 1e3) if summary.before >= 1e-3 else ("us", 1e6)
        before, after = f"{summary.before * scale:.2f} {unit}", f"{summary.after * scale:.2f} {unit}"
        lines.append(
            f"tuned ops of a step, {basis}: {before} -> {after}, {1 - summary.after / summary.before:.1%} less"
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


def lockfile_line(summary: Summary, path: Path) -> str:
    """What the search wrote into its lockfile."""
    if not path.exists():
        return f"lockfile {path}: not written"
    written = [f"{count(len(summary.tuned), 'entry', 'entries')} with better values"] if summary.tuned else []
    if n := len(summary.entered):
        written.append(f"{count(n, 'entry', 'entries')} written that {'keeps' if n == 1 else 'keep'} what there was")
    return f"lockfile {path}: {', '.join(written) or 'its entries are as they were'}"
