"""Candidates in a process of their own: what crashes, hangs or eats memory there ends a trial, not the search.

The child keeps one `Bench` per op instance and the candidates built so far (those to be compared again). The parent
asks by messages and waits with a time limit; a child that dies, or whose device a fault has ended, is replaced when
next needed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tcomp.autotune.backend import Backend
from tcomp.autotune.bench import Bench, Candidate, Rejected
from tcomp.dsl.ast import Module, Op, Schedule
from tcomp.dsl.errors import TcError
from tcomp.errors import UserError

PATIENCE = 120.0
"""Seconds that a candidate may take to build and check."""
REASONS = ("where", "illegal", "spill", "wrong", "crash", "timeout", "slow")


@dataclass(frozen=True)
class Subject:
    """What the child tunes: sent to it once."""

    module: Module
    op: Op
    dims: Mapping[str, int]
    backend: Backend
    seed: int


@dataclass(frozen=True)
class Request:
    """Build a candidate under a name, or time named ones in turns."""

    what: str  # build | times | drop
    name: str = ""
    chosen: Mapping[str, int | float] = field(default_factory=dict)
    schedule: Schedule | None = None
    kernel: int | None = None
    names: tuple[str, ...] = ()
    rounds: int = 0
    seconds: float = 0.0
    alone: Path | None = None


@dataclass(frozen=True)
class Failure:
    """Why a candidate does not count: one of REASONS, and what was seen. `last`: the child can do no more."""

    kind: str
    reason: str
    last: bool = False


Facts = Mapping[str, float | str]


Serve = Callable[[Connection, Subject], None]


class Evaluator:
    """The parent's end. One instance at a time; `close` ends the child, which runs `target`."""

    def __init__(self, subject: Subject, target: Serve | None = None) -> None:
        self.subject, self.target = subject, target or serve
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None
        self._built: dict[str, Request] = {}
        self._alive: set[str] = set()
        """names of built candidates that the present child has"""

    def build(
        self, name: str, chosen: Mapping[str, int | float], kernel: int | None, schedule: Schedule | None = None,
        patience: float = PATIENCE,
    ) -> Failure | Facts:  # fmt: skip
        """Build and check a candidate; when it is right, what the compiler and the static model say of it."""
        request = Request("build", name, dict(chosen), schedule, kernel)
        answer = self._ask(request, patience)
        if isinstance(answer, Failure):
            return answer
        self._built[name] = request
        self._alive.add(name)
        return dict(answer)

    def times(
        self, names: tuple[str, ...], rounds: int, seconds: float, alone: Path | None, patience: float = PATIENCE
    ) -> list[list[float]] | Failure:
        """Seconds of built candidates, in turns (`Bench.times`), within `patience`. What a dead child had built is
        built again."""
        for name in names:
            if name not in self._alive and name in self._built:
                again = self._ask(self._built[name], patience)
                if isinstance(again, Failure):
                    return again
                self._alive.add(name)
        answer = self._ask(Request("times", names=names, rounds=rounds, seconds=seconds, alone=alone), patience)
        return answer if isinstance(answer, Failure) else list(answer)

    def drop(self, name: str) -> None:
        """Free a candidate."""
        if self._built.pop(name, None) and name in self._alive:
            self._alive.discard(name)
            self._ask(Request("drop", name), PATIENCE)

    def close(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._pipe.close()
        if self._process is not None:
            self._process.join(5)
            self._kill()
        self._pipe = None

    def _ask(self, request: Request, patience: float) -> Any:
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

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        self._process = self._context.Process(target=self.target, args=(theirs, self.subject))
        self._process.start()
        theirs.close()
        self._pipe = ours

    def _kill(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._process = None
        self._alive.clear()


def serve(pipe: Connection, subject: Subject) -> None:
    """The child's end: answers requests until the parent says None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    built: dict[str, Candidate] = {}
    bench: Bench | None = None
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            break
        if request is None:
            break
        answer: object
        try:
            bench = bench or Bench(subject.module, subject.op, subject.dims, subject.backend, subject.seed)
            answer = _answer(bench, built, request)
        except Rejected as e:
            answer = Failure(e.kind, str(e))
        except TcError as e:
            answer = Failure("illegal", e.message)
        except UserError as e:
            if bench is None:
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
    for candidate in built.values():
        candidate.close()
    os._exit(0)


def _answer(bench: Bench, built: dict[str, Candidate], request: Request) -> Any:
    if request.what == "build":
        if request.name in built:
            built.pop(request.name).close()
        built[request.name] = bench.build(request.chosen, request.kernel, request.schedule)
        return built[request.name].facts
    if request.what == "times":
        return bench.times([built[n] for n in request.names], request.rounds, request.seconds, request.alone)
    if request.name in built:
        built.pop(request.name).close()
    return None


def _signal(code: int | None) -> str:
    """`SIGSEGV` for an exit code of -11."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
