"""Which of several processes this one is, as torchrun says it in the environment. Needs no torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tcomp.errors import UserError

_LAUNCH = "start it by torchrun --nproc-per-node 2 -m tcomp train ..., which sets them all"
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Process `rank` of `size`, and `local` of the `beside` on this machine."""

    rank: int
    size: int
    local: int
    beside: int


def place_here(environment: Mapping[str, str] | None = None) -> Place | None:
    """This process's place; None where it is by itself. UserError for an environment that contradicts itself."""
    env = os.environ if environment is None else environment
    if "WORLD_SIZE" not in env and "RANK" not in env:
        return None
    missing = [name for name in _NEEDED if not env.get(name)]
    if missing and env.get("WORLD_SIZE") == "1":
        return None
    if missing:
        raise UserError(
            f"the environment says that several processes train together, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set",
            f"{_LAUNCH}; for one process alone: unset WORLD_SIZE RANK",
        )
    try:
        rank, size, local, beside = (int(env[name]) for name in _NEEDED[:4])
    except ValueError:
        rank, size, local, beside = -1, 0, 0, 0
    if not (0 <= rank < size and 0 <= local < beside <= size):
        raise UserError(
            "the environment's " + ", ".join(f"{name}={env[name]}" for name in _NEEDED[:4]) + " are no process's place",
            _LAUNCH,
        )
    return Place(rank, size, local, beside) if size > 1 else None


def machine_here() -> str:
    """What tells this machine from others."""
    boot = Path("/proc/sys/kernel/random/boot_id")  # names of machines may be all the same
    with suppress(OSError):
        return f"{platform.node()} {boot.read_text().strip()}"
    return platform.node()


def cpus_here() -> str:
    """This machine, and the CPUs of it that this process may use: what several launchers may have given out twice."""
    return f"{machine_here()} {_allowed()}"


def among(place: Place, cpus: Sequence[str]) -> Place:
    """The place among all ranks that have the same CPUs, whichever launcher started them; `cpus` are theirs, by rank
    (`cpus_here`)."""
    same = [rank for rank, found in enumerate(cpus) if found == cpus[place.rank]]
    return replace(place, local=same.index(place.rank), beside=len(same))


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def keep_to_own_cpus(place: Place) -> None:
    """Let this process run on its part of the CPUs only; on one CPU that others have as well, where they are too few
    (with a thread for each CPU in every process, threads that wait for each other would keep others from running)."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = _allowed()
    each = max(1, len(allowed) // place.beside)
    first = place.local * each % len(allowed)
    with suppress(OSError):  # a container may not let it
        os.sched_setaffinity(0, allowed[first : first + each])
