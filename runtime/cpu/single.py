"""One kernel with memory of its own: what tests, verification and tuning run."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from tcomp.codegen.cpu.compile import memory_needs
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.model.step import Launch, Slot, Step
from tcomp.runtime.cpu.executor import CpuExecutor

GUARD = 256
"""Bytes between operands, so that a stray write is seen."""


def single_kernel_step(kernel: Kernel) -> Step:
    """A step with one program, "run", that launches the kernel once on slots named for its operands."""
    slots: dict[str, Slot] = {}
    end = GUARD
    for b in kernel.operands:
        slots[b.name] = Slot(b.name, "activation", b.dtype, b.shape, end, b.bytes, 0, 0)
        end += -(-b.bytes // 64) * 64 + GUARD
    scratch, team = memory_needs(kernel)
    launch = Launch("kernel", tuple(s.offset for s in slots.values()), kernel.name)
    return Step(kernel.name, "", {}, slots, end, end, scratch, team, {"kernel": kernel}, {"run": (launch,)}, ())


class SingleKernel:
    """`run` a kernel on the arrays that `array` gives by operand name."""

    def __init__(
        self, kernel: Kernel, machine: CpuMachine, threads: int = 1, cache_dir: Path | str | None = None
    ) -> None:
        self.executor = CpuExecutor(single_kernel_step(kernel), machine, threads, cache_dir)

    def array(self, name: str) -> NDArray[Any]:
        return self.executor.array(name)

    def run(self) -> None:
        self.executor.run("run")

    def __enter__(self) -> SingleKernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.executor.close()
