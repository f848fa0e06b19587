"""What a launch costs that does nothing: a team's barrier and the calls around it, as a step's small kernels pay it."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

from tcomp.dsl.ast import Access, DType, Name, Num
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Scope
from tcomp.machine.cpu import detect
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.ceilings import Ceiling
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import LoweredOp

LINE = 16
"""f32 elements of a cache line: no two threads share one"""


def empty_kernel(threads: int) -> Kernel:
    """Y[r, 0] = X[r, 0], row r by thread r."""
    buffers = tuple(Buffer(name, DType.F32, (threads, LINE), Scope.OPERAND) for name in ("X", "Y"))
    at = (Name("r"), Name("j"))
    copy = Compute(Access("Y", at), Access("X", at), (Axis("j", Num(0), Num(1), 1, 1, 1),))
    rows = Loop("r", Num(0), Num(threads), 1, "core", (copy,))
    return Kernel("ceiling.launch", buffers, (), ((rows,),), frozenset("X"), frozenset("Y"))


def launch_cost(threads: int, launches: int = 2000, repetitions: int = 15, cache: Path | str | None = None) -> Ceiling:
    """Microseconds from one launch of an empty kernel to the next, in a program of many."""
    step = single_op_step(LoweredOp((empty_kernel(threads),), ()), {})
    many = replace(step, programs={"run": step.programs["run"] * launches})
    executor = CpuExecutor(many, detect(), threads, cache)
    try:
        executor.run("run")
        each = []
        for _ in range(repetitions):
            start = time.perf_counter()
            executor.run("run")
            each.append((time.perf_counter() - start) / launches * 1e6)
    finally:
        executor.close()
    return Ceiling("launch of an empty kernel", threads, "us", statistics.median(each), min(each), max(each))
