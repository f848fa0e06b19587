"""The operands of an instruction, as written; names are resolved later, because labels may follow their use.

A bare name is given as Reg, whatever it is, and `name+4` as Sym.
"""

from __future__ import annotations

from tcomp.runtime.vgpu.constant import expression
from tcomp.runtime.vgpu.cursor import Cursor
from tcomp.runtime.vgpu.ptx import Addr, Group, Not, Operand, Pair, Reg, Sym, Vec

_ENDS = (",", ";")


def operand(c: Cursor) -> Operand:
    token = c.now
    if token.kind == "word" and c.tokens[c.at + 1].text in _ENDS:  # a bare name, as most are
        c.at += 1
        return Reg(token.text)
    first = _simple(c)
    if c.take("|"):
        return Pair(first, _simple(c))
    return first


def _simple(c: Cursor) -> Operand:
    if c.take("!"):
        return Not(_simple(c))
    if c.take("["):
        return _address(c)
    if c.take("{"):
        return Vec(_listed(c, "}"))
    if c.peek("(") and not _is_expression(c):
        c.next()
        return Group(_listed(c, ")"))
    if c.now.kind == "word":
        name = c.word()
        if c.peek("+") or c.peek("-"):
            return Sym(name, _offset(c))
        return Reg(name)
    if c.peek("-") and c.tokens[c.at + 1].kind == "word":
        c.next()
        return Not(Reg(c.word()))
    return expression(c)


def _is_expression(c: Cursor) -> bool:
    """`(1 + 2)` is a constant, `(param0, 5)` an argument list: a list holds names, or nothing, or one literal."""
    depth, at, operators = 0, c.at, False
    while at < len(c.tokens):
        token = c.tokens[at]
        depth += (token.text == "(") - (token.text == ")")
        if depth == 0:
            return operators
        if token.kind == "word" or token.text == ",":
            return False
        operators |= token.text in ("+", "*", "/", "%", "<<", ">>", "&", "|", "^", "~", "?")
        at += 1
    return False


def _listed(c: Cursor, closing: str) -> tuple[Operand, ...]:
    items = []
    while not c.take(closing):
        items.append(operand(c))
        c.take(",")
    return tuple(items)


def _offset(c: Cursor) -> int:
    total = 0
    while c.peek("+") or c.peek("-"):
        negative = c.next().text == "-"
        value = c.integer()
        total += -value if negative else value
    return total


def _address(c: Cursor) -> Addr:
    base: Reg | Sym | None = None
    offset = 0
    if c.now.kind == "word":
        name = c.word()
        base = Reg(name)
        if c.take("["):  # [array[3]] in old PTX: an element number; only bytes are known here
            raise c.fail("an element of an array inside an address is not supported: write [name+bytes]")
        offset = _offset(c)
    else:
        value = expression(c).value
        if not isinstance(value, int):
            raise c.fail("an address must be an integer")
        offset = value
    coords: list[Operand] = []
    while c.take(","):
        coords.append(operand(c))
    c.expect("]")
    return Addr(base, offset, tuple(coords))
