"""Times on the GPU's own clock: medians between events, with the L2 cache emptied before each repeat."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from cuda.bindings import driver as cu

from tcomp.runtime.cuda.driver import call
from tcomp.runtime.cuda.executor import CudaExecutor
from tcomp.runtime.cuda.programs import BoundLaunch


def time_launch(executor: CudaExecutor, launch: BoundLaunch, repeats: int) -> float:
    """Median milliseconds of one launch, which finds nothing of its data in L2. It changes the slots it writes."""
    return _median(executor, lambda: launch.submit(executor.context.compute), repeats, flush=True)


def time_programs(executor: CudaExecutor, programs: Sequence[str], repeats: int, graph: bool = True) -> float:
    """Median milliseconds of the programs one after another, as graphs or launch by launch (not waited for)."""

    def work() -> None:
        for program in programs:
            if graph:
                executor.run(program)
            else:
                for launch in executor.programs[program]:
                    launch.submit(executor.context.compute)

    work()
    return _median(executor, work, repeats, flush=False)


def _median(executor: CudaExecutor, work: Callable[[], None], repeats: int, flush: bool) -> float:
    context = executor.context
    start, stop = executor.timer()
    size = 2 * executor.machine.l2_bytes
    rubbish = call(cu.cuMemAlloc, size) if flush else 0
    try:
        times = []
        for _ in range(repeats):
            if flush:
                call(cu.cuMemsetD8Async, rubbish, 0, size, context.compute)
            call(cu.cuEventRecord, start, context.compute)
            work()
            call(cu.cuEventRecord, stop, context.compute)
            executor.wait()
            times.append(float(call(cu.cuEventElapsedTime, start, stop)))
    finally:
        if flush:
            call(cu.cuMemFree, rubbish)
    return statistics.median(times)
