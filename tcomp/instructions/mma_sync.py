"""mma.sync: one warp multiplies 16 rows by 8 columns, both operands in registers (sm_80 and later).

Operands come from shared memory by ldmatrix, which hands each lane the pair of elements its place in the fragment
asks for; across k (a tile stored with k outermost) the transposing form does, for 16-bit elements only.
Source: PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions".
"""

from __future__ import annotations

from tcomp.dsl.ast import DType
from tcomp.instructions.declaration import Instruction, OperandForms, spelling
from tcomp.instructions.layout import MatrixLoad, accumulator, columns_operand, rows_operand
from tcomp.machine.targets import TARGETS

_FP8 = (DType.E4M3, DType.E5M2)
_ALL = frozenset(TARGETS)


def _left(bits: int) -> OperandForms:
    granule = 128 // bits
    along = MatrixLoad(((1, 0), (2, 0), (4, 0), (8, 0), (0, granule)), False)
    across = MatrixLoad(((0, 1), (0, 2), (0, 4), (8, 0), (0, 8)), True) if bits == 16 else None
    return OperandForms(rows_operand(bits), True, along, across)


def _right(bits: int) -> OperandForms:
    """One ldmatrix.x4 fills two neighbouring n8 fragments; its steps are of (k, n)."""
    granule = 128 // bits
    along = MatrixLoad(((0, 1), (0, 2), (0, 4), (granule, 0), (0, 8)), False)
    across = MatrixLoad(((1, 0), (2, 0), (4, 0), (8, 0), (0, 8)), True) if bits == 16 else None
    return OperandForms(columns_operand(bits), False, along, across)


def _declare(a: DType, b: DType, targets: frozenset[str] = _ALL) -> Instruction:
    bits = 8 * a.bytes
    k = 256 // bits
    ptx = (
        f"mma.sync.aligned.m16n8k{k}.row.col.f32.{spelling(a)}.{spelling(b)}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    family = "mma.sync.tf32" if a is DType.F32 else "mma.sync"
    return Instruction(family, 16, (8,), k, a, b, 32, _left(bits), _right(bits), accumulator(8), ptx, targets)


MMA_SYNC = (
    _declare(DType.BF16, DType.BF16),
    _declare(DType.F16, DType.F16),
    _declare(DType.F32, DType.F32),
    *(_declare(a, b, _ALL - {"sm_80"}) for a in _FP8 for b in _FP8),
)
