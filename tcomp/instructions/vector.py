"""CPU instructions that add several products to each lane of a vector, as data: vdpbf16ps.

Lane n of the accumulator takes a group of `group` neighbouring values of the summed index from each operand:

    D[n] += sum p: A[n, p] * B[n, p]        one lane after the other of a register tile, A often the same in all lanes

Code comes from the declaration alone: the intrinsic where the CPU has the feature, elsewhere the meaning, `order` of
multiply-adds and flushing included, which gives the same bits. A test holds both against NumPy.
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, VDPBF16PS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import DType


@dataclass(frozen=True)
class VectorInstruction:
    """`family` is its name in a schedule and in assembly. Operands hold `a` and `b`, in tiles packed so that a group of
    the summed index is one word of a lane; the accumulator is f32.

    Each step of `order` is a fused multiply-add of that element of the group, rounded to nearest even. With `flushes`,
    subnormal operands count as zero and subnormal results become zero, whatever the CPU's control register says.
    `intrinsics` are LLVM's names by the number of lanes, `feature` what the CPU needs for them, `targets` the schedule
    targets that have the instruction.
    """

    family: str
    group: int
    a: DType
    b: DType
    order: tuple[int, ...]
    flushes: bool
    feature: str
    targets: frozenset[str]
    intrinsics: Mapping[int, str] = field(hash=False)

    @property
    def word(self) -> int:
        """Bits of a group."""
        return 8 * self.a.bytes * self.group


VDPBF16PS = VectorInstruction(
    family="vdpbf16ps",
    group=2,
    a=DType.BF16,
    b=DType.BF16,
    order=(1, 0),
    flushes=True,
    feature="avx512bf16",
    targets=frozenset({"cpu.avx512bf16"}),
    intrinsics={n: f"llvm.x86.avx512bf16.dpbf16ps.{32 * n}" for n in (4, 8, 16)},
)

VECTOR: tuple[VectorInstruction, ...] = (VDPBF16PS,)
"""All of them."""
