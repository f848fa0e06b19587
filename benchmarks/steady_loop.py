"""The steady state of a matrix product's machine code: the innermost loop around its matrix instructions, and what each
of the loop's instructions is there for. Waits that spin are laid out of line and are not of the steady state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tcomp.autotune.sass import Function, Instruction

MATRIX = ("HGMMA", "QGMMA")
_BARRIERS = {"SYNCS", "WARPGROUP", "BAR", "NOP", "WARPSYNC", "ELECT", "FENCE", "DEPBAR"}
_CONTROL = {"BRA", "ISETP", "UISETP", "BSSY", "BSYNC", "PLOP3", "UPLOP3"}
_COPIES = {"UTMALDG", "LDGSTS", "LDGDEPBAR", "LDG", "STS"}


@dataclass(frozen=True)
class SteadyLoop:
    """The loop's instructions in the order of their addresses."""

    instructions: tuple[Instruction, ...]

    @property
    def matrix(self) -> int:
        """How many of them are matrix instructions of a warpgroup."""
        return sum(i.name in MATRIX for i in self.instructions)

    @property
    def others(self) -> int:
        return len(self.instructions) - self.matrix

    @property
    def others_per_matrix(self) -> float:
        return self.others / self.matrix

    def kinds(self) -> Counter[str]:
        """Instructions by purpose: matrix, descriptors (uniform registers that the next matrix instructions read),
        barriers, copies, control, other."""
        used = {f"UR{u + n}" for i in self.instructions if i.name in MATRIX for u in _descriptors(i) for n in range(4)}
        return Counter(_kind(i, used) for i in self.instructions)


def steady_loop(function: Function) -> SteadyLoop:
    """ValueError when no loop has matrix instructions of a warpgroup."""
    found: list[SteadyLoop] = []
    for b in function.blocks:
        if b.target is None or b.target > b.number:
            continue
        inside = [i for x in function.blocks[b.target : b.number + 1] for i in x.instructions]
        loop = SteadyLoop(tuple(inside))
        if loop.matrix:
            found.append(loop)
    if not found:
        raise ValueError(f"{function.name} has no loop with matrix instructions of a warpgroup")
    return min(found, key=lambda loop: len(loop.instructions))


def _descriptors(i: Instruction) -> list[int]:
    return [int(o[len("gdesc[UR") : -1]) for o in i.operands if o.startswith("gdesc[UR")]


def _kind(i: Instruction, descriptors: set[str]) -> str:
    if i.name in MATRIX:
        return "matrix"
    if i.name in _BARRIERS:
        return "barriers"
    if i.name in _COPIES:
        return "copies"
    if i.operands and i.operands[0] in descriptors:
        return "descriptors"
    return "control" if i.name in _CONTROL else "other"
