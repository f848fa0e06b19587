"""What a kernel takes of the machine: registers, spills, stack and barriers from the assembler's log, static shared
memory from the cubin.

The log is ptxas's own (`-v`), function by function, followed by nvJitLink's summary of the linked kernels, which is
passed over: its figures for barriers and shared memory are other things than a kernel's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tcomp.codegen.nvptx.assembly.cubin import static_shared


@dataclass(frozen=True)
class Resources:
    """One function of a module. `stack_bytes` is local memory per thread, spilled registers included."""

    symbol: str
    registers: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    """static shared memory; dynamic shared memory is the launch's"""
    barriers: int = 0
    entry: bool = True
    """False for a device function that a kernel calls"""

    @property
    def spills(self) -> bool:
        return self.spill_store_bytes + self.spill_load_bytes > 0


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_PROPERTIES = re.compile(r"Function properties for '?([^'\s]+?)'?:?\s*$")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
_BARRIERS = re.compile(r"used (\d+) barriers")


def resources_of(log: str, cubin: bytes, sm: int) -> tuple[Resources, ...]:
    """The functions of an assembled module, kernels and others, in the log's order."""
    shared = static_shared(cubin, sm)
    return tuple(replace(r, shared_bytes=shared.get(r.symbol, 0)) for r in parse_log(log))


def parse_log(log: str) -> tuple[Resources, ...]:
    """One entry per function in the log, in its order. Lines that say nothing of resources are passed over."""
    found: dict[str, Resources] = {}
    entries: set[str] = set()
    current = ""
    for line in log.splitlines():
        if m := _ENTRY.search(line):
            entries.add(m[1])
            current = m[1]
            found.setdefault(current, Resources(current))
        elif m := _PROPERTIES.search(line):
            current = m[1]
            found.setdefault(current, Resources(current))
        elif current:
            found[current] = _line(line, found[current])
    return tuple(replace(r, entry=r.symbol in entries) for r in found.values())


def _line(line: str, r: Resources) -> Resources:
    if m := _FRAME.search(line):
        return replace(r, stack_bytes=int(m[1]), spill_store_bytes=int(m[2]), spill_load_bytes=int(m[3]))
    if m := _USED.search(line):
        barriers = _BARRIERS.search(line)
        return replace(r, registers=int(m[1]), barriers=int(barriers[1]) if barriers else 0)
    return r
