"""Errors of the virtual GPU: PTX text it cannot read, and instructions it does not have. Each names the PTX line."""

from __future__ import annotations

from tcomp.errors import UserError


class PtxError(UserError):
    """`line` is the 1-based PTX line the message is about, 0 when there is none."""

    def __init__(self, message: str, line: int = 0, hint: str = "") -> None:
        super().__init__(f"PTX line {line}: {message}" if line else message, hint)
        self.line = line


class UnknownInstruction(PtxError):
    """An instruction, or a form of one, that the virtual GPU does not execute; never skipped in silence."""

    def __init__(self, opcode: str, line: int, why: str = "") -> None:
        super().__init__(
            f"unknown instruction `{opcode}`" + (f": {why}" if why else ""),
            line,
            "docs/virtual-gpu.md lists what the virtual GPU executes",
        )
        self.opcode = opcode
