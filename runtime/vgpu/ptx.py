"""The PTX module as data: functions, variables, instructions and operands, each with its PTX line.

The parser gives these; names in operands are already resolved through PTX's nested scopes (a name
declared in an inner `{ }` gets a suffix that makes it unique in its function).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Reg:
    """A register, a special register (`%tid.x`) when it was never declared, or a vector part (`%v.x`)."""

    name: str


@dataclass(frozen=True)
class Imm:
    """A literal. `bits` is 0 for an integer, 32 or 64 for a 0f / 0d bit pattern, 1 for a decimal float."""

    value: int | float
    bits: int = 0


@dataclass(frozen=True)
class Sym:
    """A variable, parameter, function or label, plus a constant byte offset."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Addr:
    """`[base + offset]`, or `[base, {coords}]` of tensor instructions."""

    base: Reg | Sym | None
    offset: int = 0
    coords: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Vec:
    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """`d|p`: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Not:
    """`!p` as a source, or `-x`."""

    item: Operand


@dataclass(frozen=True)
class Group:
    """A parenthesised operand list of `call`."""

    items: tuple[Operand, ...]


Operand = Reg | Imm | Sym | Addr | Vec | Pair | Not | Group


def renamed(o: Operand, name: Callable[[str], Operand]) -> Operand:
    """`o` with every name in it replaced by what `name` gives: a Reg, a Sym (offsets are added) or an Imm."""
    if isinstance(o, Reg):
        return name(o.name)
    if isinstance(o, Sym):
        found = name(o.name)
        if isinstance(found, Sym):
            return Sym(found.name, found.offset + o.offset)
        return Sym(found.name, o.offset) if isinstance(found, Reg) else found
    if isinstance(o, Addr):
        base = name(o.base.name) if o.base is not None else None
        if isinstance(o.base, Sym) and isinstance(base, Sym):
            base = Sym(base.name, base.offset + o.base.offset)
        assert base is None or isinstance(base, Reg | Sym)
        return Addr(base, o.offset, tuple(renamed(c, name) for c in o.coords))
    if isinstance(o, Vec):
        return Vec(tuple(renamed(c, name) for c in o.items))
    if isinstance(o, Group):
        return Group(tuple(renamed(c, name) for c in o.items))
    if isinstance(o, Pair):
        return Pair(renamed(o.first, name), renamed(o.second, name))
    if isinstance(o, Not):
        return Not(renamed(o.item, name))
    return o


def symbols(o: Operand) -> list[str]:
    """Every Sym's name in `o`."""
    if isinstance(o, Sym):
        return [o.name]
    if isinstance(o, Addr):
        return ([o.base.name] if isinstance(o.base, Sym) else []) + [s for c in o.coords for s in symbols(c)]
    if isinstance(o, Vec | Group):
        return [s for i in o.items for s in symbols(i)]
    return []


@dataclass(frozen=True)
class AddressByte:
    """`0xFF00(name)` in an initialiser: the byte of the address under the mask."""

    of: Sym
    mask: int


Initial = int | float | Sym | AddressByte


@dataclass(frozen=True)
class Instr:
    opcode: str
    operands: tuple[Operand, ...]
    line: int
    guard: str | None = None
    guard_not: bool = False

    @cached_property
    def parts(self) -> list[str]:
        return self.opcode.split(".")


@dataclass(frozen=True)
class Label:
    name: str
    line: int


@dataclass(frozen=True)
class Variable:
    """A variable or parameter. `type` is the element type (`f32`), `count` the elements in all, 0 for `[]`."""

    name: str
    space: str
    type: str
    align: int
    count: int
    size: int
    line: int
    initial: tuple[Initial, ...] = ()
    extern: bool = False


@dataclass
class Function:
    name: str
    entry: bool
    params: list[Variable]
    returns: list[Variable]
    line: int
    body: list[Instr | Label] | None = None
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class PtxModule:
    version: str = ""
    target: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)

    def source_line(self, line: int) -> str:
        return self.text[line - 1].strip() if 0 < line <= len(self.text) else ""
