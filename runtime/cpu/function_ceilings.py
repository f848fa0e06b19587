"""Ceilings of exp, tanh, division and the like: evaluations per second of this compiler's own code on cached vectors.

Nothing runs beside the function but a load and a store, so a kernel that evaluates it n times takes at least
n / rate, unless its code is better than the one measured here. The rate says nothing of a better implementation.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Scope
from tcomp.machine.cpu import detect
from tcomp.runtime.cpu.ceilings import Ceiling
from tcomp.runtime.cpu.single import SingleKernel

ELEMENTS = 1024
"""Of each thread: the operands stay in a first-level cache."""


def function_kernel(function: str, lanes: int, threads: int, turns: int) -> Kernel:
    """Y[r, j] = f(X[r, j]), row r by thread r, `turns` times."""
    shape = (threads, ELEMENTS)
    buffers = tuple(Buffer(name, DType.F32, shape, Scope.OPERAND) for name in ("X", "Y"))
    at = (Name("r"), Name("j"))
    x = Access("X", at)
    value: Expr = Binary("/", Num(1.0), x) if function == "divide" else Call(function, (x,))
    axis = Axis("j", Num(0), Num(ELEMENTS), ELEMENTS, 1, lanes)
    again = Loop("turn", Num(0), Num(turns), 1, "seq", (Compute(Access("Y", at), value, (axis,)),))
    rows = Loop("r", Num(0), Num(threads), 1, "core", (again,))
    return Kernel(f"ceiling.{function}", buffers, (), ((rows,),), frozenset("X"), frozenset("Y"))


def function_rate(
    function: str, threads: int, turns: int = 4000, repetitions: int = 7, cache: Path | str | None = None
) -> Ceiling:
    """Evaluations of one of `tcomp.schedule.work.FUNCTIONS` in f32, of all threads together, in G/s."""
    machine = detect()
    with SingleKernel(function_kernel(function, machine.lanes_f32, threads, turns), machine, threads, cache) as kernel:
        kernel.array("X")[...] = 1.25
        kernel.run()
        rates = []
        for _ in range(repetitions):
            start = time.perf_counter()
            kernel.run()
            rates.append(threads * turns * ELEMENTS / (time.perf_counter() - start) / 1e9)
    name = f"{function} f32, {32 * machine.lanes_f32}-bit vectors"
    return Ceiling(name, threads, "G/s", statistics.median(rates), min(rates), max(rates))
