"""Errors a user can act on: bad flags, files, data, checkpoints, environment. Shown as one message, exit 2."""

from __future__ import annotations


class UserError(Exception):
    """`message` says what is wrong and where; `hint` says how to fix it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n  help: {hint}")
        self.message = message
        self.hint = hint
