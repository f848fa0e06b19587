"""Instruction counts of one warp's way through a kernel's machine code, and the bytes that its instructions move.

Loads and stores are taken to be coalesced, and shared memory to be free of bank conflicts (the virtual GPU reports
those).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tcomp.autotune.opcodes import (
    LANES,
    MATRIX,
    SHARED,
    WARPGROUP_MATRIX,
    matrix_shape,
    matrix_type,
    shared_bytes,
    width,
)
from tcomp.autotune.sass import Function, Instruction
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
    flops: dict[tuple[str, str], float] = field(default_factory=dict)
    """matrix operations by (element type, wgmma | mma.sync)"""
    load_rounds: float = 0.0
    near_loads: float = 0.0
    """turns whose loads find their line in L1, but for one in 32"""
    barriers: float = 0.0
    shuffles: float = 0.0
    copy_turns: float = 0.0
    drains: float = 0.0
    waits: float = 0.0
    pending: int | None = None
    delivers: bool = False
    """adds to memory in turn, and has nothing to multiply"""
    opcodes: Counter[str] = field(default_factory=Counter)


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
            if i.name in _LOADS:
                near = times > STREAM and width(i.opcode) <= 4 and not depends_on_thread(function, i)
                loads |= not near
                near_loads |= near
                if near:
                    c.l2_bytes -= issued * width(i.opcode) * (LANES - 1)
            copies |= i.name in ("LDGSTS", "UTMALDG", "UBLKCP")
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
    name, opcode = i.name, i.opcode
    c.issue += times
    c.opcodes[name] += times
    if name in MATRIX:
        m, n, k = matrix_shape(opcode)
        warps = 4 if name in WARPGROUP_MATRIX else 1
        key = matrix_type(opcode), "wgmma" if warps == 4 else "mma.sync"
        c.flops[key] = c.flops.get(key, 0.0) + times * 2.0 * m * n * k / warps
        if warps == 4:
            element = 1 if key[0] in ("e4m3", "e5m2") else 4 if key[0] == "tf32" else 2
            from_registers = not any(o.startswith("gdesc") for o in i.operands[1:2])
            read = times * element * k * (n + (0 if from_registers else m)) / warps
            c.shared_bytes += read
            c.tile_bytes += read
    elif name in _FMA:
        c.fma += times
    elif name in _SPECIAL:
        c.special += times
    elif name in SHARED or name in ("LDSM", "STSM", "SHFL"):
        c.shared_bytes += times * shared_bytes(i)
        c.shuffles += times * (name == "SHFL")
    elif name in ("BAR", "BARRIER") and "ARV" not in opcode:
        c.barriers += times
    elif name == "WARPGROUP" and "DEPBAR" in opcode:
        c.drains += times
    elif name == "SYNCS" and "PHASECHK" in opcode:
        c.waits += times
    elif name == "DEPBAR" and len(i.operands) > 1:
        allowed = int(i.operands[1], 16)
        c.pending = allowed if c.pending is None else max(c.pending, allowed)
    if name in _GLOBAL:
        size = times * LANES * width(opcode)
        c.l2_bytes += size
        if name == "LDGSTS":
            c.async_bytes += size
            c.shared_bytes += size
    elif name in ("UTMALDG", "UBLKCP"):
        c.l2_bytes += times * copy.asked
        c.async_bytes += times * copy.asked
        c.shared_bytes += times * copy.landed * LANDING
        c.tile_bytes += times * copy.landed * LANDING
    elif name in ("UTMASTG", "UTMAREDG"):
        c.l2_bytes += times * copy.written
        c.shared_bytes += times * copy.written
    elif name in ("LDL", "STL"):
        c.l2_bytes += times * LANES * width(opcode) / 4  # most of it stays in L1
