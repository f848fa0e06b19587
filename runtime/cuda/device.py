"""`--device cuda` and `--device virtual`: which GPU, what to compile for it, and the findings at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.errors import UserError
from tcomp.machine.gpu import GpuMachine, machine_named
from tcomp.model.step import Step
from tcomp.runtime.device import memory_here
from tcomp.runtime.executor import Executor

if TYPE_CHECKING:
    from tcomp.ir.tile import Kernel
    from tcomp.runtime.cuda.gpus import Gpu
    from tcomp.runtime.vgpu.report import Finding
    from tcomp.runtime.vgpu.shim.driver import VirtualDriver

SHOWN = 3
"""Findings that are printed in full."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU of the driver's. `virtual` is the driver when that is the virtual one."""

    gpu: Gpu
    machine: GpuMachine
    cache: Path | None = None
    graph: bool = True
    virtual: VirtualDriver | None = None
    shared_by: int = 1
    """how many processes take memory of the GPU alike"""
    beside: int = 1
    """how many processes of this computer have virtual GPUs alike"""

    @property
    def kind(self) -> str:
        return "virtual" if self.virtual is not None else "cuda"

    @property
    def threads(self) -> int:
        return 1

    @property
    def description(self) -> str:
        where = "virtual " if self.virtual is not None else f"GPU {self.gpu.index}: "
        return f"{where}{self.machine.label or self.gpu.name} ({self.machine.target})"

    def begin(self, kernel: Kernel) -> None:
        """Nothing: PTX is assembled when all kernels are there."""

    def abandon(self) -> None:
        pass

    def open(self, step: Step) -> Executor:
        from tcomp.runtime.cuda.executor import CudaExecutor

        return CudaExecutor(step, self.machine, self.gpu, self.graph, self.cache)

    def free_memory(self) -> int | None:
        """What the GPU has free; on the virtual one also no more than its part of what this computer has."""
        from tcomp.runtime.cuda.context import Context

        context = Context(self.gpu)
        try:
            free = context.free_memory() // self.shared_by
        finally:
            context.close()
        here = memory_here() if self.virtual is not None else None
        return min(free, here // self.beside) if here is not None else free

    def findings(self) -> list[Finding]:
        """What the virtual GPU's checks have found in all launches so far; nothing on a real one."""
        return self.virtual.findings if self.virtual is not None else []

    def finish(self) -> None:
        found = self.findings()
        if found:
            raise UserError(
                f"the virtual GPU found {len(found)} fault{'s' if len(found) > 1 else ''} in the kernels\n"
                f"{findings_text(self.virtual)}",
                "the compiler should not make such kernels: please report it, with the schedule",
            )


def findings_text(virtual: VirtualDriver | None) -> str:
    """The first few findings in full, and how many more there are; "" without any."""
    lines = []
    if virtual is not None:
        for report in virtual.reports:
            lines += [f"in kernel {report.kernel}: {finding}" for finding in report.findings]
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def real_device(which: str = "", cache: Path | None = None, graph: bool = True) -> CudaDevice:
    """The GPU `which` (a number, part of a name, or "" for the first) of the machine's NVIDIA driver."""
    from tcomp.runtime.cuda.gpus import choose, gpus, machine_of

    gpu = choose(which, gpus())
    return CudaDevice(gpu, machine_of(gpu), cache, graph)


def virtual_device(name: str, cache: Path | None = None, graph: bool = True) -> CudaDevice:
    """A virtual GPU of a known kind, put in the place of the driver for the rest of this process."""
    machine = machine_named(name)
    from tcomp.runtime.vgpu.shim import install

    driver = install(machine.name)
    from tcomp.runtime.cuda.gpus import choose, gpus

    return CudaDevice(choose("", gpus()), machine, cache, graph, driver)
