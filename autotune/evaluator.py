"""The candidates of one op instance, in a process of their own (`child`): built, checked, and timed in turns.

The child keeps one `Bench` and the candidates built so far (those to be compared again).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tcomp.autotune.backend import Backend
from tcomp.autotune.bench import Bench, Candidate
from tcomp.autotune.child import PATIENCE, Child, Failure, serve_requests
from tcomp.dsl.ast import Module, Op, Schedule


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


Facts = Mapping[str, float | str]


Serve = Callable[[Connection, Subject], None]


class Evaluator:
    """The parent's end. One instance at a time; `close` ends the child, which runs `target`."""

    def __init__(self, subject: Subject, target: Serve | None = None) -> None:
        self._child = Child(subject, target or serve)
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
        self._child.close()

    def _ask(self, request: Request, patience: float) -> Any:
        try:
            return self._child.ask(request, patience)
        finally:
            if not self._child.running:
                self._alive.clear()


def serve(pipe: Connection, subject: Subject) -> None:
    """The child's end."""
    serve_requests(pipe, lambda: _Candidates(subject))


class _Candidates:
    """The child's bench and what was built on it."""

    def __init__(self, subject: Subject) -> None:
        self.bench = Bench(subject.module, subject.op, subject.dims, subject.backend, subject.seed)
        self.built: dict[str, Candidate] = {}

    def answer(self, request: Request) -> Any:
        if request.what == "times":
            candidates = [self.built[n] for n in request.names]
            return self.bench.times(candidates, request.rounds, request.seconds, request.alone)
        if request.name in self.built:
            self.built.pop(request.name).close()
        if request.what != "build":
            return None
        self.built[request.name] = self.bench.build(request.chosen, request.kernel, request.schedule)
        return self.built[request.name].facts

    def close(self) -> None:
        for candidate in self.built.values():
            candidate.close()
