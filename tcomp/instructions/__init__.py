"""Matrix instructions as data: what they mean, which layouts their operands have, how they are written."""

from tcomp.instructions.declaration import Instruction, OperandForms
from tcomp.instructions.layout import FragmentLayout, MatrixLoad
from tcomp.instructions.mma_sync import MMA_SYNC
from tcomp.instructions.wgmma import WGMMA

INSTRUCTIONS: tuple[Instruction, ...] = MMA_SYNC + WGMMA
"""All of them."""

__all__ = ["INSTRUCTIONS", "MMA_SYNC", "WGMMA", "FragmentLayout", "Instruction", "MatrixLoad", "OperandForms"]
