"""A whole training step as the bench of all its kernels: sets of choices in turns, each kernel timed where it runs.

What surrounds a kernel in a step (which operands are in a cache, what is written back meanwhile) decides small
differences, and one run of a step compares a candidate of every kernel at once. The steps of all sets share one arena:
kernels that a choice changes have further programs (`together`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tcomp.autotune.backend_cpu import CpuBackend
from tcomp.autotune.child import Rejected, serve_requests
from tcomp.autotune.contest import turns
from tcomp.autotune.guard import exclusive
from tcomp.autotune.instances import Instance
from tcomp.autotune.judge import Choice
from tcomp.dsl.ast import Module, Op
from tcomp.model.build import build_step
from tcomp.model.lowering import Lowering
from tcomp.model.request import StepRequest
from tcomp.model.step import TEMPORARY, Step
from tcomp.runtime.device import memory_here
from tcomp.runtime.roofline import ready
from tcomp.schedule.lower import LoweredOp, lower

Choices = Mapping[str, Choice]
"""By an instance's key; the schedules' own values where there is none."""
Part = tuple[str, int]
"""A kernel: its instance's key, and its position among the instance's launches."""


@dataclass(frozen=True)
class Turn:
    """One run of a step: seconds of each kernel, all its launches together, and of everything."""

    kernels: Mapping[Part, float]
    whole: float


@dataclass(frozen=True)
class StepSubject:
    """What the child times: sent to it once."""

    module: Module
    step: StepRequest
    backend: CpuBackend


@dataclass(frozen=True)
class TurnsRequest:
    """Time these sets of choices: `rounds` runs each after one that does not count, at most about `seconds`."""

    sets: tuple[Choices, ...]
    rounds: int
    seconds: float = math.inf
    alone: Path | None = None


def serve_steps(pipe: Connection, subject: StepSubject) -> None:
    """What a child process runs (`child.Child`)."""
    serve_requests(pipe, lambda: StepBench(subject))


class StepBench:
    """Times sets of choices of one step."""

    def __init__(self, subject: StepSubject) -> None:
        self.subject = subject
        self.clock = subject.backend.begin()

    def answer(self, request: Any) -> list[list[Turn]]:
        """For each set the turns it ran. UserError where the step does not fit here, Rejected where a choice needs
        other memory than the schedules' own values."""
        built = [self._step(choices) for choices in request.sets]
        step, names = together([s for s, _ in built])
        executor = self.subject.backend.open(step)
        try:
            ready(executor, self.subject.backend.threads)
            players = [partial(self._turn, executor, n, s, parts) for n, (s, parts) in zip(names, built, strict=True)]
            with exclusive(request.alone):
                turns(players, 1, 0.0)
                return turns(players, request.rounds, request.seconds)
        finally:
            executor.close()

    def _step(self, choices: Choices) -> tuple[Step, dict[str, tuple[Part, ...]]]:
        """The step, and which parts each of its kernels is."""
        s, b = self.subject, self.subject.backend
        seen: list[tuple[str, LoweredOp]] = []

        def chosen(op: Op, module: Module, dims: dict[str, int]) -> LoweredOp:
            key = Instance(op, dims).key
            choice = choices.get(key, Choice())
            lowered = lower(op, module, dict(dims), b.machine, b.threads, choice.values, choice.schedule)
            seen.append((key, lowered))
            return lowered

        request = replace(s.step, memory_limit=memory_here())
        step = build_step(s.module, request, b.machine, b.threads, lower=chosen)
        parts: dict[str, tuple[Part, ...]] = {}
        named = Lowering(s.module, chosen)  # gives kernels of equal names others, as the step's does
        for key, lowered in seen:
            for at, kernel in enumerate(lowered.kernels):
                name = named.add(kernel)
                parts[name] = (*parts.get(name, ()), (key, at))
        return step, {n: parts[k.of or n] for n, k in step.kernels.items()}

    def _turn(self, executor: Any, names: Mapping[str, str], step: Step, parts: Mapping[str, tuple[Part, ...]]) -> Turn:
        """Run the step's programs as often as a step does."""
        kernels: dict[Part, float] = {}
        whole = 0.0
        for program, times in (("micro_first", 1), ("micro_next", self.subject.step.accumulation - 1), ("update", 1)):
            if program not in step.programs or not times:
                continue
            seconds = self.subject.backend.launch_seconds(executor, names[program])
            whole += times * sum(seconds)
            for launch, taken in zip(step.programs[program], seconds, strict=True):
                for part in parts.get(launch.kernel, ()):
                    kernels[part] = kernels.get(part, 0.0) + times * taken
        return Turn(kernels, whole)

    def close(self) -> None:
        self.clock.close()


def together(steps: Sequence[Step]) -> tuple[Step, list[dict[str, str]]]:
    """Steps of one model as one: the first, with the others' programs beside its own. Also, for each step, what its
    programs are called there.

    Where a choice changes which launches are joined, activations lie elsewhere: each program has its own where it was
    planned, since none reads what another left. Rejected where what lasts from one program to the next does."""
    first = steps[0]
    lasting = _lasting(first)
    kernels, programs = dict(first.kernels), dict(first.programs)
    names = [{p: p for p in first.programs}]
    for i, step in enumerate(steps[1:], 1):
        if (own := _lasting(step)) != lasting:
            moved = sorted({name for name, *_ in own ^ lasting})
            raise Rejected("illegal", f"a choice needs other memory than the schedules' own values for {moved[0]}")
        renamed = {n: n if kernels.get(n) == k else f"{n}.{i}th" for n, k in step.kernels.items()}
        kernels |= {renamed[n]: replace(k, name=renamed[n]) for n, k in step.kernels.items() if renamed[n] != n}
        names.append({p: f"{p}@{i}" for p in step.programs})
        for p, launches in step.programs.items():
            programs[f"{p}@{i}"] = tuple(replace(x, kernel=renamed[x.kernel]) for x in launches)
    largest = {n: max(getattr(s, n) for s in steps) for n in ("arena_bytes", "scratch_bytes", "team_bytes")}
    return replace(first, kernels=kernels, programs=programs, **largest), names


def _lasting(step: Step) -> set[tuple[str, int, int]]:
    """The bytes in which something lasts from one program to the next, by its slot, and those that must stay zero."""
    slots = {(n, s.offset, s.bytes) for n, s in step.slots.items() if s.kind not in TEMPORARY}
    return slots | {("what stays zero", at, size) for at, size in step.zeros()}
