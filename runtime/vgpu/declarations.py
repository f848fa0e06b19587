"""Declarations of variables, parameters and registers (PTX ISA chapter 5), with their initialisers."""

from __future__ import annotations

from tcomp.runtime.vgpu.constant import as_float, expression
from tcomp.runtime.vgpu.cursor import Cursor
from tcomp.runtime.vgpu.ptx import AddressByte, Initial, Sym, Variable
from tcomp.runtime.vgpu.scope import Scope
from tcomp.runtime.vgpu.types import scalar

SPACES = {".global", ".const", ".shared", ".local", ".param", ".tex"}
_POINTER_WORDS = (".global", ".const", ".shared", ".local", ".param", ".align")
_OPAQUE = ("texref", "samplerref", "surfref")


def variables(c: Cursor, scope: Scope, extern: bool = False, parameter: bool = False) -> list[Variable]:
    """`.space .align N .type name[dims] = {...}, ...;` A parameter is one name, with no `;`."""
    space = c.next().text[1:]
    align, type_name, lanes = 0, "", 1
    while c.now.kind == "directive":
        directive = c.next().text
        if directive == ".align":
            align = c.integer()
        elif directive in (".v2", ".v4", ".v8"):
            lanes = int(directive[2:])
        elif directive == ".ptr":
            while c.now.text in _POINTER_WORDS:
                if c.next().text == ".align":
                    c.integer()
        elif directive in (".attribute", ".unified"):
            if c.take("("):
                c.skip_until(")")
        else:
            type_name = directive[1:]
    out = []
    while True:
        line = c.now.line
        name = c.word()
        count, open_ended = _dimensions(c, lanes)
        initial = initialiser(c) if c.take("=") else ()
        size = 8 if type_name in _OPAQUE else scalar(type_name, line).size
        if open_ended:
            count = len(initial)
        unique = scope.declare(name)
        out.append(
            Variable(unique, space, type_name, align or size * lanes, count, size * count, line, tuple(initial), extern)
        )
        if parameter or not c.take(","):
            break
    if not parameter:
        c.expect(";")
    return out


def _dimensions(c: Cursor, count: int) -> tuple[int, bool]:
    open_ended = False
    while c.take("["):
        if c.take("]"):
            open_ended = True
            continue
        value = expression(c).value
        if not isinstance(value, int) or value < 0:
            raise c.fail("an array's size must be an integer that is not negative")
        count *= value
        c.expect("]")
    return count, open_ended


def initialiser(c: Cursor) -> list[Initial]:
    """Values in order, nested braces flattened; a name is that variable's or function's address."""
    if c.take("{"):
        values: list[Initial] = []
        while not c.take("}"):
            values += initialiser(c)
            c.take(",")
        return values
    if c.now.kind == "word":
        return [address(c)]
    if c.now.kind == "int" and c.tokens[c.at + 1].text == "(":  # 0xFF00(name): one byte of an address
        mask = c.integer()
        c.expect("(")
        of = address(c)
        c.expect(")")
        return [AddressByte(of, mask)]
    x = expression(c)
    return [int(x.value) if x.bits == 0 else as_float(x)]


def address(c: Cursor) -> Sym:
    """`name+4` or `generic(name)+4`; global addresses are generic ones here, so both are the same."""
    name = c.word()
    if not c.take("("):
        return Sym(name, _tail(c))
    inner = address(c)
    c.expect(")")
    return Sym(inner.name, inner.offset + _tail(c))


def _tail(c: Cursor) -> int:
    total = 0
    while c.peek("+") or c.peek("-"):
        sign = 1 if c.next().text == "+" else -1
        total += sign * c.integer()
    return total


def registers(c: Cursor, scope: Scope) -> dict[str, str]:
    """`.reg .type name, name<N>;` as {unique name: type}; a vector register is its parts, `name.x` and so on."""
    c.expect(".reg")
    lanes, type_name = 0, c.next().text[1:]
    if type_name in ("v2", "v4"):
        lanes, type_name = int(type_name[1:]), c.next().text[1:]
    scalar(type_name, c.now.line)
    found = {}
    while True:
        name = c.word()
        names = [name]
        if c.take("<"):
            names = [f"{name}{i}" for i in range(c.integer())]
            c.expect(">")
        for n in names:
            for part in [f".{x}" for x in "xyzw"[:lanes]] or [""]:
                found[scope.declare(n + part)] = type_name
        if not c.take(","):
            break
    c.expect(";")
    return found
