"""What the text of a machine instruction says: shapes and types of matrix instructions, bytes of memory accesses."""

from __future__ import annotations

import re

from tcomp.autotune.gpu_model import tensor_cycles
from tcomp.autotune.sass import Instruction
from tcomp.machine.gpu import GpuMachine

LANES = 32
WARPGROUP_MATRIX = frozenset({"HGMMA", "QGMMA", "IGMMA"})
WARP_MATRIX = frozenset({"HMMA", "QMMA", "OMMA", "IMMA"})
MATRIX = WARPGROUP_MATRIX | WARP_MATRIX
SHARED = frozenset({"LDS", "STS", "ATOMS"})
PAIRED = 0.5
"""Cycles of shared memory for each register of a wide load, where lanes in pairs read the same (`sass_lanes`)."""


def width(opcode: str) -> int:
    """Bytes per lane of a memory instruction."""
    parts = opcode.split(".")
    for part, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1), ("16", 2)):
        if part in parts:
            return size
    return 4


def shared_bytes(i: Instruction) -> float:
    """Bytes that a warp's instruction moves to, from or through shared memory; 0 for others."""
    if i.name in SHARED:
        size = width(i.opcode)
        return LANES * size * (PAIRED if size >= 8 and i.name == "LDS" and i.paired else 1.0)
    if i.name in ("LDSM", "STSM"):
        last = i.opcode.rsplit(".", 1)[-1]
        return 128.0 * (int(last) if last.isdigit() else 1)
    if i.name == "SHFL":
        return 128.0
    return float(LANES * width(i.opcode)) if i.name == "LDGSTS" else 0.0


def matrix_shape(opcode: str) -> tuple[int, int, int]:
    """(m, n, k) of HGMMA.64x256x16 or HMMA.16816 or QMMA.16832. ValueError for an opcode without a shape."""
    m = re.search(r"\.(\d+)x(\d+)x(\d+)", opcode)
    if m:
        return int(m[1]), int(m[2]), int(m[3])
    m = re.search(r"\.(16)(8)(\d{1,2})(?:\.|$)", opcode)
    if m:
        return int(m[1]), int(m[2]), int(m[3])
    raise ValueError(f"no shape in {opcode}")


def matrix_type(opcode: str) -> str:
    """The operands' element type as machine descriptions name it."""
    for part, name in (("BF16", "bf16"), ("TF32", "tf32"), ("E4M3", "e4m3"), ("E5M2", "e5m2")):
        if part in opcode:
            return name
    return "e4m3" if opcode.startswith(("QMMA", "QGMMA")) else "f16"


def matrix_cycles(i: Instruction, machine: GpuMachine) -> float:
    """Cycles of the unit that a matrix instruction uses: the SM's for a warpgroup's, its partition's for a warp's; 0
    for other instructions."""
    if i.name not in MATRIX:
        return 0.0
    m, n, k = matrix_shape(i.opcode)
    alone = i.name in WARP_MATRIX
    whole = tensor_cycles(2.0 * m * n * k, matrix_type(i.opcode), machine, "mma.sync" if alone else "wgmma")
    return whole * machine.partitions if alone else whole
