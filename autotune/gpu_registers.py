"""Register pressure of a GPU kernel, from tile IR: what is certain to spill is not worth compiling.

A lower bound, so that nothing is refused which fits. Counted are the tiles that are whole in registers at one time,
with statements in their order: those that a loop carries from turn to turn (written in it, and read before that), and
those that matrix instructions fill or read, while they are needed. Sums in tensor memory count for nothing; pointwise
temporaries come on top. (Lowering refuses what is certain beyond doubt: `gpu/registers.py`.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tcomp.dsl.ast import Access, accesses_in
from tcomp.ir.pairs import paired
from tcomp.ir.tile import Compute, Fragment, Kernel, Loop, Scope
from tcomp.ir.walk import computes, loops_in
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.gpu.registers import collected, limit

BESIDE = 24
"""Registers that a kernel takes beside such tiles: counters, addresses, operands; 26 is the least seen."""


def registers_of(kernel: Kernel) -> int:
    """Registers per thread that the kernel needs at least."""
    tiles = [t for t in kernel.tiles if t.scope is Scope.REGISTERS and t.name not in collected(kernel)]
    sizes = {t.name: _per_thread(t.shape, t.layout, t.dtype.bytes) for t in tiles}
    loops = (loop for phase in kernel.phases for loop in loops_in(phase) if loop.level != "grid")
    most = max((_needed(loop, sizes) for loop in loops), default=0)
    return most + BESIDE if most else 0


def spill_of(kernel: Kernel, machine: GpuMachine) -> str:
    """Why the kernel is certain to spill; empty when it may fit."""
    needed, there = registers_of(kernel), limit(kernel, machine)
    if needed <= there:
        return ""
    return f"its tiles need {needed} registers a thread at least; there are {there}"


def _per_thread(shape: tuple[int, ...], layout: object, width: int) -> int:
    """Registers that a thread's part of a tile takes, values of less than 32 bits side by side."""
    if not isinstance(layout, Fragment):
        return 0
    values = math.prod(s.per_thread(n) for s, n in zip(layout.spreads, shape, strict=True))
    return -(-values * width // 4)


def _needed(loop: Loop, sizes: dict[str, int]) -> int:
    """The most registers that tiles take at one time while the loop runs."""
    body = list(computes(loop.body))
    if (product := paired(loop)) is not None:  # (its results are those of two turns)
        name = product.target.tensor
        sizes = {**sizes, name: 2 * sizes.get(name, 0)}
    stored = {c.target.tensor for c in body}
    written: set[str] = set()
    carried: set[str] = set()
    whole = {c.target.tensor for c in body if c.instruction}
    for c in body:
        read = {a.tensor for a in _reads(c)}
        carried |= (read & stored) - written
        written.add(c.target.tensor)
        whole |= read if c.instruction else set()
    live, most = set(carried), 0
    for c in reversed(body):
        most = max(most, sum(sizes.get(t, 0) for t in (live | {c.target.tensor}) & (whole | carried)))
        live = (live - {c.target.tensor}) | {a.tensor for a in _reads(c)} | carried
    return most


def _reads(c: Compute) -> Iterator[Access]:
    if c.accumulate:
        yield c.target
    for e in (c.value, *((c.guard,) if c.guard is not None else ())):
        yield from accesses_in(e)
