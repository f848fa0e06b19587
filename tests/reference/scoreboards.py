"""Which loads of shared memory are still out when a ring's place is handed back: from the control bits of machine code.

An instruction of variable latency counts a scoreboard up and down; another waits until those in its mask are at zero.
Bits of an instruction's upper word, from 41 on: stall (4), yield (1), scoreboard of what it writes (3; 7: none), of
what it reads (3), mask of what it waits for (6). As in Jia et al., "Dissecting the NVIDIA Volta GPU architecture via
microbenchmarking".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/")
UPPER = re.compile(r"/\* 0x([0-9a-f]{16}) \*/")
GUARD = r"(@!?U?P\w+\s+)?"
LOAD = re.compile(GUARD + r"LDSM?\b")
HANDED_BACK = re.compile(GUARD + r"SYNCS\.ARRIVE\.TRANS64\.(RED\.)?A1T0")
LEAVES = re.compile(r"(BRA|EXIT|RET|BSYNC)\b")
NONE = 7


@dataclass(frozen=True)
class Instruction:
    text: str
    writes: int
    waits: int


def instructions(encoded: str) -> list[Instruction]:
    """Of `nvdisasm --print-instruction-encoding`, in the order of their addresses."""
    found = []
    for line, following in pairwise(encoded.splitlines()):
        match, upper = LINE.match(line), UPPER.search(following)
        if match and upper:
            control = int(upper[1], 16) >> 41
            found.append(Instruction(match[1], control >> 5 & 7, control >> 11 & 63))
    return found


def out_when_handed_back(encoded: str) -> list[tuple[str, str]]:
    """Pairs of a load and of the arrival before which nothing has waited for it."""
    out: dict[int, str] = {}
    found = []
    for i in instructions(encoded):
        out = {board: text for board, text in out.items() if not i.waits >> board & 1}
        if HANDED_BACK.match(i.text):
            found += [(load, i.text) for load in out.values()]
        if LOAD.match(i.text) and i.writes != NONE:
            out[i.writes] = i.text
        if LEAVES.match(i.text):
            out = {}
    return found
