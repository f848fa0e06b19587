"""Syntax errors that teach: from what the parser met and what it would have taken, to a TcError."""

from __future__ import annotations

from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from tcomp.dsl.ast import Span
from tcomp.dsl.errors import TcError
from tcomp.dsl.layout import LayoutError


def explain_syntax(error: UnexpectedInput, text: str, file: str) -> TcError:
    if isinstance(error, UnexpectedCharacters):
        span = Span(file, error.line, error.column, error.line, error.column + 1)
        return TcError(f"unexpected character {text[error.pos_in_stream]!r}", span, text)
    if isinstance(error, UnexpectedToken):
        t = error.token
        span = Span(file, t.line, t.column, t.end_line, t.end_column)
        return TcError(f"unexpected {t.value!r}; expected one of {sorted(error.expected)}", span, text)
    return TcError("unexpected end of the text", Span(file, 1, 1, 1, 1), text)


def explain_layout(error: LayoutError, text: str, file: str) -> TcError:
    line = error.newline.end_line
    span = Span(file, line, 1, line, error.column + 1)
    return TcError("this indentation matches no open block", span, text)
