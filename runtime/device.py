"""Where a step runs: a machine to compile for, and executors on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a start on one kind of device loads nothing of the other
    from tcomp.codegen.cpu.cache import Compilers
    from tcomp.ir.tile import Kernel
    from tcomp.machine.cpu import CpuMachine
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.step import Step
    from tcomp.runtime.executor import Executor


class Device(Protocol):
    """`kind` is cpu, cuda or virtual; `threads` are a CPU's (1 on a GPU)."""

    @property
    def kind(self) -> str: ...

    @property
    def machine(self) -> CpuMachine | GpuMachine: ...

    @property
    def threads(self) -> int: ...

    @property
    def description(self) -> str:
        """For people: `2 threads (avx512)`, `NVIDIA H100 (sm_90a)`."""
        ...

    def begin(self, kernel: Kernel) -> None:
        """A step to be opened will have this kernel: compile it beside what else is done, where that is possible."""
        ...

    def open(self, step: Step) -> Executor:
        """Compile (or take from the cache) and place the step; UserError when it cannot run here."""
        ...

    def abandon(self) -> None:
        """No step will be opened after all: stop what `begin` has started."""
        ...

    def free_memory(self) -> int | None:
        """Bytes that a step may take; None when unknown."""
        ...

    def finish(self) -> None:
        """The end of all runs: UserError when the device found fault with what ran."""
        ...


@dataclass
class CpuDevice:
    """This computer's processors. `cache` is the folder of compiled kernels; `compilers` work for the next `open`."""

    machine: CpuMachine
    threads: int
    cache: Path | None = None
    kind: str = "cpu"
    compilers: Compilers | None = field(default=None, repr=False)
    shared_by: int = 1
    """how many processes of this computer take memory alike"""

    @property
    def description(self) -> str:
        return f"{self.threads} threads ({self.machine.name})"

    def begin(self, kernel: Kernel) -> None:
        if self.compilers is None:
            from tcomp.codegen.cpu.cache import Compilers

            self.compilers = Compilers(self.machine, self.cache)
        self.compilers.begin(kernel)

    def open(self, step: Step) -> Executor:
        from tcomp.runtime.cpu import executor

        try:
            return executor.CpuExecutor(step, self.machine, self.threads, self.cache, self.compilers)
        finally:
            self.abandon()

    def abandon(self) -> None:
        if self.compilers is not None:
            self.compilers.close()
            self.compilers = None

    def free_memory(self) -> int | None:
        here = memory_here()
        return here if here is None else here // self.shared_by

    def finish(self) -> None:
        pass


def device_named(kind: str, which: str = "", *, gpu: str = "", threads: int = 0, graph: bool = True) -> Device:
    """The device of that kind: `which` GPU of the machine, the `gpu` that a virtual one stands for, a CPU's threads
    (0: all). Compiled code goes to the user's cache. A GPU's driver is loaded here, and the virtual GPU is put in its
    place where asked: one of the two per process. UserError where it cannot be used."""
    from tcomp.runtime.cache import cache_folder

    cache = cache_folder("kernels")
    if kind == "cpu":
        from tcomp.machine.cpu import detect

        machine = detect()
        return CpuDevice(machine, threads or machine.cores, cache)
    from tcomp.runtime.cuda.device import real_device, virtual_device

    return virtual_device(gpu, cache, graph) if kind == "virtual" else real_device(which, cache, graph)


def memory_here() -> int | None:
    """Bytes this process could still take, where Linux says (free memory and the control group's limit)."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit))
    except (OSError, ValueError):
        pass
    return min(found) if found else None
