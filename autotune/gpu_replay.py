"""Warpgroups of an SM replayed instruction by instruction: how long a turn of a wgmma kernel's loop takes.

What a count of instructions cannot tell is what waits for what. Here each consumer warp issues in order, an
instruction when its registers are ready and its unit is free; matrix instructions queue at the one matrix unit and are
awaited where the code waits for their group. One warp stands for the four of its warpgroup, one on each partition of
the SM; warps of other warpgroups, of the same block and of others on the SM, compete with it for the partition's
units. Tiles are taken to be there when they are awaited (`gpu_model` looks at copies). Latencies and rates are those
of the CUDA programming guide's throughput table and of published microbenchmarks of Hopper; none was measured by us.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tcomp.autotune.gpu_model import BARRIER, DRAIN, L2_LATENCY
from tcomp.autotune.sass import Block, Function, Instruction
from tcomp.autotune.sass_registers import registers_read, registers_written

MATRIX = ("HGMMA", "QGMMA", "IGMMA")
WARPGROUP = 128
"""threads"""
TURNS = 32
"""turns of the loop that are replayed; the later half gives the time of one"""
ALU = {
    "FMNMX", "IADD3", "VIADD", "LOP3", "ISETP", "FSETP", "SEL", "FSEL", "SHF", "F2FP", "PLOP3", "LEA", "PRMT",
    "IMNMX", "VIMNMX", "MOV",
}  # fmt: skip
"""Instructions of the half-rate unit for integers, comparisons and conversions."""
LATENCY = {
    "LDG": L2_LATENCY,
    "MUFU": 18,
    "SHFL": 23,
    "LDS": 29,
    "LDSM": 33,
    "S2R": 20,
    "R2UR": 10,
    "SYNCS": 20,
    "LDC": 30,
}
FIXED = 4.5
"""cycles until the result of an ordinary instruction can be read"""
BRANCH = 10.0
"""cycles that a taken branch costs its warp"""


@dataclass(frozen=True)
class Step:
    """One instruction as the replay sees it: `busy` cycles of `unit`, `latency` until its results are there."""

    unit: str
    busy: float
    latency: float
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    matrix: float = 0.0
    """cycles of the matrix unit"""
    commits: bool = False
    waits: int | None = None
    """groups that may be pending after it"""
    meets: bool = False
    """waits for the other warpgroups of its block"""
    pause: float = 0.0
    """cycles that its warps wait for each other"""


def step_of(i: Instruction, matrix: float) -> Step:
    """`matrix`: cycles of the SM's matrix unit, where it is such an instruction."""
    name = i.name
    commits = any("gsb0" in o for o in i.operands)
    reads, writes = registers_read(i), tuple(registers_written(i))
    if name in MATRIX:
        return Step("issue", 1.0, 0.0, (), (), matrix, commits)
    if name == "WARPGROUP" and "DEPBAR" in i.opcode:
        return Step("issue", 1.0, 0.0, (), (), waits=int(i.operands[-1], 16))
    if name == "BAR" and "SYNC" in i.opcode:
        threads = int(i.operands[1], 16) if len(i.operands) > 1 and i.operands[1].startswith("0x") else 0
        if threads == WARPGROUP:
            return Step("issue", 1.0, 0.0, (), (), pause=BARRIER)
        return Step("issue", 1.0, 0.0, (), (), meets=True)
    if name == "MUFU":
        return Step("special", 8.0, LATENCY["MUFU"], reads, writes)
    if name in ALU:
        return Step("alu", 2.0, FIXED, reads, writes)
    if name == "BRA":
        return Step("issue", 1.0, BRANCH, reads, ())
    return Step("issue", 1.0, LATENCY.get(name, FIXED), reads, writes)


@dataclass
class Warp:
    """One that stands for the four of its warpgroup. `trace`: block numbers in the order of its way; `at`: cycles."""

    trace: Sequence[int]
    place: int = 0
    step: int = 0
    at: float = 0.0
    ready: dict[str, float] = field(default_factory=dict)
    groups: list[float] = field(default_factory=list)
    """when each committed group ends"""
    open: float = 0.0
    entered: list[float] = field(default_factory=list)
    """when each turn began"""


@dataclass(frozen=True)
class Replay:
    """`turns` of a warpgroup's loop (a first one apart from it counted), `cycles` of one, `groups` of matrix
    instructions that one issues."""

    turns: int
    cycles: float
    groups: float


def replay(function: Function, ways: Sequence[Sequence[int]], blocks: int, matrix: dict[int, float]) -> Replay | None:
    """The loop that is entered most often of those with matrix instructions, with so many blocks on the SM; `ways` are
    those of a block's warpgroups. None where there is no such loop. `matrix`: cycles of the matrix unit by the address
    of an instruction."""
    head = _head(function, ways[0])
    if head is None or any(head not in way for way in ways):
        return None
    traces, way = [], ways[0]
    places = [n for n, b in enumerate(way) if b == head]
    first = places[0]
    for own in ways:
        at = [n for n, b in enumerate(own) if b == head]
        traces.append(own[at[0] : (at[TURNS] if len(at) > TURNS else at[-1]) + 1])
    steps = {b: _steps(function.blocks[b], matrix) for b in set().union(*traces)}
    warps = [Warp(trace) for _ in range(blocks) for trace in traces]
    run(warps, steps, head, len(ways))
    entered = [w.entered for w in warps]
    turns = min(len(e) for e in entered) - 1
    if turns < 1:
        return None
    half = turns // 2
    cycles = sum((e[turns] - e[half]) / (turns - half) for e in entered) / len(entered)
    apart = {b for b in way[:first] if any(i.name in MATRIX for i in function.blocks[b].instructions)}
    return Replay(len(places) + bool(apart), cycles, len(warps[0].groups) / (len(warps[0].entered) - 1))


def run(warps: Sequence[Warp], steps: Mapping[int, Sequence[Step]], head: int | None, block: int) -> None:
    """Replay the warps of a partition together, `block` neighbours being of one block, to the ends of their ways.
    `steps` are those of each block of code; `head` is the one that begins a turn."""
    unit_free: dict[str, float] = {}
    queue = [(0.0, w) for w in range(len(warps)) if warps[w].trace]
    matrix_free = 0.0
    met: dict[int, list[int]] = {}
    """of each block, the warpgroups at its barrier"""
    while queue:
        _, w = heapq.heappop(queue)
        warp = warps[w]
        place = warp.trace[warp.place]
        if warp.step == 0 and place == head:
            warp.entered.append(warp.at)
        body = steps[place]
        if warp.step < len(body):
            s = body[warp.step]
            start = max([warp.at, unit_free.get(s.unit, 0.0), *(warp.ready.get(r, 0.0) for r in s.reads)])
            issue = max(start, unit_free.get("issue", 0.0))
            if issue > warp.at + 1.0:  # another warp may come first: look again when this one can go on
                warp.at = issue
                heapq.heappush(queue, (issue, w))
                continue
            unit_free["issue"] = issue + 1.0
            unit_free[s.unit] = max(unit_free.get(s.unit, 0.0), issue + s.busy)
            warp.at = issue + 1.0
            if s.matrix:
                idle = issue >= matrix_free
                matrix_free = (issue + DRAIN / 2 if idle else matrix_free) + s.matrix
                warp.open = matrix_free
            if s.commits:
                warp.groups.append(warp.open)
            if s.waits is not None and len(warp.groups) > s.waits:
                warp.at = max(warp.at, warp.groups[len(warp.groups) - s.waits - 1] + DRAIN / 2)
            for r in s.writes:
                warp.ready[r] = issue + s.latency
            if s.unit == "issue" and s.latency == BRANCH:
                warp.at += BRANCH
            warp.at += s.pause
            warp.step += 1
        meets = bool(body) and body[warp.step - 1].meets
        if warp.step >= len(body):
            warp.place, warp.step = warp.place + 1, 0
        if meets and block > 1:
            there = met.setdefault(w // block, [])
            there.append(w)
            if len(there) < block:
                continue
            last_there = max(warps[o].at for o in there) + BARRIER
            for o in there:
                warps[o].at = last_there
                if warps[o].place < len(warps[o].trace):
                    heapq.heappush(queue, (last_there, o))
            there.clear()
            continue
        if warp.place < len(warp.trace):
            heapq.heappush(queue, (warp.at, w))


def _steps(block: Block, matrix: dict[int, float]) -> list[Step]:
    return [step_of(i, matrix.get(i.address, 0.0)) for i in block.instructions]


def _head(function: Function, way: Sequence[int]) -> int | None:
    """The block with matrix instructions that is entered most often."""
    visits: dict[int, int] = {}
    for b in way:
        visits[b] = visits.get(b, 0) + 1
    heads = [b for b in visits if any(i.name in MATRIX for i in function.blocks[b].instructions) and visits[b] > 1]
    return max(heads, key=lambda b: visits[b], default=None)
