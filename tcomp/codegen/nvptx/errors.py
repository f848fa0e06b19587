"""What this code generator has no code for."""

from __future__ import annotations

from tcomp.dsl.ast import NO_SPAN, Span
from tcomp.errors import UserError


class Unsupported(UserError, NotImplementedError):
    """A sound program that cannot be generated as PTX; says where it comes from, and what else to write."""

    def __init__(self, message: str, span: Span = NO_SPAN, hint: str = "") -> None:
        hint = hint or "map these loops in another way, or compute this equation in a kernel of its own"
        super().__init__(message if span == NO_SPAN else f"{span}: {message}", hint)
        self.reason, self.span = message, span
