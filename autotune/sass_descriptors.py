"""What UTCHMMA and UTCQMMA (tcgen05.mma) multiply: not the opcodes say so, but instruction descriptors, constants.

UMOV UR35, 0x8200490 ;  ...  UTCHMMA gdesc[UR8], gdesc[UR12], tmem[UR39], tmem[UR34], idesc[UR35], UP0 ;
"""

from __future__ import annotations

import re

from tcomp.autotune.sass import Function, Instruction

TENSOR_MEMORY_MATRIX = frozenset({"UTCHMMA", "UTCQMMA"})
"""products whose sums are in tensor memory, each of one thread"""
_TYPES = {"UTCHMMA": ("f16", "bf16", "tf32"), "UTCQMMA": ("e4m3", "e5m2")}
_DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32}


def blocks_of(i: Instruction) -> int:
    """How many blocks share such a product: each has its rows, and keeps and reads its part of both operands."""
    return 2 if "2CTA" in i.opcode.split(".") else 1


def described(function: Function, i: Instruction) -> tuple[int, int, int, str]:
    """(m, n, k, element type) of such a product. ValueError where its descriptor is no constant in the code before."""
    named = next((m[1] for o in i.operands if (m := re.match(r"idesc\[(UR\d+)\]", o))), "")
    given = [
        x.operands[1]
        for x in function.instructions
        if x.name == "UMOV" and x.operands[0] == named and x.address < i.address
    ]
    if not given or not given[-1].startswith("0x"):
        raise ValueError(f"the descriptor of {i.opcode} in {named} is no constant")
    bits = int(given[-1], 16)
    kind = _TYPES[i.name][bits >> 7 & 7]
    return (bits >> 24 & 31) << 4, (bits >> 17 & 63) << 3, _DEPTH[kind], kind
