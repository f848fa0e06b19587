"""Candidates in a process of their own: what crashes, hangs or eats memory there ends a trial, not the search.

The child keeps one `Bench` per op instance and the candidates built so far (those to be compared again). The parent
asks by messages and waits with a time limit; a child that dies is replaced when next needed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tcomp.autotune.bench import Bench, Candidate, Rejected
from tcomp.dsl.ast import Module, Op, Schedule
from tcomp.dsl.errors import TcError
from tcomp.errors import UserError
from tcomp.machine.cpu import CpuMachine, detect

PATIENCE = 120.0
"""Seconds that a candidate may take to build and check."""
REASONS = ("where", "illegal", "wrong", "crash", "timeout", "slow")


@dataclass(frozen=True)
class Subject:
    """What the child tunes: sent to it once."""

    module: Module
    op: Op
    dims: Mapping[str, int]
    machine: CpuMachine
    threads: int
    cache: Path
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
    """Why a candidate does not count: one of REASONS, and what was seen."""

    kind: str
    reason: str


Serve = Callable[[Connection, Subject], None]


class Evaluator:
    """The parent's end. One instance at a time; `close` ends the child, which runs `target`."""

    def __init__(self, subject: Subject, target: Serve | None = None) -> None:
        self.subject, self.target = subject, target or serve
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None
        self._built: dict[str, Request] = {}

    def build(
        self, name: str, chosen: Mapping[str, int | float], kernel: int | None, schedule: Schedule | None = None,
        patience: float = PATIENCE,
    ) -> Failure | None:  # fmt: skip
        """Build and check a candidate; None when it is right."""
        request = Request("build", name, dict(chosen), schedule, kernel)
        answer = self._ask(request, patience)
        if isinstance(answer, Failure):
            return answer
        self._built[name] = request
        return None

    def times(
        self, names: tuple[str, ...], rounds: int, seconds: float, alone: Path | None, patience: float = PATIENCE
    ) -> list[list[float]] | Failure:
        """Seconds of built candidates, in turns (`Bench.times`). What a dead child had built is built again."""
        for name in names:
            if self._process is None and name in self._built:
                for request in [self._built[n] for n in names]:
                    again = self._ask(request, PATIENCE)
                    if isinstance(again, Failure):
                        return again
                break
        answer = self._ask(
            Request("times", names=names, rounds=rounds, seconds=seconds, alone=alone), patience + seconds
        )
        return answer if isinstance(answer, Failure) else list(answer)

    def drop(self, name: str) -> None:
        """Free a candidate."""
        if self._built.pop(name, None) and self._process is not None:
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


def serve(pipe: Connection, subject: Subject) -> None:
    """The child's end: answers requests until the parent says None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    detect(subject.machine.name)  # LLVM's code generator for this host
    bench = Bench(
        subject.module, subject.op, subject.dims, subject.machine, subject.threads, subject.cache, subject.seed
    )
    built: dict[str, Candidate] = {}
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            break
        if request is None:
            break
        answer: object
        try:
            answer = _answer(bench, built, request)
        except Rejected as e:
            answer = Failure(e.kind, str(e))
        except TcError as e:
            answer = Failure("illegal", e.message)
        except UserError as e:
            answer = Failure("illegal", str(e).splitlines()[0])
        except MemoryError:
            answer = Failure("crash", "out of memory")
        except (NotImplementedError, ArithmeticError, ValueError, KeyError, RuntimeError) as e:
            answer = Failure("crash", f"{type(e).__name__}: {e}")
        try:
            pipe.send(answer)
        except OSError:
            break
    for candidate in built.values():
        candidate.close()
    os._exit(0)


def _answer(bench: Bench, built: dict[str, Candidate], request: Request) -> Any:
    if request.what == "build":
        if request.name in built:
            built.pop(request.name).close()
        started = time.perf_counter()
        built[request.name] = bench.build(request.chosen, request.kernel, request.schedule)
        return time.perf_counter() - started
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
