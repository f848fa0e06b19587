"""Errors a user can act on: bad flags, files, data, checkpoints, environment. Shown as one message, exit 2."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """`message` says what is wrong and where; `hint` says how to fix it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n  help: {hint}")
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors come back from other processes as they are, whatever a subclass is made of."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[UserError], args: tuple[Any, ...], values: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(values)
    return error
