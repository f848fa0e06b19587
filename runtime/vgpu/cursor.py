"""A position in the tokens of a PTX text: look, take, expect, fail with the line."""

from __future__ import annotations

from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.lexer import Token, tokens


class Cursor:
    def __init__(self, text: str) -> None:
        self.tokens = tokens(text)
        self.at = 0

    @property
    def now(self) -> Token:
        return self.tokens[self.at]

    def peek(self, text: str) -> bool:
        token = self.tokens[self.at]
        return token.text == text and token.kind != "string"

    def take(self, text: str) -> bool:
        token = self.tokens[self.at]
        if token.text == text and token.kind != "string":
            self.at += 1
            return True
        return False

    def next(self) -> Token:
        token = self.tokens[self.at]
        if token.kind == "end":
            raise self.fail("the text ends here")
        self.at += 1
        return token

    def expect(self, text: str) -> Token:
        if not self.peek(text):
            raise self.fail(f"expected `{text}`, found `{self.now.text or 'the end of the text'}`")
        return self.next()

    def fail(self, message: str) -> PtxError:
        return PtxError(message, self.now.line)

    def word(self) -> str:
        if self.now.kind != "word":
            raise self.fail(f"expected a name, found `{self.now.text or 'the end of the text'}`")
        return self.next().text

    def names(self) -> tuple[str, ...]:
        """`a, b, c`"""
        found = [self.word()]
        while self.take(","):
            found.append(self.word())
        return tuple(found)

    def integer(self) -> int:
        sign = -1 if self.take("-") else 1
        if self.now.kind != "int":
            raise self.fail(f"expected an integer, found `{self.now.text}`")
        return sign * number(self.next().text)

    def skip_until(self, closing: str) -> None:
        while not self.take(closing):
            self.next()


def number(text: str) -> int:
    """A PTX integer literal: decimal, octal (0...), hexadecimal or binary, with an optional U."""
    text = text.rstrip("U")
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    if text[:2] in ("0b", "0B"):
        return int(text, 2)
    return int(text, 8) if len(text) > 1 and text[0] == "0" else int(text)
