"""Constant expressions (PTX ISA 4.5): literals, and C's operators on them, evaluated to one Imm.

Integers are 64 bits wide, unsigned as soon as one operand is (a `U`, or too large for signed).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tcomp.runtime.vgpu.cursor import Cursor, number
from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.ptx import Imm

Value = int | float
_LEVELS: tuple[dict[str, Callable[[int, int], int]], ...] = (
    {"||": lambda a, b: int(bool(a or b))},
    {"&&": lambda a, b: int(bool(a and b))},
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"==": lambda a, b: int(a == b), "!=": lambda a, b: int(a != b)},
    {"<": lambda a, b: int(a < b), "<=": lambda a, b: int(a <= b), ">": lambda a, b: int(a > b),
     ">=": lambda a, b: int(a >= b)},
    {"<<": lambda a, b: a << (b & 63), ">>": lambda a, b: a >> (b & 63)},
    {"+": lambda a, b: a + b, "-": lambda a, b: a - b},
    {"*": lambda a, b: a * b, "/": lambda a, b: _quotient(a, b), "%": lambda a, b: a - b * _quotient(a, b)},
)  # fmt: skip


def expression(c: Cursor) -> Imm:
    """A constant expression. A float literal stands alone, with an optional sign."""
    if c.now.kind in ("int", "float", "bits") and c.tokens[c.at + 1].text in (",", ";", "]", "}"):
        return _literal(c)
    return _conditional(c)


def as_float(x: Imm) -> float:
    """The value of a literal in a float's initialiser."""
    if x.bits in (0, 1):
        return float(x.value)
    code, size = ("<f", 4) if x.bits == 32 else ("<d", 8)
    return float(struct.unpack(code, int(x.value).to_bytes(size, "little"))[0])


def _conditional(c: Cursor) -> Imm:
    test = _binary(c, 0)
    if not c.take("?"):
        return test
    yes = _conditional(c)
    c.expect(":")
    no = _conditional(c)
    return yes if test.value else no


def _binary(c: Cursor, level: int) -> Imm:
    if level == len(_LEVELS):
        return _unary(c)
    left = _binary(c, level + 1)
    while c.now.text in _LEVELS[level] and c.now.kind != "string":
        name = c.next().text
        right = _binary(c, level + 1)
        if left.bits or right.bits:
            raise c.fail("floating-point constants take no operators here")
        try:
            left = Imm(_LEVELS[level][name](int(left.value), int(right.value)))
        except ZeroDivisionError as e:
            raise c.fail("division by zero in a constant expression") from e
    return left


def _unary(c: Cursor) -> Imm:
    if c.take("-"):
        x = _unary(c)
        if x.bits in (32, 64):
            return Imm(int(x.value) ^ 1 << x.bits - 1, x.bits)
        return Imm(-x.value, x.bits)
    if c.take("+"):
        return _unary(c)
    if c.take("~"):
        return Imm(~int(_unary(c).value))
    if c.take("!"):
        return Imm(int(not _unary(c).value))
    if c.peek("(") and c.tokens[c.at + 1].text in (".s64", ".u64"):  # a cast
        c.next()
        signed = c.next().text == ".s64"
        c.expect(")")
        value = int(_unary(c).value) & (1 << 64) - 1
        return Imm(value - (1 << 64) if signed and value >> 63 else value)
    if c.take("("):
        inside = _conditional(c)
        c.expect(")")
        return inside
    return _literal(c)


def _literal(c: Cursor) -> Imm:
    token = c.next()
    if token.kind == "int":
        return Imm(number(token.text))
    if token.kind == "float":
        return Imm(float(token.text), 1)
    if token.kind == "bits":
        return Imm(int(token.text[2:], 16), (len(token.text) - 2) * 4)
    raise PtxError(f"expected an operand, found `{token.text}`", token.line)


def _quotient(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q
