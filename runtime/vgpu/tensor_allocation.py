"""Which columns of tensor memory each block has allocated (PTX ISA 9.7.16.7): powers of two from 32 on.

The blocks that an SM holds at a time share its 512 columns, and an allocation waits until there are enough. Which
blocks these are is up to the GPU; here as many clusters (or blocks) that follow each other as fit by threads, shared
memory and registers, the latter where the launch says how many. Places are given from the last column
down, so that code that takes the first for granted fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.machine.gpu import machine_for_target
from tcomp.runtime.vgpu.lanes import Array, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Instr

COLUMNS = 512
LEAST = 32
KIND = "tensor memory misuse"


@dataclass(frozen=True)
class Allocation:
    """`columns` columns from `first` on, by `lane` at `instr`."""

    first: int
    columns: int
    lane: int
    instr: Instr


def resident(m: Machine) -> int:
    """How many of the kernel's blocks an SM holds, tensor memory aside."""
    gpu = machine_for_target("sm_100a")
    return max(1, occupancy(gpu, m.launch_registers or 1, m.threads, m.shared_size).blocks)


class Allocations:
    def __init__(self, m: Machine) -> None:
        self.m, self.each = m, resident(m)
        self.owner: Array = np.zeros((m.slots, COLUMNS), bool)
        self.start()

    def start(self) -> None:
        self.owner[:] = False
        self.live: dict[tuple[int, int], Allocation] = {}  # by slot and first column
        self.relinquished: set[int] = set()
        self.waited: set[int] = set()  # slots
        self.last: dict[int, int] = {}  # of each slot, the columns of its last allocation
        self.given: dict[int, Allocation] = {}  # by slot: what the other block of its pair has taken for both
        self.come: dict[int, int] = {}  # of each slot, how many instructions of its pair it has come to
        self.gone: dict[int, int] = {}  # and how many are behind it

    def misuse(self, i: Instr, lane: int, text: str) -> None:
        self.m.finding(KIND, i, np.array([lane]), text)

    def met(self, lane: int) -> bool:
        """A warp has come to an instruction of both blocks of its pair (9.7.16.5: either may wait for the other). Has
        the other one?"""
        slot = int(self.m.slot[lane])
        number = self.gone.get(slot, 0) + 1
        if self.come.get(slot, 0) < number:
            self.come[slot] = number
            self.m.progress += 1
        return self.come.get(slot ^ 1, 0) >= number

    def past(self, lane: int) -> None:
        """That instruction is behind this warp."""
        slot = int(self.m.slot[lane])
        self.gone[slot] = self.come[slot]

    def allocate(self, i: Instr, lane: int, columns: int, paired: bool = False) -> int | None:
        """The first column; None where there is no room now. Both blocks of a pair allocate, and get the same."""
        slot = int(self.m.slot[lane])
        if not LEAST <= columns <= COLUMNS or columns & columns - 1:
            self.misuse(i, lane, f"{columns} columns: it must be a power of two from {LEAST} to {COLUMNS}")
            return 0
        if slot in self.relinquished:
            self.misuse(i, lane, "allocates after tcgen05.relinquish_alloc_permit")
        if columns > self.last.get(slot, COLUMNS):
            self.misuse(i, lane, f"{columns} columns after an allocation of {self.last[slot]}: they may not grow")
        own, beside = [slot, slot ^ 1][: 1 + paired], self.beside(slot)
        if (given := self.given.pop(slot, None)) is not None:
            if given.columns != columns:
                self.misuse(i, lane, f"{columns} columns, where the other block of the pair has {given.columns}")
            self.live[slot, given.first] = Allocation(given.first, given.columns, lane, i)
            self.last[slot] = columns
            return given.first
        if paired:
            beside = np.append(beside, self.beside(slot ^ 1))
        there: Array = np.asarray(self.owner[beside].any(axis=0))
        for first in range(COLUMNS - columns, -1, -columns):
            if not some(there[first : first + columns]):
                self.owner[own, first : first + columns] = True
                found = self.live[slot, first] = Allocation(first, columns, lane, i)
                self.last[slot] = columns
                if paired:
                    self.given[slot ^ 1] = found
                return first
        self.waiting(i, lane, slot)
        return None

    def beside(self, slot: int) -> Array:
        """The slots whose blocks are on the SM of this one."""
        team, rank = divmod(slot, self.m.ranks)
        first = team // self.each * self.each
        return np.arange(first, min(first + self.each, self.m.slots // self.m.ranks)) * self.m.ranks + rank

    def waiting(self, i: Instr, lane: int, slot: int) -> None:
        """A block has to wait for columns that others of its SM have."""
        if not self.owner[self.beside(slot)].any() or slot in self.waited:
            return
        self.waited.add(slot)
        self.m.report.waited_for_columns += 1
        if self.m.ranks > 1 and not self.owner[slot].any():
            self.misuse(
                i,
                lane,
                f"waits for columns that a block of another cluster has, of {self.each} that fit an SM: elsewhere that "
                "cluster may wait so for this one. Take fewer columns, or more shared memory",
            )

    def free(self, i: Instr, lane: int, address: int, columns: int) -> bool:
        slot = int(self.m.slot[lane])
        found = self.live.get((slot, address))
        if found is None or found.columns != columns:
            there = "nothing" if found is None else f"{found.columns} columns"
            self.misuse(i, lane, f"gives back {columns} columns at {address:#x}, where {there} had been allocated")
            return False
        del self.live[slot, address]
        self.owner[slot, address : address + columns] = False
        return True

    def room(self, lane: int) -> str:
        """What a lane that waits in tcgen05.alloc waits for."""
        slot = int(self.m.slot[lane])
        if self.come.get(slot, 0) > self.come.get(slot ^ 1, 0):
            return "waits in `tcgen05.alloc` for the other block of its pair"
        free = COLUMNS - int(self.owner[self.beside(slot)].sum())
        return f"waits in `tcgen05.alloc` for columns of tensor memory, of which {free} are free"

    def finish(self) -> None:
        for a in self.live.values():
            self.misuse(
                a.instr, a.lane, f"the block ended with these {a.columns} columns allocated: tcgen05.dealloc them"
            )
