"""PTX text -> tokens with line numbers. Opcodes (`ld.global.v4.f32`), directives (`.reg`) and names are one token."""

from __future__ import annotations

import re
from typing import NamedTuple

from tcomp.runtime.vgpu.errors import PtxError

_TOKEN = re.compile(
    r"""[ \t\r\f\v]*(?:
    (?P<newline>\n)
  | (?P<space>//[^\n]*|\Z)
  | (?P<comment>/\*.*?\*/)
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<bits>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b)
  | (?P<float>\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)
  | (?P<int>0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|\d+U?)
  | (?P<word>[A-Za-z_$%][\w$]*(?:(?:\.|::)[\w$]+)*)
  | (?P<directive>\.[A-Za-z_]\w*(?:::\w+)*)
  | (?P<dwarf>@@DWARF)
  | (?P<punct><<|>>|<=|>=|==|!=|&&|\|\||[{}()\[\]<>,;:=|!+\-*@~/&^?])
  | (?P<unknown>.)
  )""",
    re.X | re.S,
)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


def tokens(text: str) -> list[Token]:
    """Every token of `text`, ended by one of kind "end". PtxError on a character PTX does not have."""
    out: list[Token] = []
    line = 1
    for m in _TOKEN.finditer(text):
        kind = str(m.lastgroup)
        if kind == "newline":
            line += 1
        elif kind == "comment":
            line += m[kind].count("\n")
        elif kind == "unknown":
            raise PtxError(f"unexpected character {m[kind]!r}", line)
        elif kind != "space":
            out.append(Token(kind, m[kind], line))
    out.append(Token("end", "", line))
    return out
