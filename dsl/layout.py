"""Blocks by indentation: adds _INDENT and _DEDENT to the token stream, from the newlines in it.

A newline inside brackets or behind a comma is no newline. (A line that begins with `->` continues the line before it:
that newline is part of the arrow's token, see grammar.lark.) Tokens are never held back, since the lexer asks the
parser what it can take next.
"""

from __future__ import annotations

from collections.abc import Iterator

from lark import Token
from lark.lark import PostLex

_OPEN = frozenset(("LPAR", "LSQB"))
_CLOSE = frozenset(("RPAR", "RSQB"))


class LayoutError(Exception):
    """An indentation that matches no open block. `newline` ends with that indentation."""

    def __init__(self, newline: Token, column: int, open_columns: tuple[int, ...]) -> None:
        super().__init__("indentation matches no open block")
        self.newline = newline
        self.column = column
        self.open_columns = open_columns


class Layout(PostLex):
    """lark's post-lexer for indentation; `process` starts afresh on every call."""

    always_accept = ("_NEWLINE",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        columns = [0]
        depth = 0
        last: Token | None = None
        for token in stream:
            kind = token.type
            if kind == "_NEWLINE":
                if depth == 0 and (last is None or last.type != "COMMA"):
                    yield from self._line(token, columns)
                    last = token
                continue
            if kind in _OPEN:
                depth += 1
            elif kind in _CLOSE:
                depth = max(0, depth - 1)
            last = token
            yield token
        if last is not None:
            if last.type != "_NEWLINE":
                yield Token.new_borrow_pos("_NEWLINE", "", last)
            for _ in columns[1:]:
                yield Token.new_borrow_pos("_DEDENT", "", last)

    @staticmethod
    def _line(newline: Token, columns: list[int]) -> Iterator[Token]:
        """A newline and the change of indentation after it."""
        tail = newline.value.rsplit("\n", 1)[1]
        column = 0 if "#" in tail else len(tail)
        open_columns = tuple(columns)
        yield newline
        if column > columns[-1]:
            columns.append(column)
            yield Token.new_borrow_pos("_INDENT", "", newline)
        while column < columns[-1]:
            columns.pop()
            yield Token.new_borrow_pos("_DEDENT", "", newline)
        if column != columns[-1]:
            raise LayoutError(newline, column, open_columns)
