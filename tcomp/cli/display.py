"""What a terminal shows while something takes its time: rich's spinner and bars, which a thread of their own draws.

They are an extra. Output that is no terminal has none of them, nor has a process that may not start one thread more (a
container's limit of tasks, say): a command that works on one thread then does so without them.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def displays(console: Console) -> bool:
    """Is there a terminal, and a thread to draw on it?"""
    if not console.is_terminal:
        return False
    trial = threading.Thread(target=lambda: None)
    try:
        trial.start()
    except RuntimeError:
        return False
    trial.join()
    return True


def spinner(console: Console, text: str) -> AbstractContextManager[object]:
    """A text that stands on the terminal until the block ends."""
    return console.status(text) if displays(console) else nullcontext()


def bars(in_bytes: bool = False) -> Progress:
    """Bars on standard error, of numbers or of bytes, for as long as the block lasts; `disable` says that none show."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not displays(console))
