"""Instructions that multiply and add as data: what they mean, which layouts their operands have, how they are written.
Matrix instructions of GPUs, vector instructions of CPUs."""

from tcomp.instructions.declaration import Instruction, OperandForms
from tcomp.instructions.layout import FragmentLayout, MatrixLoad
from tcomp.instructions.mma_sync import MMA_SYNC
from tcomp.instructions.vector import VECTOR, VectorInstruction
from tcomp.instructions.wgmma import WGMMA

INSTRUCTIONS: tuple[Instruction, ...] = MMA_SYNC + WGMMA
"""All matrix instructions."""

__all__ = [
    "INSTRUCTIONS",
    "MMA_SYNC",
    "VECTOR",
    "WGMMA",
    "FragmentLayout",
    "Instruction",
    "MatrixLoad",
    "OperandForms",
    "VectorInstruction",
]
