"""What a launch finds when it runs: a clock that falls under the load of the matrix units, and a cache full of what the
launch before it has written.

Constants are fitted to what an H100 measured (docs/measurements/h100.md); of other GPUs they are assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.machine.gpu import GpuMachine

POWER_DROP = 0.227
"""Share of its highest clock that an H100 gives up while its matrix units are busy all the time, in proportion less
when they are not: one constant, fitted to the clocks that a profiler read for ten kernels (1.57 GHz at 85% of the
matrix units' cycles, 1.63 at 74%, 1.77 to 1.81 at 25 to 62%, 1.98 without), which it has within 5%."""
STEP_DROP = 0.26
"""The same of a whole step, for the share of the time that its matrix products need at the least: power is held over
milliseconds, so that launches which ask for little do not run faster for it (fitted to attention, both ways: it takes
1.07 and 1.15 times as long in bf16's step as alone)."""
RATED = 0.96
"""Sustained clock over the rated one, where a GPU's highest clock is not known."""
DIRTY = 0.3
"""Share of L2 that launches leave at most full of what they wrote and memory does not have: profiles of five launches
have 10 to 18 of 50 MiB, and passes that only read take longer by 12 to 20 MB behind others."""


FILLED = 0.85
"""The same behind a fill of more than L2, which leaves nothing else there (fitted to passes that were timed so)."""


def clock_under_load(machine: GpuMachine, busy: float) -> float:
    """Hertz of a launch that keeps the matrix units busy for a share `busy` of its cycles."""
    if not machine.max_clock_hz:
        return machine.clock_hz * RATED
    return machine.max_clock_hz * (1.0 - POWER_DROP * min(1.0, busy))


def clock_of_step(machine: GpuMachine, busy: float) -> float:
    """Hertz at most of any launch in a step whose matrix products need a share `busy` of the time at the least."""
    if not machine.max_clock_hz:
        return machine.clock_hz * RATED
    return machine.max_clock_hz * (1.0 - STEP_DROP * min(1.0, busy))


@dataclass(frozen=True)
class Moves:
    """Bytes that a launch reads and writes, each once."""

    read: float
    written: float


def left_in_cache(before: float, moves: Moves, machine: GpuMachine) -> float:
    """Bytes of what launches wrote that are still to be written to memory when this one ends, of `before` when it
    began: what it brings into L2 drives as much of that out."""
    kept = max(0.0, before - moves.read - moves.written)
    return min(kept + moves.written, max(kept, DIRTY * machine.l2_bytes))


def flushed(machine: GpuMachine) -> float:
    """Bytes left when L2 was filled to clear it."""
    return FILLED * machine.l2_bytes


def settled(launches: Sequence[Moves], machine: GpuMachine) -> list[float]:
    """Bytes left when each of the launches begins, which run in this order again and again."""
    left, found = DIRTY * machine.l2_bytes, [0.0] * len(launches)
    for _ in range(2):
        for i, moves in enumerate(launches):
            found[i] = left
            left = left_in_cache(left, moves, machine)
    return found
