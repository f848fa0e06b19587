"""Instruction counts of one warp's way through a kernel's machine code, and the bytes that its instructions move.

Loads and stores are taken to be coalesced, and shared memory to be free of bank conflicts (the virtual GPU reports
those).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tcomp.autotune.opcodes import LANES, MATRIX, WARPGROUP_MATRIX, matrix_shape, matrix_type, shared_bytes, width
from tcomp.autotune.sass import Function, Instruction
from tcomp.autotune.sass_descriptors import TENSOR_MEMORY_MATRIX, blocks_of, described
from tcomp.autotune.sass_registers import depends_on_thread
from tcomp.autotune.sass_walk import Way

STREAM = 64
"""Turns of a loop from which narrow loads that all lanes share are taken to walk along lines: one serves 32 turns."""
LANDING = 0.8
"""Cycles of shared memory that a bulk copy takes for its bytes as it lands, over those of other accesses (fitted: the
head's product is not bound by shared memory as if it were 1)."""
_FMA = {"FFMA", "FFMA2", "FADD", "FADD2", "FMUL", "FMUL2", "HFMA2", "HADD2", "HMUL2", "IMAD", "DFMA"}
_SPECIAL = {"MUFU", "F2I", "I2F", "F2F", "I2FP", "FRND"}
_GLOBAL = {"LDG", "STG", "LD", "ST", "LDGSTS", "RED", "REDG", "ATOMG", "ATOM"}
_LOADS = {"LDG", "LD", "ATOMG", "ATOM"}
_LOCAL = {"LDL", "STL"}
_COPY_IN = {"UTMALDG", "UBLKCP"}
_COPY_OUT = {"UTMASTG", "UTMAREDG"}


@dataclass
class Counts:
    """Instruction counts of one warp, by class; bytes as the warp moves them."""

    issue: float = 0.0
    fma: float = 0.0
    special: float = 0.0
    shared_bytes: float = 0.0
    l2_bytes: float = 0.0
    async_bytes: float = 0.0
    tile_bytes: float = 0.0
    """of shared memory: tiles that are copied into it, and operands of matrix instructions read from it"""
    flops: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """matrix operations by (element type, tcgen05 | wgmma | mma.sync)"""
    load_rounds: float = 0.0
    near_loads: float = 0.0
    """turns whose loads find their line in L1, but for one in 32"""
    barriers: float = 0.0
    shuffles: float = 0.0
    copy_turns: float = 0.0
    drains: float = 0.0
    waits: float = 0.0
    pending: int | None = None
    """the most groups of copies that a wait leaves pending; None where nothing waits for groups"""
    delivers: bool = False
    """adds to memory in turn, and has nothing to multiply"""
    opcodes: Counter[str] = field(default_factory=Counter)

    @property
    def wgmma(self) -> bool:
        """Does the warp multiply by wgmma?"""
        return any(path == "wgmma" for _, path in self.flops)

    @property
    def tcgen05(self) -> bool:
        """Does the warp issue products whose sums are in tensor memory?"""
        return any(path == "tcgen05" for _, path in self.flops)


@dataclass(frozen=True)
class Copies:
    """Mean bytes of a launch's tensor copies: that one asks L2 for, that one puts into the block's shared memory (more,
    where blocks of a cluster copy for each other: peers' copies land here as well), and that one writes."""

    asked: float = 0.0
    landed: float = 0.0
    written: float = 0.0


def counts_of(function: Function, path: Way, copy: Copies) -> Counts:
    """The counts of a warp that takes `path`."""
    c = Counts()
    for number, times in path.visits.items():
        block = function.blocks[number]
        loads = near_loads = copies = False
        for i in block.instructions:
            issued = path.times(block, i)
            _count(c, i, issued, copy)
            if i.name in TENSOR_MEMORY_MATRIX:
                both = not i.operands[0].startswith("tmem")
                _count_tensor(c, *described(function, i), issued / blocks_of(i), both)
            if i.name in _LOADS:
                near = times > STREAM and width(i.opcode) <= 4 and not depends_on_thread(function, i)
                loads |= not near
                near_loads |= near
                if near:
                    c.l2_bytes -= issued * width(i.opcode) * (LANES - 1)
            copies |= i.name == "LDGSTS" or i.name in _COPY_IN
        if loads:
            c.load_rounds += times
        elif near_loads:
            c.near_loads += times
        if copies and times > 1:
            c.copy_turns += times
    if not c.flops and (c.opcodes["UTMAREDG"] or c.opcodes["UTMASTG"]):  # (whose turn is the first stores)
        c.delivers = _tells_others(function, path) and any(i.name == "UTMAREDG" for i in function.instructions)
    if c.delivers:  # (its waits for a word are part of what a delivery takes)
        c.load_rounds = 0.0
    return c


def _tells_others(function: Function, path: Way) -> bool:
    """Whether the warp makes what it wrote visible to all SMs more than once."""
    return any(
        n > 1 and any(i.opcode.startswith("MEMBAR") and "GPU" in i.opcode for i in function.blocks[b].instructions)
        for b, n in path.visits.items()
    )


def _count(c: Counts, i: Instruction, times: int, copy: Copies) -> None:
    c.issue += times
    c.opcodes[i.name] += times
    if i.name in MATRIX:
        _count_product(c, i, times)
    elif i.name in _GLOBAL or i.name in _LOCAL or i.name in _COPY_IN or i.name in _COPY_OUT:
        _count_memory(c, i, times, copy)
    elif i.name in _FMA:
        c.fma += times
    elif i.name in _SPECIAL:
        c.special += times
    elif moved := shared_bytes(i):
        c.shared_bytes += times * moved
        c.shuffles += times * (i.name == "SHFL")
    else:
        _count_wait(c, i, times)


def _count_product(c: Counts, i: Instruction, times: int) -> None:
    """A matrix instruction: a warpgroup's is four warps', and reads its operands from shared memory."""
    m, n, k = matrix_shape(i.opcode)
    element_type = matrix_type(i.opcode)
    if i.name not in WARPGROUP_MATRIX:
        c.flops[element_type, "mma.sync"] += times * 2.0 * m * n * k
        return
    c.flops[element_type, "wgmma"] += times * 2.0 * m * n * k / 4
    element = 1 if element_type in ("e4m3", "e5m2") else 4 if element_type == "tf32" else 2
    from_registers = not any(o.startswith("gdesc") for o in i.operands[1:2])
    read = times * element * k * (n + (0 if from_registers else m)) / 4
    c.shared_bytes += read
    c.tile_bytes += read


def _count_tensor(c: Counts, m: int, n: int, k: int, element_type: str, times: float, both: bool = True) -> None:
    """A product by one thread, which reads both operands from shared memory, or the left one from tensor memory."""
    c.flops[element_type, "tcgen05"] += times * 2.0 * m * n * k
    element = 1 if element_type in ("e4m3", "e5m2") else 4 if element_type == "tf32" else 2
    read = times * element * k * (n + (m if both else 0))
    c.shared_bytes += read
    c.tile_bytes += read


def _count_memory(c: Counts, i: Instruction, times: int, copy: Copies) -> None:
    """An access to global or local memory, or a copy between it and shared memory."""
    size = times * LANES * width(i.opcode)
    if i.name in _LOCAL:
        c.l2_bytes += size / 4  # most of it stays in L1
    elif i.name in _COPY_IN:
        c.l2_bytes += times * copy.asked
        c.async_bytes += times * copy.asked
        c.shared_bytes += times * copy.landed * LANDING
        c.tile_bytes += times * copy.landed * LANDING
    elif i.name in _COPY_OUT:
        c.l2_bytes += times * copy.written
        c.shared_bytes += times * copy.written
    else:
        c.l2_bytes += size
        if i.name == "LDGSTS":
            c.async_bytes += size
            c.shared_bytes += size


def _count_wait(c: Counts, i: Instruction, times: int) -> None:
    """An instruction that may wait: for the block's other warps, for matrix instructions, for copies."""
    if i.name in ("BAR", "BARRIER") and "ARV" not in i.opcode:
        c.barriers += times
    elif i.name == "WARPGROUP" and "DEPBAR" in i.opcode:
        c.drains += times
    elif i.name == "SYNCS" and "PHASECHK" in i.opcode:
        c.waits += times
    elif i.name == "DEPBAR" and len(i.operands) > 1:
        allowed = int(i.operands[1], 16)
        c.pending = allowed if c.pending is None else max(c.pending, allowed)
