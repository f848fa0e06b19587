"""Where a step's time and bytes go: its kernels' share of the time with their work, its memory over the launches."""

from __future__ import annotations

import statistics
from typing import Any

from tcomp.ir.walk import instruction_of
from tcomp.model.step import Step

REPEATS = 3


def kernel_times(executor: Any) -> list[dict[str, Any]]:
    """Each distinct kernel: `share` of the step's time in all its launches, `flops` and `bytes` of all launches.

    `bytes` is the least a launch must move when nothing of it is in cache (`Kernel.traffic`).
    `executor` has `profile(program)`: label and time of each phase of each launch in turn. Times are medians of
    `REPEATS` runs, launch by launch.
    """
    step: Step = executor.step
    found: dict[str, dict[str, Any]] = {}
    for program in ("micro_first", "update"):
        if program not in step.programs:
            continue
        runs = [[time for _, time in executor.profile(program)] for _ in range(REPEATS)]
        times = iter([statistics.median(column) for column in zip(*runs, strict=True)])
        for launch in step.programs[program]:
            kernel = step.kernels[launch.kernel]
            entry = found.setdefault(
                launch.kernel,
                {
                    "kernel": launch.kernel,
                    "first": launch.label,
                    "instruction": instruction_of(kernel),
                    "launches": 0,
                    "share": 0.0,
                    "flops": 0,
                    "bytes": 0,
                },
            )
            entry["launches"] += 1
            entry["share"] += sum(next(times) for _ in range(_parts(executor, launch.kernel)))
            entry["flops"] += kernel.flops
            entry["bytes"] += kernel.traffic
    whole = sum(e["share"] for e in found.values())
    for e in found.values():
        e["share"] /= whole
    return sorted(found.values(), key=lambda e: -float(e["share"]))


def _parts(executor: Any, kernel: str) -> int:
    """How many phases (CPU) or functions (GPU) a launch of the kernel is."""
    compiled = executor.kernels[kernel]
    return len(compiled.symbols if hasattr(compiled, "symbols") else compiled.functions)


def plan_facts(step: Step) -> dict[str, Any]:
    """Bytes of the plan by kind, and those live at each launch."""
    from tcomp.model.report import live_bytes
    from tcomp.model.step import TEMPORARY

    kinds: dict[str, int] = {}
    for s in step.slots.values():
        if s.kind not in TEMPORARY:
            kinds[s.kind] = kinds.get(s.kind, 0) + s.bytes
    return {
        "arena": step.arena_bytes,
        "lower_bound": step.lower_bound_bytes,
        "kinds": kinds,
        "temporary": step.arena_bytes - sum(kinds.values()),
        "live": [int(n) for n in live_bytes(step)],
    }
