"""How often a warp issues each instruction of a kernel.

`Walk` follows one warp's path through the blocks with only the values that branches depend on: constants, thread and
block numbers, loop counters. What a branch depends on beyond those is unknown; then a backward branch (a wait that
spins) is left, and a forward one is not taken, but where it depends on data (a loaded value, a comparison of floats):
such a branch goes around a rare case. So the counts are exact for loops whose bounds were known when the code was
built, which is all of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tcomp.autotune.sass import Block, Function, Instruction
from tcomp.autotune.sass_operands import State
from tcomp.autotune.sass_steps import Branch, decoded

STEPS = 200_000
"""Blocks that one walk may pass; a kernel that takes more is cut off and said to be."""


@dataclass(frozen=True)
class Way:
    """How often a warp enters each block, how often a guard is known to hold back a memory or matrix instruction (by
    address), and whether any branch was unknown or the walk was cut off."""

    visits: Mapping[int, int]
    held_back: Mapping[int, int]
    unknown: int = 0
    cut: bool = False
    path: tuple[int, ...] = ()
    """the blocks in the order in which they are entered"""

    def times(self, block: Block, i: Instruction) -> int:
        """How often the warp issues an instruction of a block."""
        return self.visits.get(block.number, 0) - self.held_back.get(i.address, 0)


ROWS = 64
"""of a warpgroup, whose warps wait for each other at the next product"""


def new_maximum(turn: int, rows: int = ROWS) -> float:
    """How likely one of the rows has a new maximum in that turn (from 1), of values in no order."""
    return 1.0 - (1.0 - 1.0 / turn) ** rows


class Walk:
    """One warp's way. `special` gives special registers (SR_TID.X, SR_CTAID.X, ...) and `constants` known words of the
    constant bank by offset."""

    def __init__(self, function: Function, special: Mapping[str, int], constants: Mapping[int, int]) -> None:
        self.function, self.state = function, State(special, constants)

    def run(self) -> Way:
        """Follow the way from the entry to the exit."""
        visits: Counter[int] = Counter()
        held: Counter[int] = Counter()
        unknown, steps = 0, 0
        asked, due = 0, 0.0
        path: list[int] = []
        state, every = self.state, decoded(self.function)
        at: int | None = 0
        while at is not None:
            steps += 1
            if steps > STEPS:
                return Way(visits, held, unknown, True, tuple(path))
            block, code = self.function.blocks[at], every[at]
            visits[at] += 1
            path.append(at)
            for step in code.steps:
                if step.evaluate is None:
                    held[step.address] += step.guard is not None and step.guard(state) is False
                else:
                    step.execute(state)
            branch = code.branch
            if branch is None:
                at = block.next
                continue
            if block.jumps:
                at = self._jump(block, branch)
                unknown += at is None
                continue
            taken = branch.taken(state)
            if taken is None:
                unknown += 1
                taken = self._around(branch, at, block.target)
                if taken and branch.rescales:
                    asked += 1
                    due += new_maximum(asked)
                    taken = due < 1.0
                    due -= not taken
            if branch.name != "BRA":
                at = None if taken else block.next
            else:
                at = block.target if taken else block.next
        return Way(visits, held, unknown, False, tuple(path))

    def _jump(self, block: Block, branch: Branch) -> int | None:
        """Where a jump through a table leads; None where its place there is not known."""
        place = next((self.state.tables[r] for r in branch.place if r in self.state.tables), None)
        return block.jumps[place] if place is not None and place < len(block.jumps) else None

    def _around(self, branch: Branch, at: int, target: int | None) -> bool:
        """Whether an unknown branch goes around what data decides, to a later place."""
        return target is not None and target > at and not branch.named.isdisjoint(self.state.data)


def issued(function: Function, path: Way) -> Counter[str]:
    """Opcode -> how often the warp issues it."""
    out: Counter[str] = Counter()
    for number in path.visits:
        for i in function.blocks[number].instructions:
            out[i.opcode] += path.times(function.blocks[number], i)
    return out
