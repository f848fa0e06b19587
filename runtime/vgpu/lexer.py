"""PTX text -> tokens with line numbers. Opcodes (`ld.global.v4.f32`), directives (`.reg`) and names are one token."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tcomp.runtime.vgpu.errors import PtxError

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\f\v]+|//[^\n]*)
  | (?P<newline>\n)
  | (?P<comment>/\*.*?\*/)
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<bits>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b)
  | (?P<float>\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)
  | (?P<int>0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|\d+U?)
  | (?P<word>[A-Za-z_$%][\w$]*(?:(?:\.|::)[\w$]+)*)
  | (?P<directive>\.[A-Za-z_]\w*(?:::\w+)*)
  | (?P<dwarf>@@DWARF)
  | (?P<punct><<|>>|<=|>=|==|!=|&&|\|\||[{}()\[\]<>,;:=|!+\-*@~/&^?])
    """,
    re.X | re.S,
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    line: int


def tokens(text: str) -> list[Token]:
    """Every token of `text`, ended by one of kind "end". PtxError on a character PTX does not have."""
    out: list[Token] = []
    line, at, size = 1, 0, len(text)
    while at < size:
        m = _TOKEN.match(text, at)
        if m is None:
            raise PtxError(f"unexpected character {text[at]!r}", line)
        kind = m.lastgroup
        if kind == "newline":
            line += 1
        elif kind == "comment":
            line += m.group().count("\n")
        elif kind != "space":
            out.append(Token(str(kind), m.group(), line))
        at = m.end()
    out.append(Token("end", "", line))
    return out
