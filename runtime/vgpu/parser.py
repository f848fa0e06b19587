"""PTX text -> PtxModule, by recursive descent (PTX ISA chapters 4 to 6, 10 and 11).

Every instruction keeps its line. Debug sections, `.loc`, `.file` and `.pragma` are read and dropped;
anything else that is not understood is an error.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.lexer import Token, tokens
from tcomp.runtime.vgpu.ptx import (
    Addr,
    Function,
    Group,
    Imm,
    Instr,
    Label,
    Not,
    Operand,
    Pair,
    PtxModule,
    Reg,
    Sym,
    Variable,
    Vec,
)
from tcomp.runtime.vgpu.scope import Scope
from tcomp.runtime.vgpu.types import scalar

_LINKAGE = {".visible", ".weak", ".extern", ".common"}
_SPACES = {".global", ".const", ".shared", ".local", ".param"}
_LIMITS = {".maxntid", ".reqntid", ".maxnreg", ".minnctapersm", ".maxnctapersm", ".reqnctapercluster",
           ".maxclusterrank", ".explicitcluster", ".noreturn", ".abi_preserve", ".abi_preserve_control",
           ".blocksareclusters"}  # fmt: skip


def parse(text: str) -> PtxModule:
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.at = 0

    # --- tokens
    @property
    def now(self) -> Token:
        return self.tokens[self.at]

    def peek(self, text: str) -> bool:
        return self.tokens[self.at].text == text and self.tokens[self.at].kind != "string"

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.at += 1
            return True
        return False

    def next(self) -> Token:
        token = self.tokens[self.at]
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
            raise self.fail(f"expected a name, found `{self.now.text}`")
        return self.next().text

    def integer(self) -> int:
        sign = -1 if self.take("-") else 1
        if self.now.kind != "int":
            raise self.fail(f"expected an integer, found `{self.now.text}`")
        return sign * _integer(self.next().text)

    # --- module level
    def module(self) -> PtxModule:
        m = PtxModule(text=self.text.splitlines())
        self.globals = Scope(None)
        while self.now.kind != "end":
            linkage = set()
            while self.now.text in _LINKAGE:
                linkage.add(self.next().text)
            token = self.now
            if self.take(".version"):
                m.version = self.next().text
            elif self.take(".target"):
                m.target = self.word()
                while self.take(","):
                    self.word()
            elif self.take(".address_size"):
                if self.integer() != 64:
                    raise self.fail("only `.address_size 64` is supported")
            elif self.peek(".entry") or self.peek(".func"):
                f = self.function()
                old = m.functions.get(f.name)
                if old is None or old.body is None:
                    m.functions[f.name] = f
            elif token.text in _SPACES:
                for v in self.variables(self.globals, extern=".extern" in linkage):
                    m.variables[v.name] = v
            elif not self.dropped():
                raise self.fail(f"`{token.text}` is not understood at module level")
        return m

    def dropped(self) -> bool:
        """Directives that say nothing about execution."""
        if self.take(".file"):
            self.integer()
            self.next()
            while self.take(","):
                self.integer()
        elif self.take(".section"):
            self.next()
            self.expect("{")
            while not self.take("}"):
                self.next()
        elif self.take(".pragma") or self.take(".alias"):
            while not self.take(";"):
                self.next()
        elif self.take(".loc"):
            line = self.now.line
            while self.now.line == line and self.now.kind != "end":
                self.next()
        else:
            return self.take(";")
        return True

    def function(self) -> Function:
        line = self.now.line
        entry = self.next().text == ".entry"
        self.scope = Scope(self.globals)
        returns: list[Variable] = []
        if self.now.text == ".attribute":
            self.next()
            self.skip_parentheses()
        if self.peek("("):
            returns = self.parameters()
        f = Function(self.word(), entry, [], returns, line)
        if self.peek("("):
            f.params = self.parameters()
        while self.now.text in _LIMITS:
            name = self.next().text[1:]
            values = []
            while self.now.kind == "int":
                values.append(self.integer())
                if not self.take(","):
                    break
            f.directives[name] = tuple(values)
        while self.dropped_pragma():
            pass
        if self.take(";"):
            return f
        for v in (*f.params, *f.returns):
            f.variables[v.name] = v
        self.f = f
        self.body: list[Instr | Label] = []
        self.block()
        f.body = [self.resolve(s) if isinstance(s, Instr) else s for s in self.body_scoped()]
        return f

    def dropped_pragma(self) -> bool:
        return self.peek(".pragma") and self.dropped()

    def skip_parentheses(self) -> None:
        self.expect("(")
        while not self.take(")"):
            self.next()

    def parameters(self) -> list[Variable]:
        self.expect("(")
        out: list[Variable] = []
        while not self.take(")"):
            self.take(",")
            if self.now.text in (".param", ".reg"):
                out += self.variables(self.scope, parameter=True)
            else:
                raise self.fail(f"expected a parameter, found `{self.now.text}`")
        return out

    def variables(self, scope: Scope, extern: bool = False, parameter: bool = False) -> list[Variable]:
        """`.space .align N .type name[dims] = {...}, ...;`"""
        space = self.next().text[1:]
        align, type_name, lanes = 0, "", 1
        while self.now.kind == "directive":
            directive = self.next().text
            if directive == ".align":
                align = self.integer()
            elif directive in (".v2", ".v4", ".v8"):
                lanes = int(directive[2:])
            elif directive == ".ptr":
                while self.now.text in (".global", ".const", ".shared", ".local", ".align", ".param"):
                    if self.next().text == ".align":
                        self.integer()
            elif directive in (".attribute", ".unified"):
                if self.peek("("):
                    self.skip_parentheses()
            else:
                type_name = directive[1:]
        out = []
        while True:
            token = self.now
            name = self.word()
            count, open_ended = lanes, False
            while self.take("["):
                if self.take("]"):
                    open_ended = True
                else:
                    count *= self.integer()
                    self.expect("]")
            initial = self.initialiser() if self.take("=") else ()
            if open_ended:
                count = len(initial)
            known = type_name in ("texref", "samplerref", "surfref")
            size = 8 if known else scalar(type_name, token.line).size
            unique = scope.declare(name)
            out.append(
                Variable(unique, space, type_name, align or size * lanes, count, size * count, token.line,
                         tuple(initial), extern)
            )  # fmt: skip
            if parameter or not self.take(","):
                break
        if not parameter:
            self.expect(";")
        return out

    def initialiser(self) -> list[int | float | Sym]:
        if self.take("{"):
            values: list[int | float | Sym] = []
            while not self.take("}"):
                values += self.initialiser()
                self.take(",")
            return values
        if self.now.kind == "word":
            name = self.word()
            if name == "generic" or name.startswith("mask"):
                self.take("(")
                name = self.word()
                self.take(")")
            return [Sym(name, self.tail_offset())]
        operand = self.literal()
        return [operand.value if operand.bits in (0, 1) else _from_bits(operand)]

    def tail_offset(self) -> int:
        if self.take("+"):
            return self.integer()
        return self.integer() if self.peek("-") else 0

    # --- bodies
    def body_scoped(self) -> list[Instr | Label]:
        return self.body

    def block(self) -> None:
        self.expect("{")
        while not self.take("}"):
            self.statement()

    def statement(self) -> None:
        token = self.now
        if self.peek("{"):
            self.scope = Scope(self.scope)
            self.block()
            assert self.scope.parent is not None
            self.scope = self.scope.parent
        elif token.text == ".reg":
            self.registers()
        elif token.text in _SPACES:
            for v in self.variables(self.scope, extern=False):
                self.f.variables[v.name] = v
        elif token.text == ".extern":
            self.next()
        elif self.dropped():
            return
        elif token.kind == "word" and self.tokens[self.at + 1].text == ":":
            self.label()
        else:
            self.instruction()

    def registers(self) -> None:
        self.next()
        lanes = 0
        type_name = self.next().text[1:]
        if type_name in ("v2", "v4"):
            lanes, type_name = int(type_name[1:]), self.next().text[1:]
        while True:
            name = self.word()
            names = [name]
            if self.take("<"):
                names = [f"{name}{i}" for i in range(self.integer())]
                self.expect(">")
            for n in names:
                for part in [f".{c}" for c in "xyzw"[:lanes]] or [""]:
                    self.f.registers[self.scope.declare(n + part)] = type_name
            if not self.take(","):
                break
        self.expect(";")

    def label(self) -> None:
        line = self.now.line
        name = self.scope.declare(self.word())
        self.expect(":")
        if self.now.text in (".branchtargets", ".calltargets"):
            self.next()
            names = [self.word()]
            while self.take(","):
                names.append(self.word())
            self.expect(";")
            scope = self.scope
            self.f.tables[name] = tuple(names)
            self.pending_table = (name, scope)
        elif self.take(".callprototype"):
            while not self.take(";"):
                self.next()
        else:
            self.body.append(Label(name, line))

    def instruction(self) -> None:
        line = self.now.line
        guard, negated = None, False
        if self.take("@"):
            negated = self.take("!")
            guard = self.word()
        if self.now.kind != "word":
            raise self.fail(f"expected an instruction, found `{self.now.text}`")
        opcode = self.next().text
        operands = []
        while not self.take(";"):
            operands.append(self.operand())
            if not self.peek(";"):
                self.expect(",")
        instr = Instr(opcode, tuple(operands), line, guard, negated)
        self.body.append(instr)
        self.scopes = getattr(self, "scopes", {})
        self.scopes[id(instr)] = self.scope

    def operand(self) -> Operand:
        first = self.simple()
        if self.take("|"):
            return Pair(first, self.simple())
        return first

    def simple(self) -> Operand:
        if self.take("!"):
            return Not(self.simple())
        if self.take("["):
            return self.address()
        if self.take("{"):
            return Vec(tuple(self.listed("}")))
        if self.take("("):
            return Group(tuple(self.listed(")")))
        if self.now.kind == "word":
            name = self.word()
            if self.peek("+") or self.peek("-"):
                return Sym(name, self.tail_offset())
            return Reg(name)
        return self.literal()

    def listed(self, closing: str) -> list[Operand]:
        items = []
        while not self.take(closing):
            items.append(self.operand())
            self.take(",")
        return items

    def address(self) -> Addr:
        base: Reg | Sym | None = None
        offset = 0
        if self.now.kind == "word":
            base = Reg(self.word())
            while self.peek("+") or self.peek("-"):
                offset += self.tail_offset()
        else:
            offset = self.integer()
        coords: list[Operand] = []
        while self.take(","):
            coords.append(self.operand())
        self.expect("]")
        return Addr(base, offset, tuple(coords))

    def literal(self) -> Imm:
        sign = -1 if self.take("-") else 1
        token = self.next()
        if token.kind == "int":
            return Imm(sign * _integer(token.text))
        if token.kind == "float":
            return Imm(sign * float(token.text), 1)
        if token.kind == "bits":
            return Imm(int(token.text[2:], 16) ^ (0 if sign > 0 else 1 << (len(token.text) - 2) * 4 - 1),
                       (len(token.text) - 2) * 4)  # fmt: skip
        raise PtxError(f"expected an operand, found `{token.text}`", token.line)

    # --- names: after the whole body, because labels may follow their use
    def resolve(self, instr: Instr) -> Instr:
        scope: Scope = self.scopes.pop(id(instr))
        guard = scope.find(instr.guard) if instr.guard else None
        return replace(instr, operands=tuple(self.rename(o, scope) for o in instr.operands), guard=guard)

    def rename(self, o: Operand, scope: Scope) -> Operand:
        if isinstance(o, Reg):
            name = scope.find(o.name)
            if name in self.f.registers or name.startswith("%") or name == "_":
                return Reg(name)
            return Sym(name) if name != "WARP_SZ" else Imm(32)
        if isinstance(o, Sym):
            return Sym(scope.find(o.name), o.offset)
        if isinstance(o, Addr):
            base = self.rename(o.base, scope) if o.base is not None else None
            assert base is None or isinstance(base, Reg | Sym)
            return Addr(base, o.offset, tuple(self.rename(c, scope) for c in o.coords))
        if isinstance(o, Vec):
            return Vec(tuple(self.rename(c, scope) for c in o.items))
        if isinstance(o, Group):
            return Group(tuple(self.rename(c, scope) for c in o.items))
        if isinstance(o, Pair):
            return Pair(self.rename(o.first, scope), self.rename(o.second, scope))
        if isinstance(o, Not):
            return Not(self.rename(o.item, scope))
        return o


def _integer(text: str) -> int:
    text = text.rstrip("U")
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    if text[:2] in ("0b", "0B"):
        return int(text, 2)
    return int(text, 8) if len(text) > 1 and text[0] == "0" else int(text)


def _from_bits(operand: Imm) -> float:
    code, raw = ("<f", 4) if operand.bits == 32 else ("<d", 8)
    return float(struct.unpack(code, int(operand.value).to_bytes(raw, "little"))[0])
