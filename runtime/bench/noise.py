"""How busy the machine was with something else while a program was measured (/proc/stat; unknown without it)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Noise:
    """Processor seconds taken by others, stolen by the host included, out of all there were."""

    others: float = 0.0
    all: float = 0.0

    @property
    def share(self) -> float:
        """0: the machine was ours alone. 1: nothing was."""
        return min(1.0, max(0.0, self.others / self.all)) if self.all else 0.0

    def add(self, before: tuple[float, float], after: tuple[float, float], own: float) -> None:
        """Take in a span between two `processor_time`s in which the measured program used `own` seconds."""
        self.all += after[1] - before[1]
        self.others += max(0.0, after[0] - before[0] - own)


def processor_time() -> tuple[float, float]:
    """Busy and all processor seconds of the machine since it was started; (0, 0) where unknown."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, idle, wait, irq, soft, steal = (int(x) for x in first[1:9])
    except (OSError, ValueError):
        return 0.0, 0.0
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + soft + steal
    return busy / tick, (busy + idle + wait) / tick
