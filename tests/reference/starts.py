"""Parameters to start from that no initialiser's zeros and ones hide faults in."""

from __future__ import annotations

import numpy as np

from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.values import stored, values


def start_anywhere(executor: CpuExecutor, random: np.random.Generator) -> dict[str, str]:
    """Initialise, and add normal values (standard deviation 0.1) to every parameter and the same to its master copy.
    Gives the parameters' slots with those of their masters (themselves where there is none)."""
    step = executor.step
    places = {q.slot: q.master or q.slot for q in step.parameters}
    initialise(executor, 3, 1)
    for slot, place in places.items():
        start = values(executor.read(place), step.slots[place].dtype).astype(np.float64)
        start += random.normal(0, 0.1, step.slots[slot].shape)
        for n in {slot, place}:
            executor.write(n, stored(start.astype(np.float32), step.slots[n].dtype))
    return places
