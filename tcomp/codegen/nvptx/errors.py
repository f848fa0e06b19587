"""What this code generator has no code for."""

from __future__ import annotations

from tcomp.dsl.ast import NO_SPAN, Span
from tcomp.errors import UserError


class Unsupported(UserError, NotImplementedError):
    """A sound program that cannot be generated as PTX; says where it comes from."""

    def __init__(self, message: str, span: Span = NO_SPAN, hint: str = "") -> None:
        super().__init__(message if span == NO_SPAN else f"{span}: {message}", hint)
