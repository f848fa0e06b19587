"""Locks between processes: around a file that they change in turns, and around measurements."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Only one process at a time is inside for files of the same folder, whatever caches the processes use: the
    folder is locked.

    Not to be nested: two locks of one folder exclude each other within a process too.
    """
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """Only one process at a time is inside for the file, where one is named."""
    if path is None:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
