"""PTX text -> PtxModule, by recursive descent (PTX ISA chapters 4 to 6, 10 and 11).

Every instruction keeps its line. Debug sections, `.loc`, `.file` and `.pragma` are read and dropped;
anything else that is not understood is an error.
"""

from __future__ import annotations

from typing import NamedTuple

from tcomp.runtime.vgpu.cursor import Cursor
from tcomp.runtime.vgpu.declarations import SPACES, registers, variables
from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.operands import operand
from tcomp.runtime.vgpu.ptx import Function, Imm, Instr, Label, Operand, PtxModule, Reg, Sym, Variable, renamed
from tcomp.runtime.vgpu.scope import Scope

_LINKAGE = {".visible", ".weak", ".extern", ".common"}
_LIMITS = {".maxntid", ".reqntid", ".maxnreg", ".minnctapersm", ".maxnctapersm", ".reqnctapercluster",
           ".maxclusterrank", ".explicitcluster", ".noreturn", ".abi_preserve", ".abi_preserve_control",
           ".blocksareclusters"}  # fmt: skip
_CONSTANTS = {"WARP_SZ": 32}


def parse(text: str) -> PtxModule:
    """PtxError names the line of the first thing that is not understood."""
    return _Module(text).parse()


class _Module:
    def __init__(self, text: str) -> None:
        self.c = Cursor(text)
        self.found = PtxModule(text=text.splitlines())
        self.globals = Scope(None)

    def parse(self) -> PtxModule:
        while self.c.now.kind != "end":
            self.declaration()
        for name, target in self.found.aliases.items():
            if target not in self.found.functions:
                raise PtxError(f"`.alias {name}, {target}`: no such function")
            self.found.functions[name] = self.found.functions[target]
        return self.found

    def declaration(self) -> None:
        c, m = self.c, self.found
        linkage = set()
        while c.now.text in _LINKAGE:
            linkage.add(c.next().text)
        token = c.now
        if c.take(".version"):
            m.version = c.next().text
        elif c.take(".target"):
            m.target = c.names()[0]
        elif c.take(".address_size"):
            if c.integer() != 64:
                raise c.fail("only `.address_size 64` is supported")
        elif c.take(".alias"):
            name, target = c.names()
            m.aliases[name] = target
            c.expect(";")
        elif c.peek(".entry") or c.peek(".func"):
            f = self.function()
            old = m.functions.get(f.name)
            if old is None or old.body is None:
                m.functions[f.name] = f
        elif token.text in SPACES:
            for v in variables(c, self.globals, extern=".extern" in linkage):
                if v.name not in m.variables or not v.extern:
                    m.variables[v.name] = v
        elif not dropped(c):
            raise c.fail(f"`{token.text}` is not understood at module level")

    def function(self) -> Function:
        c = self.c
        line = c.now.line
        entry = c.next().text == ".entry"
        scope = Scope(self.globals)
        if c.take(".attribute"):
            c.skip_until(")")
        returns = self.parameters(scope) if c.peek("(") else []
        f = Function(c.word(), entry, [], returns, line)
        if c.peek("("):
            f.params = self.parameters(scope)
        while c.now.text in _LIMITS or c.peek(".pragma"):
            if not dropped(c):
                name = c.next().text[1:]
                f.directives[name] = _integers(c)
        if c.take(";"):
            return f
        for v in (*f.params, *f.returns):
            f.variables[v.name] = v
        return _Body(c, f, scope).parse()

    def parameters(self, scope: Scope) -> list[Variable]:
        c = self.c
        c.expect("(")
        out: list[Variable] = []
        while not c.take(")"):
            c.take(",")
            if c.now.text not in (".param", ".reg"):
                raise c.fail(f"expected a parameter, found `{c.now.text}`")
            out += variables(c, scope, parameter=True)
        return out


def _integers(c: Cursor) -> tuple[int, ...]:
    values = []
    while c.now.kind == "int":
        values.append(c.integer())
        if not c.take(","):
            break
    return tuple(values)


def dropped(c: Cursor) -> bool:
    """Passes over a directive that says nothing about execution; False when there is none here."""
    if c.take(".file"):
        c.integer()
        c.next()
        while c.take(","):
            c.integer()
    elif c.take(".section"):
        c.next()
        c.expect("{")
        c.skip_until("}")
    elif c.take(".pragma"):
        c.skip_until(";")
    elif c.take(".loc") or c.take("@@DWARF"):
        line = c.now.line
        while c.now.line == line and c.now.kind != "end":
            c.next()
    else:
        return c.take(";")
    return True


class _Written(NamedTuple):
    """An instruction whose names are still to be looked up in `scope`; an operand that is a bare name is its text."""

    opcode: str
    operands: list[Operand | str]
    line: int
    guard: str | None
    guard_not: bool
    scope: Scope


class _Body:
    """The statements of one function. Names are resolved at its end, because labels may follow their use."""

    def __init__(self, c: Cursor, f: Function, scope: Scope) -> None:
        self.c, self.f, self.scope = c, f, scope
        self.written: list[_Written | Label] = []
        self.tables: list[tuple[str, tuple[str, ...], Scope]] = []
        self.known: dict[Scope, dict[str, Operand]] = {}
        """of each scope, what its names stand for, once all are known"""

    def parse(self) -> Function:
        self.block()
        for name, labels, scope in self.tables:
            self.f.tables[name] = tuple(scope.find(x) for x in labels)
        self.f.body = [x if isinstance(x, Label) else self.resolve(x) for x in self.written]
        return self.f

    def block(self) -> None:
        self.c.expect("{")
        while not self.c.take("}"):
            self.statement()

    def statement(self) -> None:
        c = self.c
        token = c.now
        if token.kind == "word":
            if c.tokens[c.at + 1].text == ":":
                self.label()
            else:
                self.instruction()
        elif c.peek("{"):
            outer = self.scope
            self.scope = Scope(outer)
            self.block()
            self.scope = outer
        elif token.text == ".reg":
            self.f.registers |= registers(c, self.scope)
        elif token.text in SPACES or token.text in _LINKAGE:
            while c.now.text in _LINKAGE:
                c.next()
            for v in variables(c, self.scope, extern=token.text == ".extern"):
                self.f.variables[v.name] = v
        elif dropped(c):
            return
        else:
            self.instruction()

    def label(self) -> None:
        c = self.c
        line = c.now.line
        name = self.scope.declare(c.word())
        c.expect(":")
        if c.take(".branchtargets") or c.take(".calltargets"):
            self.tables.append((name, c.names(), self.scope))
            c.expect(";")
        elif c.take(".callprototype"):
            c.skip_until(";")
        else:
            self.written.append(Label(name, line))

    def instruction(self) -> None:
        c = self.c
        line = c.now.line
        guard, negated = None, False
        if c.take("@"):
            negated = c.take("!")
            guard = c.word()
        if c.now.kind != "word":
            raise c.fail(f"expected an instruction, found `{c.now.text or 'the end of the text'}`")
        opcode = c.next().text
        operands: list[Operand | str] = []
        every, at = c.tokens, c.at
        while True:  # (bare names, as most operands are, are read here, the others by `operand`)
            token = every[at]
            if token.kind == "word" and every[at + 1].text in (",", ";"):
                operands.append(token.text)
                at += 1
            elif token.text == ";":
                break
            else:
                c.at = at
                operands.append(operand(c))
                at = c.at
            if every[at].text == ",":
                at += 1
            elif every[at].text != ";":
                c.at = at
                c.expect(",")
        c.at = at + 1
        self.written.append(_Written(opcode, operands, line, guard, negated, self.scope))

    def resolve(self, w: _Written) -> Instr:
        scope = w.scope
        known = self.known.setdefault(scope, {})

        def name(written: str) -> Operand:
            found = known.get(written)
            if found is None:
                found = known[written] = self.meaning(scope.find(written))
            return found

        operands = tuple([name(o) if isinstance(o, str) else renamed(o, name) for o in w.operands])
        return Instr(w.opcode, operands, w.line, scope.find(w.guard) if w.guard else None, w.guard_not)

    def meaning(self, found: str) -> Operand:
        """What a name stands for, once its scope is known."""
        if found in _CONSTANTS:
            return Imm(_CONSTANTS[found])
        register = found in self.f.registers or found.startswith("%") or found == "_"
        formal = self.f.variables.get(found)
        return Reg(found) if register or (formal and formal.space == "reg") else Sym(found)
