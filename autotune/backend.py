"""Where candidates run: what the shared part of measuring (`bench`, `judge_measured`) asks of a kind of device.

A backend is plain data: it is sent to the process in which candidates run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import GpuMachine
from tcomp.model.step import Step
from tcomp.runtime.executor import Executor
from tcomp.schedule.family import Machine


@dataclass(frozen=True)
class Examined:
    """What is known of built kernels before they run: the compiler's `findings` (spills and the like; empty: none),
    and `facts` to be kept with the trial."""

    findings: str = ""
    facts: Mapping[str, float | str] = field(default_factory=dict)


class Clock(Protocol):
    """Times programs in the candidates' process."""

    def seconds(self, executor: Executor, programs: Sequence[str]) -> float:
        """Mean seconds of the programs, which are the same work on different copies of the operands, each run once
        and each finding nothing of its data in a cache."""
        ...

    def close(self) -> None: ...


class Place(Protocol):
    """What is tuned for; `threads` are a CPU's (1 on a GPU)."""

    @property
    def machine(self) -> Machine: ...

    @property
    def threads(self) -> int: ...


@dataclass(frozen=True)
class Described:
    """A GPU that is known by its description alone."""

    machine: GpuMachine
    threads: int = 1


class Backend(Place, Protocol):
    @property
    def aligned(self) -> bool:
        """Whether sizes for checks must be multiples of 16."""
        ...

    def copies(self, size: int) -> int:
        """How many copies of operands of `size` bytes together the runs take turns on."""
        ...

    # ------------------------------------------------------- in the searching process: nothing is compiled, nothing run

    def refusal(self, kernel: Kernel, default: Kernel) -> str:
        """Why a kernel need not be compiled: it would spill registers where the default does not. Empty when it may
        do."""
        ...

    def estimate(self, kernel: Kernel) -> float:
        """A quick guess of the kernel's time, in any unit, to put candidates in order by."""
        ...

    # -------------------------------------------------------------------------------------- in the candidates' process

    def begin(self) -> Clock:
        """Make the device ready. UserError where it cannot be used."""
        ...

    def examine(self, kernels: Sequence[Kernel]) -> Examined:
        """Compile the kernels and look at what became of them."""
        ...

    def open(self, step: Step) -> Executor: ...
