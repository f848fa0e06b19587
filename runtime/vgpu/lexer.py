"""PTX text -> tokens with line numbers. Opcodes (`ld.global.v4.f32`), directives (`.reg`) and names are one token."""

from __future__ import annotations

import re
from typing import NamedTuple

from tcomp.runtime.vgpu.errors import PtxError

# What texts have most of comes first.
_KINDS = {
    "word": r"[A-Za-z_$%][\w$]*(?:(?:\.|::)[\w$]+)*",
    "newline": r"\n",
    "space": r"//[^\n]*|\Z",
    "comment": r"/\*.*?\*/",
    "dwarf": r"@@DWARF",
    "punct": r"<<|>>|<=|>=|==|!=|&&|\|\||[{}()\[\]<>,;:=|!+\-*@~/&^?]",
    "bits": r"0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b",
    "float": r"\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+",
    "int": r"0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|\d+U?",
    "directive": r"\.[A-Za-z_]\w*(?:::\w+)*",
    "string": r'"(?:[^"\\]|\\.)*"',
    "unknown": r".",
}
_PIECE = re.compile(rf"[ \t\r\f\v]*({'|'.join(_KINDS.values())})", re.S)
_KIND = re.compile("|".join(f"(?P<{name}>{form})" for name, form in _KINDS.items()), re.S)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


def tokens(text: str) -> list[Token]:
    """Every token of `text`, ended by one of kind "end". PtxError on a character PTX does not have."""
    out: list[Token] = []
    kinds: dict[str, str] = {}  # of what was seen before: texts name few things, often
    line = 1
    for piece in _PIECE.findall(text):
        if piece == "\n":
            line += 1
            continue
        kind = kinds.get(piece)
        if kind is None:
            found = _KIND.fullmatch(piece)
            kind = kinds[piece] = str(found.lastgroup) if found else "unknown"
        if kind == "comment":
            line += piece.count("\n")
        elif kind == "unknown":
            raise PtxError(f"unexpected character {piece!r}", line)
        elif kind != "space":
            out.append(Token(kind, piece, line))
    out.append(Token("end", "", line))
    return out
