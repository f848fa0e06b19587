"""Candidates judged without a GPU: assembled, their machine code read, timed by the static model.

What the assembler says of spills, local memory or serialised matrix instructions ends a candidate before it is judged.
The finalists run on the virtual GPU at a small size of the same schedule; the first that is right wins. All of it
is deterministic, and all of it is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tcomp.autotune.contest import beats_by_prediction
from tcomp.autotune.gpu_predict import KernelPrediction, predict_kernels
from tcomp.autotune.gpu_registers import spill_of
from tcomp.autotune.instances import Instance
from tcomp.autotune.judge import Choice, Chosen, Job, Outcome, Verdict
from tcomp.autotune.sizes import reduced
from tcomp.autotune.space import Values
from tcomp.autotune.virtual_run import ELEMENTS, WORK, problem_of
from tcomp.dsl.ast import Module, Schedule
from tcomp.dsl.errors import TcError
from tcomp.dsl.printer import print_schedule
from tcomp.errors import UserError
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.lower import LoweredOp, lower


class PredictedJudge:
    """Judges by prediction for `machine`; `cache` has PTX and cubins."""

    basis = "predicted"

    def __init__(self, module: Module, machine: GpuMachine, cache: Path | None, seed: int) -> None:
        self.module, self.machine, self.cache, self.seed = module, machine, cache, seed
        self._known: dict[tuple[str, tuple[tuple[str, float], ...], str], list[KernelPrediction]] = {}

    def weigh(self, instance: Instance) -> list[float]:
        return self.start(instance)

    def start(self, instance: Instance, patience: float = math.inf) -> list[float]:
        return [k.seconds for k in self._predictions(instance, Choice())]

    def predict(self, job: Job, values: Values) -> float | None:
        """Whether the candidate lowers and may fit the registers: the model itself is the judge here."""
        try:
            lowered = self._lower(job.instance, job.space.chosen(values))
        except (TcError, UserError):
            return None
        return None if spill_of(lowered.kernels[job.kernel], self.machine) else 0.0

    def evaluate(self, job: Job, values: Values, patience: float, schedule: Schedule | None = None) -> Verdict:
        try:
            lowered = self._lower(job.instance, job.space.chosen(values), schedule)
            kernels = lowered.kernels if schedule else (lowered.kernels[job.kernel],)
            spill = next((text for k in kernels if (text := spill_of(k, self.machine))), "")
            if spill:
                return Verdict(None, 0.0, "spill", spill)
            found = predict_kernels(kernels, self.machine, self.cache)
        except TcError as e:
            return Verdict(None, 0.0, "illegal", e.message)
        except UserError as e:
            return Verdict(None, 0.0, "illegal", e.message.splitlines()[0])
        findings = [m for k in found for m in k.assembled.findings]
        if findings:
            return Verdict(None, 0.0, "spill", findings[0].text)
        if not all(k.counted for k in found):
            return Verdict(None, 0.0, "illegal", "the static model cannot count its loops: faster than the GPU can be")
        seconds = sum(k.seconds for k in found)
        longest = max(found, key=lambda k: k.seconds)
        default = sum(k.seconds for k in self._predictions(job.instance, Choice())) if schedule else job.seconds
        return Verdict(seconds / default, seconds, facts={"binding": longest.binding})

    def best(self, job: Job, incumbent: Values, candidates: Sequence[Values], patience: float = math.inf) -> Values:
        reference = self.evaluate(job, incumbent, 0.0)
        for values in candidates:
            verdict = self.evaluate(job, values, 0.0)
            if verdict.value is None or (reference.value and not beats_by_prediction(verdict.value, reference.value)):
                continue
            if not self.check(job.instance, job.space.chosen(values)):
                return values
        return incumbent

    def confirm(self, instance: Instance, incumbent: Choice, choice: Choice, patience: float = math.inf) -> Outcome:
        default = sum(k.seconds for k in self._predictions(instance, Choice()))
        old = sum(k.seconds for k in self._predictions(instance, incumbent))
        new = sum(k.seconds for k in self._predictions(instance, choice))
        if choice != incumbent and beats_by_prediction(new, old):
            problem = self.check(instance, choice.values, choice.schedule)
            if problem:
                return Outcome(default, old, 0.0, False, problem)
            return Outcome(default, new, 0.0, True)
        return Outcome(default, old, 0.0, False)

    def wrong(self, instance: Instance, choice: Choice, patience: float = math.inf) -> str:
        return self.check(instance, choice.values, choice.schedule)

    def check(self, instance: Instance, chosen: Chosen, schedule: Schedule | None = None) -> str:
        """What the virtual GPU has against the choice at a small size; empty when it is right."""
        dims = reduced(instance.op, self.module, instance.dims, WORK, ELEMENTS, aligned=True)
        try:
            lowered = lower(instance.op, self.module, dims, self.machine, 1, chosen, schedule)
            return problem_of(instance.op, self.module, dims, lowered, self.machine, self.seed)
        except (TcError, UserError) as e:
            return e.message.splitlines()[0]

    def close(self) -> None:
        self._known.clear()

    def _lower(self, instance: Instance, chosen: Chosen, schedule: Schedule | None = None) -> LoweredOp:
        return lower(instance.op, self.module, dict(instance.dims), self.machine, 1, chosen, schedule)

    def _predictions(self, instance: Instance, choice: Choice) -> list[KernelPrediction]:
        text = print_schedule(choice.schedule) if choice.schedule else ""
        key = instance.key, tuple(sorted(choice.values.items())), text
        if key not in self._known:
            kernels = self._lower(instance, choice.values, choice.schedule).kernels
            self._known[key] = predict_kernels(kernels, self.machine, self.cache)
        return self._known[key]
