"""Steps that overlap (`whole_steps.py`) as lists that native code reads, and what memory they need beside the arena."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import numpy as np

from tcomp.model.step import Step
from tcomp.runtime.cpu.memory import Region
from tcomp.runtime.cpu.team import FIELDS, Native, NativeProgram, Rows, native_program
from tcomp.runtime.cpu.whole_steps import SHADOW, Entry, Program, WholeSteps

LIST, LAST, NEEDS = (FIELDS.index(name) for name in ("list", "last", "needs"))


class NativeSteps:
    """Programs of a step whose kernels' phases are at `addresses`. Their own memory holds scalars copied, and what the
    phases of each of the update's launches have in common (`team_bytes` by kernel)."""

    def __init__(
        self, step: Step, arena: Region, addresses: dict[str, tuple[int, ...]], team_bytes: dict[str, int]
    ) -> None:
        kernels = [step.kernels[x.kernel] for x in step.programs["update"]]
        sizes = [-(-team_bytes[x.kernel] // SHADOW) * SHADOW for x in step.programs["update"]]
        scalars = SHADOW * sum(not o.shape for k in kernels for o in k.operands)
        self._memory = Region(scalars + sum(sizes), "update")
        self._arena, self._addresses = arena, addresses
        self.steps = WholeSteps(step, self._memory.address - self._arena.address)
        self._regions = list(accumulate(sizes, initial=self._memory.address + scalars))
        self._programs: dict[tuple[str, bool, bool], tuple[Program, NativeProgram]] = {}
        self.rest = self._native(self.steps.rest())

    def native(self, name: str, pending: bool, update: bool) -> NativeProgram:
        """A program with what comes before and behind it, for the inputs that are there now."""
        key = name, pending, update
        if key not in self._programs:
            program = self.steps.program(*key)
            self._programs[key] = program, self._native(program)
        program, native = self._programs[key]
        return self._chosen(program, native) if program.chosen else native

    def copy_scalars(self) -> None:
        """Keep the scalars that the work that is left reads."""
        for i, (at, size) in enumerate(self.steps.scalars.items()):
            self._memory.buffer[SHADOW * i : SHADOW * i + size] = self._arena.buffer[at : at + size]

    def _chosen(self, program: Program, native: NativeProgram) -> NativeProgram:
        """The program with what the inputs choose in front, and not beside."""
        launches = native.launches.copy()
        beside = np.ones(len(native.side), np.bool_)
        lists: list[Rows] = []
        for c in program.chosen:
            found = c.among(np.frombuffer(self._arena.buffer, np.int32, c.count, c.at).astype(np.int64))
            found = found[beside[c.places[found]]]
            beside[c.places[found]] = False
            lists.append(found)
            launches[c.entry, LIST], launches[c.entry, LAST] = found.ctypes.data, len(found)
        wanted = np.array(program.wanted, np.int64)[beside]
        launches[:, NEEDS] = np.searchsorted(wanted, program.turns, side="right")
        return replace(native, launches=launches, side=native.side[beside], keep=(native.keep, lists))

    def _native(self, program: Program) -> NativeProgram:
        def native(e: Entry) -> Native:
            team = self._regions[e.region] if e.region >= 0 else 0
            address = self._addresses[e.launch.kernel][e.phase]
            return Native(address, e.launch.offsets, team, e.parts, e.first, e.last, e.needs)

        return native_program([native(e) for e in program.entries], [native(e) for e in program.side], program.fork)
