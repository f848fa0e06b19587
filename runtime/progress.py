"""Training progress: a live line on a terminal, now and then a plain line where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape


class Progress(Protocol):
    """What the training loop reports to; a context manager around the loop."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def start(self, steps: int, done: int, amount: int, unit: str) -> None:
        """A step does `amount` tokens, or other units."""
        ...

    def step(self, done: int, loss: float, lr: float, norm: float, seconds: float) -> None: ...

    def validation(self, done: int, loss: float) -> None: ...

    def warn(self, text: str) -> None: ...


def progress_for(console: Console) -> Progress:
    return LiveProgress(console) if console.is_terminal else PlainProgress()


class _Rate:
    """Seconds per step, smoothed; the first step after a start is left out (it touches memory first)."""

    def __init__(self, steps: int, done: int, amount: int) -> None:
        self.steps, self.first, self.amount = steps, done + 1, amount
        self.seconds = 0.0

    def add(self, done: int, seconds: float) -> None:
        if done <= self.first + 1:
            self.seconds = seconds
        else:
            usual = min(seconds, 4 * self.seconds)  # a laptop that slept says nothing about the steps to come
            self.seconds += (usual - self.seconds) * 0.05

    @property
    def a_second(self) -> float:
        return self.amount / self.seconds if self.seconds else 0.0

    def left(self, done: int) -> str:
        s = int((self.steps - done) * self.seconds + 0.5)
        return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}" if s >= 3600 else f"{s // 60}:{s % 60:02d}"


class PlainProgress:
    """Lines on standard output, about twenty in all and never more than ten seconds apart."""

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()

    def start(self, steps: int, done: int, amount: int, unit: str) -> None:
        self.rate, self.unit = _Rate(steps, done, amount), unit
        self.every, self.printed = max(1, steps // 20), 0.0

    def step(self, done: int, loss: float, lr: float, norm: float, seconds: float) -> None:
        self.rate.add(done, seconds)
        now = time.monotonic()
        regular = done in (self.rate.first, self.rate.steps) or done % self.every == 0
        if regular or now - self.printed > 10:
            self.printed = now
            print(
                f"step {done}/{self.rate.steps}  loss {loss:.4f}  lr {lr:.2e}  norm {norm:.2f}  "
                f"{self.rate.a_second:,.0f} {self.unit}/s  {self.rate.left(done)} left",
                flush=True,
            )

    def validation(self, done: int, loss: float) -> None:
        print(f"step {done}/{self.rate.steps}  validation loss {loss:.4f}", flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)


class LiveProgress:
    """One line that is redrawn in place, at most five times a second."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress as Bar, TextColumn

        self.console = console
        self.bar = Bar(
            TextColumn("step {task.completed:>4.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
        )

    def __enter__(self) -> LiveProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.refresh()
        self.bar.stop()

    def start(self, steps: int, done: int, amount: int, unit: str) -> None:
        self.rate, self.unit = _Rate(steps, done, amount), unit
        self.task = self.bar.add_task("starting", total=steps, completed=done)
        self.best, self.drawn = "", 0.0
        self.bar.refresh()

    def step(self, done: int, loss: float, lr: float, norm: float, seconds: float) -> None:
        self.rate.add(done, seconds)
        now = time.monotonic()
        text = (
            f"loss [bold]{loss:.4f}[/]  {self.best}lr {lr:.1e}  norm {norm:.2f}  "
            f"[cyan]{self.rate.a_second:,.0f}[/] {self.unit}/s  [green]{self.rate.left(done)}[/] left"
        )
        self.bar.update(self.task, completed=done, description=text)
        if now - self.drawn > 0.2:
            self.drawn = now
            self.bar.refresh()

    def validation(self, done: int, loss: float) -> None:
        self.best = f"validation {loss:.4f}  "

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
