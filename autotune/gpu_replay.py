"""Warps of an SM replayed instruction by instruction: how long a turn of a matrix product's loop takes.

What a count of instructions cannot tell is what waits for what. Here each warp issues in order, an instruction when its
registers are ready and its unit is free; a warpgroup's matrix instructions queue at the one matrix unit and are awaited
where the code waits for their group, a warp's own (mma.sync) are awaited by their registers. One warp stands for four,
one on each partition of the SM; the others of its block, and those of other blocks on the SM, compete with it for the
partition's units. Tiles are taken to be there when they are awaited (`gpu_model` looks at copies). Latencies and rates
are those of the CUDA programming guide's throughput table and of published microbenchmarks; none was measured by us.
"""

from __future__ import annotations

import heapq
import re
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from tcomp.autotune.gpu_model import BARRIER, DRAIN, L2_LATENCY, tensor_cycles
from tcomp.autotune.opcodes import MATRIX, WARPGROUP_MATRIX, matrix_cycles, shared_bytes
from tcomp.autotune.sass import Function, Instruction
from tcomp.autotune.sass_descriptors import TENSOR_MEMORY_MATRIX, described
from tcomp.autotune.sass_registers import all_read, all_written
from tcomp.machine.gpu import GpuMachine

WARPGROUP = 128
"""threads"""
TURNS = 32
"""turns of the loop that are replayed, of its middle; the later half gives the time of one"""
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
MATRIX_LATENCY = 33.0
"""Cycles until the sums of an mma.sync can be read (published for m16n8k16 on an A100); longer where its unit is."""
FMA = {"FFMA", "FADD", "FMUL", "IMAD"}
QUEUE = 4
"""Memory instructions that wait in a partition's queue while one is served: a fifth does not hold its warp up
(published)."""
FIXED = 4.5
"""cycles until the result of an ordinary instruction can be read"""
TENSOR_BYTES, TENSOR_LATENCY = 128.0, 30.0
"""of tensor memory: bytes a cycle for each partition, and cycles until what is loaded is there; assumed, as no kernel
has been measured"""
_PRODUCTS = MATRIX | TENSOR_MEMORY_MATRIX
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
    queues: bool = False
    """goes on while earlier ones are served"""
    asks: bool = False
    """looks whether a phase of an mbarrier is over"""
    takes: bool = False
    """moves cells of tensor memory; behind such a look, the oldest products have ended"""


def tensor_step(function: Function, i: Instruction, machine: GpuMachine) -> Step | None:
    """The same of what warpgroups do with products of their own by way of tensor memory; None for all else. A product
    takes the tensor core, or longer shared memory, which its operands come from."""
    if i.name in TENSOR_MEMORY_MATRIX:
        m, n, k, kind = described(function, i)
        rows = n + (0 if i.operands[0].startswith("tmem") else m)
        read = rows * k * {"tf32": 4, "e4m3": 1, "e5m2": 1}.get(kind, 2) / machine.shared_per_clock
        return Step("issue", 1.0, 0.0, (), (), max(tensor_cycles(2.0 * m * n * k, kind, machine, "tcgen05"), read))
    if i.name == "UTCBAR":
        return Step("issue", 1.0, 0.0, (), (), commits=True)
    if i.name == "SYNCS" and "PHASECHK" in i.opcode:
        return Step("issue", 1.0, LATENCY["SYNCS"], (), (), asks=True)
    if i.name in ("LDTM", "STTM"):
        lanes, bits, times = (int(x) for x in re.findall(r"(\d+)dp(\d+)bit\.x(\d+)", i.opcode)[0])
        busy = lanes * bits / 8 * times / TENSOR_BYTES
        return Step("tensor memory", busy, 0.0, (), (), pause=busy + TENSOR_LATENCY, takes=True)
    return None


def step_of(i: Instruction, machine: GpuMachine) -> Step:
    """What an instruction asks of a partition of an SM."""
    name = i.name
    reads, writes = all_read(i), all_written(i)
    if name in WARPGROUP_MATRIX:
        commits = any("gsb0" in o for o in i.operands)
        return Step("issue", 1.0, 0.0, (), (), matrix_cycles(i, machine), commits)
    if name in MATRIX:
        busy = matrix_cycles(i, machine)
        return Step("matrix", busy, max(MATRIX_LATENCY, busy), reads, writes)
    if name == "WARPGROUP" and "DEPBAR" in i.opcode:
        return Step("issue", 1.0, 0.0, (), (), waits=int(i.operands[-1], 16))
    if name == "BAR" and "SYNC" in i.opcode:
        threads = int(i.operands[1], 16) if len(i.operands) > 1 and i.operands[1].startswith("0x") else 0
        if threads == WARPGROUP:
            return Step("issue", 1.0, 0.0, (), (), pause=BARRIER)
        if threads and i.operands[0].startswith("R"):  # turns that warpgroups have in a loop: passed on in time
            return Step("issue", 1.0, 0.0, (), ())
        return Step("issue", 1.0, 0.0, (), (), meets=True)
    if name == "MUFU":
        return Step("special", 32.0 * machine.partitions / machine.special_per_clock, LATENCY["MUFU"], reads, writes)
    if name in ALU:
        return Step("alu", 2.0, FIXED, reads, writes)
    if name in FMA:
        return Step("fma", 32.0 * machine.partitions / machine.f32_per_clock, FIXED, reads, writes)
    if moved := shared_bytes(i):  # (the other partitions' warps do the same)
        busy = moved * machine.partitions / machine.shared_per_clock
        return Step("shared", busy, LATENCY.get(name, FIXED), reads, writes, queues=True)
    if name == "BRA":
        return Step("issue", 1.0, BRANCH, reads, ())
    return Step("issue", 1.0, LATENCY.get(name, FIXED), reads, writes)


@dataclass
class Warp:
    """One that stands for four. `trace`: pieces of code (block numbers, or what stands for them) in the order of its
    way; `at`: cycles."""

    trace: Sequence[Hashable]
    place: int = 0
    step: int = 0
    at: float = 0.0
    ready: dict[str, float] = field(default_factory=dict)
    groups: list[float] = field(default_factory=list)
    """when each committed group ends"""
    open: float = 0.0
    asked: bool = False
    """has it looked at an mbarrier since it last multiplied or moved cells of tensor memory"""
    entered: list[float] = field(default_factory=list)
    """when each turn began"""
    noted: int = -1
    """the place of the last of them: an instruction is looked at again when it had to wait"""

    def enter(self, head: Hashable | None) -> None:
        """Note when a turn begins."""
        if self.trace[self.place] == head and self.noted < self.place:
            self.noted = self.place
            self.entered.append(self.at)

    def take(self, s: Step, served: float) -> None:
        """What an instruction does to its warp, from when it is served on."""
        if s.commits:
            self.groups.append(self.open)
        if s.waits is not None and len(self.groups) > s.waits:
            self.at = max(self.at, self.groups[len(self.groups) - s.waits - 1] + DRAIN / 2)
        if s.takes and self.asked and self.groups:  # (tiles are there when they are awaited)
            self.at = max(self.at, self.groups.pop(0) + DRAIN / 2)
        self.asked = s.asks or (self.asked and not (s.takes or s.matrix))
        for r in s.writes:
            self.ready[r] = served + s.latency
        if s.unit == "issue" and s.latency == BRANCH:
            self.at += BRANCH
        self.at += s.pause
        self.step += 1


@dataclass(frozen=True)
class Replay:
    """`turns` of a warpgroup's loop (a first one apart from it counted), `cycles` of one."""

    turns: int
    cycles: float


def replay(
    function: Function, ways: Sequence[Sequence[int]], blocks: int, machine: GpuMachine, most: int = TURNS
) -> Replay | None:
    """The loop that is entered most often of those with matrix instructions, with so many blocks on the SM; `ways` are
    those of a block's warpgroups (or of its warps on one partition), `most` the turns that are replayed. None where
    there is no such loop."""
    head = head_of(function, ways[0])
    if head is None or any(head not in way for way in ways):
        return None
    traces, running, way = [], list[int](), ways[0]
    places = [n for n, b in enumerate(way) if b == head]
    first = places[0]
    entries = [[n for n, b in enumerate(own) if b == head] for own in ways]
    skipped = max(0, (min(map(len, entries)) - most) // 2)
    for own, at in zip(ways, entries, strict=True):
        at = at[skipped:]
        running.append(running_products(function, own[: at[0]]))
        traces.append(own[at[0] : (at[most] if len(at) > most else at[-1]) + 1])
    steps: dict[Hashable, list[Step]] = {
        b: [tensor_step(function, i, machine) or step_of(i, machine) for i in function.blocks[b].instructions]
        for b in set().union(*traces)
    }
    warps = [Warp(t, groups=[0.0] * n) for _ in range(blocks) for t, n in zip(traces, running, strict=True)]
    run(warps, steps, head, len(ways))
    cycles = pace([w.entered for w in warps])
    if cycles is None:
        return None
    apart = {b for b in way[:first] if any(i.name in _PRODUCTS for i in function.blocks[b].instructions)}
    return Replay(len(places) + bool(apart), cycles)


def running_products(function: Function, way: Sequence[int]) -> int:
    """Committed products of tcgen05 that nobody has waited for at the end of a way."""
    running, asked = 0, False
    for b in way:
        for i in function.blocks[b].instructions:
            running += i.name == "UTCBAR"
            if i.name in ("LDTM", "STTM") and asked and running:
                running -= 1
            if i.name == "SYNCS":
                asked = asked or "PHASECHK" in i.opcode
            elif i.name in ("LDTM", "STTM") or i.name in TENSOR_MEMORY_MATRIX:
                asked = False
    return running


def pace(entered: Sequence[Sequence[float]]) -> float | None:
    """Cycles of a turn (or of a block) while all warps are at theirs, from when each entered its turns: of that time
    the later half counts. None where there is no such time."""
    if min(len(e) for e in entered) < 2:
        return None
    start, last = max(e[0] for e in entered), min(e[-1] for e in entered)
    start = (start + last) / 2
    # (Some get on faster than others, so turns are counted that all of them pass.)
    passed = sum(_turns(e, last) - _turns(e, start) for e in entered)
    return (last - start) * len(entered) / passed if passed > 0.0 else None


def _turns(entered: Sequence[float], at: float) -> float:
    """Turns that a warp has behind it at some time, parts of one too."""
    n = bisect_right(entered, at) - 1
    if n < 0 or n + 1 == len(entered):
        return float(n)
    return n + (at - entered[n]) / (entered[n + 1] - entered[n])


def run(warps: Sequence[Warp], steps: Mapping[Hashable, Sequence[Step]], head: Hashable | None, block: int) -> None:
    """Replay the warps of a partition together, `block` neighbours being of one block, to the ends of their ways.
    `steps` are those of each piece of code; `head` is the one that begins a turn."""
    partition = _Partition()
    queue = [(0.0, w) for w in range(len(warps)) if warps[w].trace]
    met: dict[int, list[int]] = {}
    """of each block, the warpgroups at its barrier"""
    while queue:
        _, w = heapq.heappop(queue)
        warp = warps[w]
        if warp.step == 0:
            warp.enter(head)
        body = steps[warp.trace[warp.place]]
        if warp.step < len(body) and not partition.issue(warp, body[warp.step]):
            heapq.heappush(queue, (warp.at, w))
            continue
        meets = bool(body) and body[warp.step - 1].meets
        if warp.step >= len(body):
            warp.place, warp.step = warp.place + 1, 0
        for o in _past_barrier(warps, met.setdefault(w // block, []), w, block) if meets else (w,):
            if warps[o].place < len(warps[o].trace):
                heapq.heappush(queue, (warps[o].at, o))


def _past_barrier(warps: Sequence[Warp], there: list[int], w: int, block: int) -> list[int]:
    """Warp w comes to its block's barrier, where some are `there`: those that leave it, none before the last."""
    there.append(w)
    if len(there) < block:
        return []
    going = list(there)
    there.clear()
    last = max(warps[o].at for o in going) + BARRIER
    for o in going:
        warps[o].at = last
    return going


@dataclass
class _Partition:
    """The units of a partition, and when each can take its next instruction."""

    free: dict[str, float] = field(default_factory=dict)
    matrix_free: float = 0.0
    """when the matrix unit has done what was issued to it"""

    def issue(self, warp: Warp, s: Step) -> bool:
        """Issue the warp's next instruction; False, with the time at which to look again, where it has to wait so long
        that another warp may come first."""
        free = self.free.get(s.unit, 0.0)
        start = max([warp.at, free - QUEUE * s.busy * s.queues, *(warp.ready.get(r, 0.0) for r in s.reads)])
        issue = max(start, self.free.get("issue", 0.0))
        if issue > warp.at + 1.0:
            warp.at = issue
            return False
        self.free["issue"] = issue + 1.0
        served = max(free, issue) if s.queues else issue
        self.free[s.unit] = max(self.free.get(s.unit, 0.0), served + s.busy)
        warp.at = issue + 1.0
        if s.matrix:
            idle = issue >= self.matrix_free
            self.matrix_free = (issue + DRAIN / 2 if idle else self.matrix_free) + s.matrix
            warp.open = self.matrix_free
        warp.take(s, served)
        return True


def head_of(function: Function, way: Sequence[int]) -> int | None:
    """The block with matrix instructions that is entered most often."""
    visits: dict[int, int] = {}
    for b in way:
        visits[b] = visits.get(b, 0) + 1
    heads = [b for b in visits if any(i.name in _PRODUCTS for i in function.blocks[b].instructions) and visits[b] > 1]
    return max(heads, key=lambda b: visits[b], default=None)


def loop_turns(function: Function, way: Sequence[int]) -> int:
    """How often a way comes to that block; 0 where there is none."""
    head = head_of(function, way)
    return sum(b == head for b in way) if head is not None else 0
