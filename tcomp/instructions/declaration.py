"""What a matrix instruction is: its meaning as an equation, its shape and types, where operands may lie, its PTX.

The matcher (`matching.py`) and the code generator read these; a test runs each declared instruction on the virtual
GPU and compares it with its own equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tcomp.dsl.ast import DType
from tcomp.instructions.layout import FragmentLayout, MatrixLoad

CONTRACTION = "D[m, n] += sum k: A[m, k] * B[k, n]"


class Home(Enum):
    """Where accumulators are while a sum goes on."""

    REGISTERS = "registers"
    TENSOR_MEMORY = "tensor memory"


@dataclass(frozen=True)
class OperandForms:
    """The places an operand may be read from. `layout` is that of registers; `registers` says whether the operand may
    already be there. In shared memory its 16-byte granules run along k (`along_k`) or across it (`across_k`): a
    `MatrixLoad` where it is loaded into registers first, True where a descriptor reads it in place, None where
    neither can."""

    layout: FragmentLayout
    registers: bool
    along_k: MatrixLoad | bool | None
    across_k: MatrixLoad | bool | None


@dataclass(frozen=True)
class Instruction:
    """A matrix instruction. `family` is its name in a schedule (`use mma.sync for acc`).

    `n` lists the widths it comes in. `a` and `b` are the operands' element types, f32 meaning tf32. `ptx` is the text
    with {n} for the width. `targets` are the GPU targets that have it. `threads` hold the result in the layout
    `result`: from the first product on, or, where sums have another `home`, when they are loaded from there at the end.
    """

    family: str
    m: int
    n: tuple[int, ...]
    k: int
    a: DType
    b: DType
    threads: int
    left: OperandForms
    right: OperandForms
    result: FragmentLayout
    ptx: str
    targets: frozenset[str]
    body: str = CONTRACTION
    home: Home = Home.REGISTERS

    @property
    def asynchronous(self) -> bool:
        """Does it go on beside what follows, a warpgroup's together?"""
        return self.threads == 128

    @property
    def name(self) -> str:
        """`mma.sync.m16n8k16.bf16.bf16`"""
        width = f"n{self.n[0]}" if len(self.n) == 1 else ""
        return f"{self.family.removesuffix('.tf32')}.m{self.m}{width}k{self.k}.{spelling(self.a)}.{spelling(self.b)}"


def spelling(dtype: DType) -> str:
    """The element type in PTX."""
    return "tf32" if dtype is DType.F32 else dtype.value
