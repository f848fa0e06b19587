"""tcgen05: one thread multiplies 128 rows (or 64) by 16 to 256 columns, asynchronously, into tensor memory (sm_100a,
sm_103a, sm_110a).

Both operands are read from shared memory in place, through descriptors of swizzled tiles; those of up to 16 bits may
lie in memory along k or across it. Row r of the sum is in lane r of tensor memory, column n in column n; a warp loads
its 32 lanes, 16 at a time, as two stacked accumulators of mma.sync. Of 64 rows each warp has 16, in its first 16
lanes. Source: PTX ISA, "TensorCore 5th Generation".
"""

from __future__ import annotations

from tcomp.dsl.ast import DType
from tcomp.instructions.declaration import Home, Instruction, OperandForms
from tcomp.instructions.layout import FragmentLayout, columns_operand, quad, rows_operand

ROWS = 128
HALF = 64
"""rows of the smaller products, by 16-bit operands"""
LANES = 16
"""of tensor memory that a warp loads or stores at a time"""
WIDTHS = tuple(range(16, 257, 16))
"""(the PTX ISA has multiples of 8 as well; CUTLASS, which has been run more often, takes none of those for 128 rows)"""
COLUMNS = 512
"""of tensor memory, each of 32 bits in 128 lanes"""
ALONE, PAIRED = "cta_group::1", "cta_group::2"
"""in all tcgen05 instructions of a kernel but loads and stores: of one block, or of both of a pair"""
_TARGETS = frozenset({"sm_100a", "sm_103a", "sm_110a"})
"""(of the kinds that are not declared here, that of integers is missing on sm_103a)"""
_FP8 = (DType.E4M3, DType.E5M2)
_KINDS = {DType.BF16: "f16", DType.F16: "f16", DType.F32: "tf32", DType.E4M3: "f8f6f4", DType.E5M2: "f8f6f4"}
_CODES = {DType.F16: 0, DType.BF16: 1, DType.F32: 2, DType.E4M3: 0, DType.E5M2: 1}


def loaded(columns: int, rows: int = ROWS) -> FragmentLayout:
    """The sum as four warps load it: 32 rows (or 16) each, pairs of columns of rows g, g + 8, then the next 8 columns,
    then the 16 rows below."""
    wide = tuple((0, 8 << i) for i in range((columns // 8 - 1).bit_length()))
    below = ((LANES, 0),) if rows == ROWS else ()
    warps = ((rows // 4, 0), (rows // 2, 0))
    return FragmentLayout((rows, columns), (*quad(2), *warps), ((0, 1), (8, 0), *wide, *below))


def instruction_descriptor(i: Instruction, n: int, across: tuple[bool, bool], blocks: int = 1) -> int:
    """The 32 bits that say which product: f32 sums of M rows of so many blocks by `n` columns; which operands lie
    across k."""
    types = _CODES[i.a] << 7 | _CODES[i.b] << 10
    return 1 << 4 | types | across[0] << 15 | across[1] << 16 | n >> 3 << 17 | blocks * i.m >> 4 << 24


def _declare(a: DType, b: DType, rows: int = ROWS) -> Instruction:
    bits = 8 * a.bytes
    across = True if bits <= 16 else None
    # {d} an address in tensor memory, {a} and {b} descriptors, {i} the instruction's, {keep} adds to what is there
    text = f"tcgen05.mma.{ALONE}.kind::{_KINDS[a]} [{{d}}], {{a}}, {{b}}, {{i}}, {{keep}};"
    return Instruction(
        "tcgen05.tf32" if a is DType.F32 else "tcgen05",
        rows,
        WIDTHS,
        256 // bits,
        a,
        b,
        128,
        OperandForms(rows_operand(bits), bits == 16, True, across),
        OperandForms(columns_operand(bits), False, True, across),
        loaded(WIDTHS[-1], rows),
        text,
        _TARGETS,
        home=Home.TENSOR_MEMORY,
    )


TCGEN05 = (
    _declare(DType.BF16, DType.BF16),
    _declare(DType.F16, DType.F16),
    _declare(DType.BF16, DType.BF16, HALF),
    _declare(DType.F16, DType.F16, HALF),
    _declare(DType.F32, DType.F32),
    *(_declare(a, b) for a in _FP8 for b in _FP8),
)
