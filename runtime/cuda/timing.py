"""Times on the GPU's own clock, between events, with the L2 cache emptied before each repeat.

Filling a buffer larger than L2 also keeps the GPU busy while the host submits what is to be timed. Where the GPU comes
to the first event before all is submitted, the time between the events has waiting for the host in it: it does not
count, and the work is timed again behind more fills. (A host that takes 30 us for a launch gave a kernel of 2 us 40.)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cuda.bindings import driver as cu

from tcomp.machine.gpu import GpuMachine
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.driver import call, error_of
from tcomp.runtime.cuda.executor import CudaExecutor
from tcomp.runtime.cuda.gpus import Gpu

RUBBISH = 3
"""The buffer that is filled, over the size of L2."""


FILLS, MOST_FILLS = 2, 128
"""Fills before a piece of work: at first, and at most. One takes an H100 some 55 us."""


class ColdClock:
    """Times work that finds nothing of its data in L2, for executors of one GPU; `close` frees its buffer."""

    def __init__(self, gpu: Gpu, machine: GpuMachine) -> None:
        self._context = Context(gpu)
        self._size = RUBBISH * machine.l2_bytes
        self._rubbish = self._context.memory(self._size)
        self._events: list[tuple[Any, Any]] = []
        self._fills = FILLS

    def milliseconds(self, executor: CudaExecutor, works: Sequence[Callable[[], None]]) -> list[float]:
        """Of each piece of work, which submits to the executor's compute stream, perhaps several times."""
        while len(self._events) < len(works):
            self._events.append((self._context.event(timing=True), self._context.event(timing=True)))
        pending = list(range(len(works)))
        while pending:
            late = [i for i in pending if not self._submit(executor, works[i], *self._events[i])]
            executor.wait()
            pending = late if self._fills < MOST_FILLS else []
            if pending:
                self._fills *= 2
        return [float(call(cu.cuEventElapsedTime, *self._events[i])) for i in range(len(works))]

    def _submit(self, executor: CudaExecutor, work: Callable[[], None], start: Any, stop: Any) -> bool:
        """Submit a piece of work between two events; whether all of it was there before the GPU came to it."""
        stream = executor.context.compute
        self.fill(executor, self._fills)
        call(cu.cuEventRecord, start, stream)
        work()
        call(cu.cuEventRecord, stop, stream)
        (status,) = cu.cuEventQuery(start)
        if status not in (cu.CUresult.CUDA_SUCCESS, cu.CUresult.CUDA_ERROR_NOT_READY):
            raise error_of(status, "cuEventQuery")
        return bool(status == cu.CUresult.CUDA_ERROR_NOT_READY)

    def fill(self, executor: CudaExecutor, times: int = 1) -> None:
        """Give the executor's stream that many fills to do: L2 is empty of its data after them, and the host ahead."""
        for _ in range(times):
            call(cu.cuMemsetD8Async, self._rubbish, 0, self._size, executor.context.compute)

    def programs(self, executor: CudaExecutor, programs: Sequence[str]) -> list[float]:
        """Milliseconds of each program, run once, launch by launch."""
        return self.milliseconds(executor, [partial(_submit, executor, program) for program in programs])

    def close(self) -> None:
        self._context.close()


def _submit(executor: CudaExecutor, program: str) -> None:
    for launch in executor.programs[program]:
        launch.submit(executor.context.compute)


def time_programs(executor: CudaExecutor, programs: Sequence[str], repeats: int, graph: bool = True) -> float:
    """Median milliseconds of the programs one after another, as graphs or launch by launch (not waited for)."""

    def work() -> None:
        for program in programs:
            if graph:
                executor.run(program)
            else:
                _submit(executor, program)

    work()
    start, stop = executor.timer()
    times = []
    for _ in range(repeats):
        call(cu.cuEventRecord, start, executor.context.compute)
        work()
        call(cu.cuEventRecord, stop, executor.context.compute)
        executor.wait()
        times.append(float(call(cu.cuEventElapsedTime, start, stop)))
    return statistics.median(times)
