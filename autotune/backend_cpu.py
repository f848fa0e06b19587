"""Candidates on this computer's processors. Between two timings the caches are cleared by writing a buffer as large as
the last level, since in a step other ops run in between.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcomp.autotune.backend import Examined
from tcomp.autotune.cost_cpu import predicted_cycles
from tcomp.autotune.registers import spill_of
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.step import Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.executor import Executor
from tcomp.runtime.roofline import profile

FLUSH = 64 << 20
"""At most this much is written to clear the caches."""


class CpuClock:
    """Wall-clock time of a run, caches cleared before."""

    def __init__(self, machine: CpuMachine) -> None:
        self._flush = np.zeros(min(FLUSH, 2 * machine.l3_bytes) // 8)

    def seconds(self, executor: Executor, programs: Sequence[str]) -> float:
        total = 0.0
        for program in programs:
            self._flush += 1.0
            started = time.perf_counter()
            executor.run(program)
            total += time.perf_counter() - started
        return total / len(programs)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class CpuBackend:
    """`cache` has compiled kernels."""

    machine: CpuMachine
    threads: int
    cache: Path | None
    aligned: bool = False

    def copies(self, size: int) -> int:
        return 1

    def refusal(self, kernel: Kernel, default: Kernel) -> str:
        return spill_of(kernel, default, self.machine)

    def estimate(self, kernel: Kernel) -> float:
        return predicted_cycles(kernel, self.machine, self.threads)

    def begin(self) -> CpuClock:
        detect(self.machine.name)  # LLVM's code generator for this host
        return CpuClock(self.machine)

    def examine(self, kernels: Sequence[Kernel]) -> Examined:
        return Examined()

    def open(self, step: Step) -> Executor:
        return CpuExecutor(step, self.machine, self.threads, self.cache)

    def launch_seconds(self, executor: Executor, program: str) -> Sequence[float]:
        """Run a program: seconds of each of its launches."""
        assert isinstance(executor, CpuExecutor)
        return [float(s) for s in profile(executor, program)]
