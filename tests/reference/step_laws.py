"""What must hold of any built step, whatever its model: memory that is live is nobody else's, kernels read nothing that
is dead and write nothing but their results, and launches wait for the shares of an update that they need.

Nothing here knows how a plan is made: it goes by the slots of a `Step`, the places of operands, and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.ir.shares import flat_shares
from tcomp.machine.cpu import CpuMachine
from tcomp.model.report import pieces
from tcomp.model.step import SHARED_BY_RANKS, Launch, Slot, Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.cpu.whole_steps import Entry, WholeSteps

DEAD = 0xFF  # bytes of which floats of all widths are no numbers


def positions(step: Step) -> dict[str, tuple[int, tuple[Launch, ...]]]:
    """The programs whose launches slots know of: position of the first, and all."""
    found, end = {}, 0
    for name in ("micro_first", *SHARED_BY_RANKS):
        if name in step.programs:
            found[name] = (end, step.programs[name])
            end += len(step.programs[name])
    return found


def faults_of_plan(step: Step) -> Iterator[str]:
    """Slots that are live at a time have bytes of their own, and operands lie in slots that are live."""
    slots = sorted(pieces(step), key=lambda s: s.offset)
    for i, a in enumerate(slots):
        if a.offset + a.bytes > step.arena_bytes:
            yield f"{a.name} ends behind the arena"
        for b in slots[i + 1 :]:
            if b.offset >= a.offset + a.bytes:
                break
            early, late = sorted((a, b), key=lambda s: s.first)
            handed = late.first == early.last and (early.offset, early.bytes) == (late.offset, late.bytes)
            if late.first <= early.last and not handed:
                yield f"{a.name} and {b.name} share bytes at launch {late.first}"
    for start, launches in positions(step).values():
        for i, launch in enumerate(launches, start):
            kernel = step.kernels[launch.kernel]
            live = np.zeros(step.arena_bytes, bool)
            for s in slots:
                if s.first <= i <= s.last:
                    live[s.offset : s.offset + s.bytes] = True
            for at, size in step.zeros():
                live[at : at + size] = True
            for o, at in zip(kernel.operands, launch.offsets, strict=True):
                if not live[at : at + o.bytes].all():
                    yield f"{launch.label}: {o.name} is not in memory that is live"


def faults_of_waits(step: Step) -> Iterator[str]:
    """In steps that overlap no entry runs before the shares of the update that it needs, each of which runs once."""
    whole = WholeSteps(step, -(1 << 20))
    for update in (True, False):
        program = whole.program("micro_first", pending=True, update=update)
        beside = [(touched(step, e, False), touched(step, e, True)) for e in program.side]
        for i, e in enumerate(program.entries):
            if i < program.fork and not e.parts:
                continue
            reads, writes = touched(step, e, False), touched(step, e, True)
            for k, (other_reads, other_writes) in enumerate(beside):
                if i >= program.fork and (meet(writes, other_reads) or meet(reads, other_writes)) and e.needs <= k:
                    yield f"{e.launch.label} does not wait for {program.side[k].launch.label}"
        for d, launch in enumerate(whole.later):
            mine = [e for e in (*program.entries, *program.side) if e.region == len(whole.now) + d and e.parts]
            done = sorted(j for e in mine for j in range(e.first, e.last))
            if mine and done != list(range(mine[0].parts)):
                yield f"shares of {launch.label} run as {done}"
        yield from _before_the_fork(step, program.entries[: program.fork], beside, program)


def _before_the_fork(step: Step, entries: Any, beside: Any, program: Any) -> Iterator[str]:
    """What runs before threads part needs no share that runs beside, but for rows that are chosen."""
    for e in entries:
        if e.parts or e.region >= 0:
            continue
        kernel = step.kernels[e.launch.kernel]
        writes = touched(step, e, True)
        for o, at in zip(kernel.operands, e.launch.offsets, strict=True):
            reads = [(at, at + o.bytes)]
            chosen = o.name in kernel.reads and any(c.base >= 0 for c in program.chosen) and len(o.shape) > 1
            for k, (other_reads, other_writes) in enumerate(beside):
                if (meet(writes, other_reads) or meet(reads, other_writes)) and not chosen:
                    yield f"{e.launch.label} runs before {program.side[k].launch.label}, of which it reads {o.name}"
                    return


def touched(step: Step, e: Entry, written: bool) -> list[tuple[int, int]]:
    """Bytes of vectors and tensors that an entry writes, or else touches."""
    kernel = step.kernels[e.launch.kernel]
    ranges = []
    for o, at in zip(kernel.operands, e.launch.offsets, strict=True):
        if not o.shape or (written and o.name not in kernel.writes):
            continue
        if e.parts:
            shares = flat_shares(kernel, e.phase)
            assert shares is not None
            if o.name in shares.reads | shares.writes:
                size = o.dtype.bytes
                ranges.append((at + shares.start(e.first, e.parts) * size, at + shares.start(e.last, e.parts) * size))
        else:
            ranges.append((at, at + o.bytes))
    return ranges


def meet(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> bool:
    return any(x < t and y < s for x, s in a for y, t in b)


class Poisoned:
    """Runs a step launch by launch. Before each, all memory that is dead there, scratch included, is filled with what
    is no number; behind it, all that the launch does not say it writes must be as it was."""

    def __init__(self, step: Step, machine: CpuMachine, threads: int, cache: Path) -> None:
        self.step = step
        programs = {
            f"{name} {i}": (launch,)
            for name, (_, launches) in positions(step).items()
            for i, launch in enumerate(launches)
        }
        self.executor = CpuExecutor(replace(step, programs=programs), machine, threads, cache)
        self.slots: list[Slot] = pieces(step)
        self.free: set[str] = {s.name for s in self.slots if s.kind in ("activation", "workspace")}
        self.free |= {s.name for s in step.gradients}

    def faults(self) -> Iterator[str]:
        executor = self.executor
        executor._ready()
        arena: NDArray[np.uint8] = np.frombuffer(executor._arena.buffer, np.uint8)
        scratch: NDArray[np.uint8] = np.frombuffer(executor._scratch.buffer, np.uint8)
        team: NDArray[np.uint8] = np.frombuffer(executor._region.buffer, np.uint8)
        edge = max((k.scratch_bytes for k in executor.kernels.values()), default=0)
        for name, (start, launches) in positions(self.step).items():
            for i, launch in enumerate(launches):
                dead = np.zeros(self.step.arena_bytes, bool)
                for s in self.slots:
                    if s.name in self.free:
                        dead[s.offset : s.offset + s.bytes] = True
                for s in self.slots:
                    if s.first <= start + i <= s.last:
                        dead[s.offset : s.offset + s.bytes] = False
                arena[dead] = DEAD
                scratch[...] = DEAD
                team[...] = DEAD
                before = arena.copy()
                executor.run(f"{name} {i}")
                kernel = self.step.kernels[launch.kernel]
                changed = arena != before
                for o, at in zip(kernel.operands, launch.offsets, strict=True):
                    if o.name in kernel.writes:
                        changed[at : at + o.bytes] = False
                if changed.any():
                    yield f"{launch.label} writes to bytes {np.flatnonzero(changed)[:4]}, which are not its results"
                for t in range(executor.threads):
                    if (scratch[t * executor._stride + edge : (t + 1) * executor._stride] != DEAD).any():
                        yield f"{launch.label} writes behind its scratch"
