"""One kernel with memory of its own: what tests, verification and tuning run."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import LoweredOp

GUARD = 256
"""Bytes between operands, so that a stray write is seen."""


class SingleKernel:
    """`run` a kernel on the arrays that `array` gives by operand name."""

    def __init__(
        self, kernel: Kernel, machine: CpuMachine, threads: int = 1, cache_dir: Path | str | None = None
    ) -> None:
        step = single_op_step(LoweredOp((kernel,), ()), {}, GUARD)
        self.executor = CpuExecutor(step, machine, threads, cache_dir)

    def array(self, name: str) -> NDArray[Any]:
        return self.executor.array(name)

    def run(self) -> None:
        self.executor.run("run")

    def __enter__(self) -> SingleKernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.executor.close()
