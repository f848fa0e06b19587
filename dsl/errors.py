"""The one error type for bad `.tc` text: a place in the source, what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcomp.dsl.ast import Span


@dataclass
class TcError(Exception):
    """`message` says what is wrong, `hint` how to fix it, `notes` add facts such as a counterexample.

    `text` is the source of `span.file`, for the caret line: who raises an error need not have it (`quoting`). It is
    empty for generated text.
    """

    message: str
    span: Span
    hint: str = ""
    notes: tuple[str, ...] = ()
    text: str = ""

    def __str__(self) -> str:
        return self.render()

    def render(self) -> str:
        """The diagnostic as text: location, message, source line with a caret, notes, hint."""
        out = [f"{self.span}: error: {self.message}"]
        lines = self.text.splitlines()
        if 1 <= self.span.line <= len(lines):
            line = lines[self.span.line - 1]
            end = self.span.end_column if self.span.end_line == self.span.line else len(line) + 1
            width = max(1, end - self.span.column)
            number = str(self.span.line)
            out.append(f"  {number} | {line}")
            out.append(f"  {' ' * len(number)} | {' ' * (self.span.column - 1)}{'^' * width}")
        out += [f"  note: {n}" for n in self.notes]
        if self.hint:
            out.append(f"  help: {self.hint}")
        return "\n".join(out)


@contextmanager
def quoting(sources: Mapping[str, str]) -> Iterator[None]:
    """Errors that are raised within quote the line that they are about: `sources` are texts by the names of files."""
    try:
        yield
    except TcError as e:
        e.text = e.text or sources.get(e.span.file, "")
        raise
