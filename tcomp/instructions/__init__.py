"""Instructions that multiply and add as data: what they mean, which layouts their operands have, how they are written.
Matrix instructions of GPUs, vector instructions of CPUs."""

from tcomp.instructions.declaration import Home, Instruction, OperandForms
from tcomp.instructions.layout import FragmentLayout, MatrixLoad
from tcomp.instructions.mma_sync import MMA_SYNC
from tcomp.instructions.tcgen05 import ROWS, TCGEN05
from tcomp.instructions.vector import VECTOR, VectorInstruction
from tcomp.instructions.wgmma import WGMMA

INSTRUCTIONS: tuple[Instruction, ...] = MMA_SYNC + WGMMA + TCGEN05
"""All matrix instructions."""
WHOLE: tuple[Instruction, ...] = tuple(i for i in INSTRUCTIONS if i.home is not Home.TENSOR_MEMORY or i.m == ROWS)
"""those that may be all that a loop does (others only beside other statements)"""
IN_PLACE = frozenset(i.family for i in INSTRUCTIONS if i.asynchronous)
"""families that read shared tiles where they lie"""
IN_TENSOR_MEMORY = frozenset(i.family for i in INSTRUCTIONS if i.home is Home.TENSOR_MEMORY)
"""Families whose sums are in tensor memory while they go on."""

__all__ = [
    "INSTRUCTIONS",
    "IN_PLACE",
    "IN_TENSOR_MEMORY",
    "MMA_SYNC",
    "TCGEN05",
    "VECTOR",
    "WGMMA",
    "WHOLE",
    "FragmentLayout",
    "Home",
    "Instruction",
    "MatrixLoad",
    "OperandForms",
    "VectorInstruction",
]
