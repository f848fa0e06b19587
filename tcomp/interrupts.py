"""Ctrl-C, put off while what it would leave half done is going on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C comes at the end of this block. Around a fork Python runs hooks, and what is raised in them is printed and
    dropped; a process that is being started has not begun for who would end it. (Blocking the signal would not do:
    another thread, such as a BLAS's, may take it for the process.)"""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield  # the handler is not Python's, or does not run here
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
