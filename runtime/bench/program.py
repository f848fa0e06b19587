"""The process of one program under measurement, started by `running.py` through an entry module.

It does its first step at once, then reads lines from standard input (`run K`, `profile`,
`stop`) and answers in JSON lines on the descriptor ANSWERS. STARTED is the monotonic clock before it was started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcomp.errors import UserError
from tcomp.runtime.bench.own_program import SUFFIX, OwnProgram
from tcomp.runtime.bench.workload import Workload, load, read_batches

if TYPE_CHECKING:
    from tcomp.model.step import Step
    from tcomp.runtime.device import Device

PROGRAMS = ("tcomp", "eager", "compile", "eager-heap", "compile-heap")
"""`-heap`: PyTorch with a malloc that keeps its pages."""


Build = Callable[[Workload], tuple["Step", "Device"]]
"""How tcomp's step is built, and for which device."""


def main(name: str, folder: Path, started: float, answers: int, build: Build) -> None:
    """The whole life of the process; `build` is for the program `tcomp`."""
    die_with_parent()
    with os.fdopen(answers, "w") as out:
        try:
            serve(name, folder, started, out, build)
        except UserError as e:
            answer(out, {"error": e.message, "hint": e.hint})


def serve(name: str, folder: Path, started: float, out: Any, build: Build) -> None:
    """Make the program, do its first step, then what standard input says."""
    if name.endswith("-heap"):
        keep_heap()
    workload = load(folder)
    program = make(name, workload, folder, build)
    batches = read_batches(workload, folder)
    number = 0

    def steps(count: int) -> dict[str, Any]:
        nonlocal number
        seconds, losses = [], []
        for _ in range(count):
            loss, time_taken = program.run(*batches[number % len(batches)], number)
            losses.append(loss)
            seconds.append(time_taken)
            number += 1
        program.finish()
        return {"seconds": [s for s in seconds if s is not None], "losses": losses, "peak_rss": peak_rss(),
                "device_bytes": program.device_bytes()}  # fmt: skip

    before = time.perf_counter()
    first = steps(1)
    phases = {**program.phases, "first step": time.perf_counter() - before}
    answer(out, {**first, "phases": phases, "since_start": time.monotonic() - started, "clock": program.clock})
    for line in sys.stdin:
        match line.split():
            case ["run", count]:
                answer(out, steps(int(count)))
            case ["profile"]:
                answer(out, program.profile())
            case _:
                break
    program.close()


def make(name: str, workload: Workload, folder: Path, build: Build) -> Any:
    """The program of that name, ready for its first step."""
    if name == "tcomp":
        from tcomp.runtime.bench.tcomp_program import TcompProgram

        return TcompProgram(workload, folder, build)
    if name.endswith(SUFFIX):
        return OwnProgram(Path(name), workload, folder)
    from tcomp.runtime.bench.torch_program import TorchProgram

    return TorchProgram(workload, folder, name.startswith("compile"))


def answer(out: Any, value: dict[str, Any]) -> None:
    json.dump(value, out)
    out.write("\n")
    out.flush()


def peak_rss() -> int:
    """The most bytes this process has had resident. /proc first: getrusage's figure begins with the parent's."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_heap() -> None:
    """glibc's malloc never gives memory back: PyTorch then does not pay for fresh pages in every step."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def die_with_parent() -> None:
    """On Linux: a parent that is killed takes this process along, even while it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
