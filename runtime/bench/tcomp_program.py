"""tcomp as a program under measurement: the planned step of a model's text, on any device.

Everything that a user's first step waits for happens here in turn and is timed: reading the text, deriving and
planning, compiling (or finding all that in the cache), placing the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tcomp.runtime.bench.workload import Ints, Weights, Workload

if TYPE_CHECKING:
    from tcomp.dsl.ast import DType
    from tcomp.model.step import Step
    from tcomp.runtime.device import Device


_PIECE = 1 << 18
"""Elements of a parameter that a thread reads at a time."""


def _place(weights: Weights, name: str, targets: Sequence[tuple[DType, NDArray[Any]]], at: int) -> None:
    """The piece of a parameter that begins at element `at`, read once, into all its copies."""
    from tcomp.runtime.values import store

    parts = [(dtype, array[at : at + _PIECE]) for dtype, array in targets]
    exact = next((part for _, part in parts if part.dtype == np.float32), None)
    piece = np.empty(parts[0][1].size, np.float32) if exact is None else exact
    weights.read(name, [piece], at)
    for dtype, part in parts:
        if part is not exact:
            store(piece, dtype, part)


class TcompProgram:
    """`phases` are seconds by name. `clock` says what the seconds of a step are: "host", "gpu" or, on the virtual GPU,
    "" (a simulator's time says nothing)."""

    def __init__(self, workload: Workload, folder: Path, build: Callable[[Workload], tuple[Step, Device]]) -> None:
        self.phases: dict[str, float] = {}
        clock = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal clock
            self.phases[name] = time.perf_counter() - clock
            clock = time.perf_counter()

        self.step, device = build(workload)
        lap("build")
        self.executor: Any = device.open(self.step)
        lap("compile")
        self.clock = {"cpu": "host", "cuda": "gpu"}.get(device.kind, "")
        self.device = device
        self._load(Weights(workload, folder))
        lap("weights")

    def _load(self, weights: Weights) -> None:
        """Parameters and their master copies from the file, whose pieces the step's threads share; other state zero."""
        from tcomp.runtime.scalars import set_scalars

        masters = {p.master for p in self.step.parameters}
        for name, slot in self.step.slots.items():
            if slot.kind == "state" and name not in masters:
                self.executor.write(name, 0)
        with ThreadPoolExecutor(max(1, self.device.threads)) as pool:
            for parameter in self.step.parameters:
                slots = [self.step.slots[name] for name in (parameter.slot, parameter.master) if name]
                with ExitStack() as stack:
                    flat = [stack.enter_context(self.executor.fill(s.name)).reshape(-1) for s in slots]
                    targets = list(zip([s.dtype for s in slots], flat, strict=True))
                    parts = [(parameter.slot, targets, at) for at in range(0, flat[0].size, _PIECE)]
                    list(pool.map(lambda part: _place(weights, *part), parts))
        set_scalars(self.executor, {})

    def run(self, tokens: Ints, targets: Ints, number: int) -> tuple[float, float | None]:
        """One whole step: its loss, and its seconds unless they say nothing."""
        executor = self.executor
        if self.device.kind != "cpu":
            loss, seconds = self._run_gpu(tokens, targets, number)
            return loss, seconds if self.clock else None
        began = time.perf_counter()
        self._ask(tokens, targets, number)
        loss = float(executor.read("loss"))
        if number == 0:  # a start ends with a whole step; later ones do what the one before has left of its update
            executor.wait()
        return loss, time.perf_counter() - began

    def _run_gpu(self, tokens: Ints, targets: Ints, number: int) -> tuple[float, float]:
        """The time between events on the GPU's own clock."""
        from cuda.bindings import driver as cu

        from tcomp.runtime.cuda.driver import call

        start, stop = self.executor.timer()
        stream = self.executor.context.compute
        call(cu.cuEventRecord, start, stream)
        self._ask(tokens, targets, number)
        call(cu.cuEventRecord, stop, stream)
        loss = float(self.executor.read("loss"))
        self.executor.wait()
        return loss, float(call(cu.cuEventElapsedTime, start, stop)) / 1e3

    def _ask(self, tokens: Ints, targets: Ints, number: int) -> None:
        executor = self.executor
        executor.write("step", number)
        with executor.batch() as inputs:
            inputs["tokens"][...], inputs["targets"][...] = tokens, targets
        executor.run_step("micro_first")

    def device_bytes(self) -> int:
        """Memory taken on a GPU; 0 on a CPU, where the process's own memory is the figure."""
        return self.step.arena_bytes + self.step.team_bytes if self.device.kind != "cpu" else 0

    def profile(self) -> dict[str, Any]:
        """The share of each kernel in a step, and the plan's bytes over its launches."""
        from tcomp.runtime.bench.kernels import kernel_times, plan_facts

        return {"kernels": kernel_times(self.executor), "plan": plan_facts(self.step)}

    def finish(self) -> None:
        """UserError when the device found fault with what ran."""
        self.device.finish()

    def close(self) -> None:
        self.executor.close()
