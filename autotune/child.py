"""A process that answers requests: what crashes, hangs or eats memory there ends a request, not its asker.

The asker sends messages through a pipe and waits with a time limit; a child that dies, or whose device a fault has
ended, is replaced when next needed.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

from tcomp.dsl.errors import TcError
from tcomp.errors import UserError
from tcomp.interrupts import interrupts_wait

PATIENCE = 120.0
"""Seconds that a candidate may take to build and check."""


class Rejected(Exception):
    """A candidate that does not count: `kind` is illegal | wrong | spill, and the message says what was seen."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Failure:
    """Why a candidate does not count: `kind` is illegal | wrong | spill | crash | timeout, and `reason` what was seen.
    `last`: the child can do no more."""

    kind: str
    reason: str
    last: bool = False


class Server(Protocol):
    """What a child does with requests."""

    def answer(self, request: Any) -> Any: ...

    def close(self) -> None: ...


class Child:
    """The asker's end. The process starts with the first request, runs `target` with `subject`, and ends by `close`."""

    def __init__(self, subject: Any, target: Callable[[Connection, Any], None]) -> None:
        self.subject, self.target = subject, target
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def running(self) -> bool:
        """Whether the process that was last asked is still there."""
        return self._process is not None

    def ask(self, request: Any, patience: float) -> Any:
        """The answer, a Failure where there is none within `patience` seconds. UserError where the device cannot be
        used at all. Ctrl-C ends the process, too."""
        try:
            return self._answer(request, patience)
        except KeyboardInterrupt:
            self._kill()
            raise

    def _answer(self, request: Any, patience: float) -> Any:
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(request)
            if not self._pipe.poll(patience):
                self._kill()
                return Failure("timeout", f"no answer within {patience:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self._kill()
            return Failure("crash", f"its process died of {_signal(code)}")
        if isinstance(answer, Failure) and answer.last:
            self._process.join(5)
            self._kill()
        if isinstance(answer, UserError):
            raise answer
        return answer

    def close(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._pipe.close()
        if self._process is not None:
            self._process.join(5)
            self._kill()
        self._pipe = None

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        with interrupts_wait(), _started_deaf(), _one_blas_thread():
            self._process = self._context.Process(target=self.target, args=(theirs, self.subject))
            self._process.start()
            self._pipe = ours
        theirs.close()

    def _kill(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._process = None


@contextlib.contextmanager
def _started_deaf() -> Iterator[None]:
    """Processes that start here take no Ctrl-C, which a terminal sends them too: one that it ends before it has read
    what it is to do leaves its asker writing for ever."""
    resource_tracker.ensure_running()  # which lets the signal through again where it starts its process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Processes that start here get a NumPy of one thread: those of a BLAS, waiting for work for a while after the
    oracle's products, share CPUs with what is timed, and make it take up to twice its time."""
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    before = {n: os.environ.get(n) for n in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve_requests(pipe: Connection, begin: Callable[[], Server]) -> None:
    """The child's end: answers requests until the asker says None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asker decides what Ctrl-C ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.set_threshold(100_000, 50, 10)  # as the command line has it: candidates are compiled here
    server: Server | None = None
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            break
        if request is None:
            break
        answer: object
        try:
            server = server or begin()
            answer = server.answer(request)
        except Rejected as e:
            answer = Failure(e.kind, str(e))
        except TcError as e:
            answer = Failure("illegal", e.message)
        except UserError as e:
            if server is None:
                answer = e  # the device cannot be used at all: an end of the search
            elif getattr(e, "sticky", False):
                answer = Failure("crash", e.message.splitlines()[0], last=True)
            else:
                answer = Failure("illegal", str(e).splitlines()[0])
        except MemoryError:
            answer = Failure("crash", "out of memory")
        except (NotImplementedError, ArithmeticError, ValueError, KeyError, RuntimeError) as e:
            answer = Failure("crash", f"{type(e).__name__}: {e}")
        try:
            pipe.send(answer)
        except OSError:
            break
        if isinstance(answer, Failure) and answer.last:
            break
    if server is not None:
        server.close()
    os._exit(0)


def _signal(code: int | None) -> str:
    """`SIGSEGV` for an exit code of -11."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
