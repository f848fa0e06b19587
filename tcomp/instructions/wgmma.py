"""wgmma: four warps multiply 64 rows by 8 to 256 columns, asynchronously (sm_90a).

The right operand is read from shared memory in place, through a descriptor of a swizzled tile, the left one too or from
registers. 16-bit operands may lie in memory along k or across it; others along k only.
Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

from tcomp.dsl.ast import DType
from tcomp.instructions.declaration import Instruction, OperandForms, spelling
from tcomp.instructions.layout import accumulator, columns_operand, rows_operand, warpgroup

WIDTHS = tuple(range(8, 257, 8))
_TARGETS = frozenset({"sm_90a"})
_FP8 = (DType.E4M3, DType.E5M2)


def _declare(a: DType, b: DType) -> Instruction:
    bits = 8 * a.bytes
    k = 256 // bits
    across = True if bits == 16 else None
    # {d} the accumulators, {a} a descriptor or four registers, {b} a descriptor, {scale} 0 for D = A B, else 1;
    # then signs, and for 16-bit operands which of those in shared memory lie across k.
    name = "wgmma.mma_async.sync.aligned.m64n{n}" + f"k{k}.f32.{spelling(a)}.{spelling(b)}"
    text = name + " {d}, {a}, {b}, {scale}, 1, 1"
    return Instruction(
        "wgmma.tf32" if a is DType.F32 else "wgmma",
        64,
        WIDTHS,
        k,
        a,
        b,
        128,
        OperandForms(warpgroup(rows_operand(bits)), bits == 16, True, across),
        OperandForms(columns_operand(bits), False, True, across),
        warpgroup(accumulator(WIDTHS[-1])),
        text + ("{transposed};" if bits == 16 else ";"),
        _TARGETS,
    )


WGMMA = (
    _declare(DType.BF16, DType.BF16),
    _declare(DType.F16, DType.F16),
    _declare(DType.F32, DType.F32),
    *(_declare(a, b) for a in _FP8 for b in _FP8),
)
