"""One kernel as a flat list of instructions: every call of a `.func` is expanded in place.

Registers, labels and variables of an expanded callee get a prefix unique to the call site, and the
callee's formal parameters become the caller's `.param` variables, so execution needs no call stack.
Recursion and calls through a register are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tcomp.runtime.vgpu.errors import PtxError, UnknownInstruction
from tcomp.runtime.vgpu.ptx import (
    Addr,
    Function,
    Group,
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

IGNORED_EXTERNALS = {"vprintf"}


@dataclass
class Program:
    """`labels` maps to an index in `code`; `local`, `args` and `shared` give each variable its offset."""

    entry: Function
    code: list[Instr] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    args_bytes: int = 0
    shared_bytes: int = 0
    dynamic_shared: list[str] = field(default_factory=list)
    param_bytes: int = 0


def flatten(module: PtxModule, entry: Function) -> Program:
    program = Program(entry)
    for p in entry.params:
        start = _up(program.param_bytes, p.align)
        program.variables[p.name] = replace(p, space="kernel")
        program.offsets[p.name] = start
        program.param_bytes = start + p.size
    _expand(program, module, entry, "", {}, [])
    program.code.append(Instr("exit", (), entry.line))
    used = {s for i in program.code for o in i.operands for s in _symbols(o)}
    for v in module.variables.values():
        if v.space == "shared" and v.name in used:
            _place(program, v.name, v)
        elif v.space in ("global", "const"):
            program.variables[v.name] = v
    for name in program.dynamic_shared:
        program.offsets[name] = _up(program.shared_bytes, program.variables[name].align)
    return program


def _up(value: int, align: int) -> int:
    return (value + align - 1) // align * align


def _place(program: Program, name: str, v: Variable) -> None:
    program.variables[name] = v
    if v.space == "shared" and (v.extern or v.size == 0):
        program.dynamic_shared.append(name)
        return
    attribute = {"local": "local_bytes", "param": "args_bytes", "shared": "shared_bytes"}.get(v.space)
    if attribute is None:
        return
    start = _up(getattr(program, attribute), v.align)
    program.offsets[name] = start
    setattr(program, attribute, start + v.size)


def _expand(
    program: Program, module: PtxModule, f: Function, prefix: str, formals: dict[str, str], stack: list[str]
) -> None:
    if f.name in stack:
        raise UnknownInstruction("call", f.line, f"recursive call of `{f.name}`")
    stack = [*stack, f.name]
    names: dict[str, str] = dict(formals)
    for r, t in f.registers.items():
        names[r] = prefix + r
        program.registers[prefix + r] = t
    for v in f.variables.values():
        if v.name in formals or v.space == "reg" or (f.entry and v.name in program.variables):
            continue
        keep = v.space == "shared" or v.space in ("global", "const")
        names[v.name] = v.name if keep else prefix + v.name
        if names[v.name] not in program.variables:
            _place(program, names[v.name], v)
    assert f.body is not None
    for s in f.body:
        if isinstance(s, Label):
            names[s.name] = prefix + s.name
    for t_name, targets in f.tables.items():
        names[t_name] = prefix + t_name
        program.tables[prefix + t_name] = tuple(names.get(t, t) for t in targets)
    end = f"{prefix}.end"
    for s in f.body:
        if isinstance(s, Label):
            program.labels[names[s.name]] = len(program.code)
            continue
        guard = names.get(s.guard, s.guard) if s.guard else None
        instr = replace(s, operands=tuple(_rename(o, names) for o in s.operands), guard=guard)
        base = s.opcode.split(".")[0]
        if base == "call":
            _call(program, module, instr, prefix, stack)
        elif base == "ret" and not f.entry:
            program.code.append(replace(instr, opcode="bra.uni", operands=(Sym(end),)))
        elif base == "ret":
            program.code.append(replace(instr, opcode="exit"))
        else:
            program.code.append(instr)
    program.labels[end] = len(program.code)


def _call(program: Program, module: PtxModule, instr: Instr, prefix: str, stack: list[str]) -> None:
    operands = list(instr.operands)
    returns = operands.pop(0).items if operands and isinstance(operands[0], Group) else ()  # type: ignore[union-attr]
    target = operands.pop(0)
    args = operands.pop(0).items if operands and isinstance(operands[0], Group) else ()  # type: ignore[union-attr]
    if not isinstance(target, Sym):
        raise UnknownInstruction(instr.opcode, instr.line, "call through a register")
    callee = module.functions.get(target.name)
    if callee is None:
        raise PtxError(f"call of `{target.name}`, which is not in this module", instr.line)
    if callee.body is None:
        if target.name in IGNORED_EXTERNALS:
            program.code.append(replace(instr, opcode="vgpu.zero", operands=tuple(returns)))
        elif target.name == "__assertfail":
            program.code.append(replace(instr, opcode="trap", operands=()))
        else:
            raise PtxError(f"call of the external function `{target.name}`: only its declaration is here", instr.line,
                           "link the module that defines it, or inline it")  # fmt: skip
        return
    site = f"{prefix}{callee.name}#{len(program.code)}:"
    skip = None
    if instr.guard:  # a guarded call: jump around the expansion
        skip = f"{site}.skip"
        program.code.append(replace(instr, opcode="bra", operands=(Sym(skip),), guard_not=not instr.guard_not))
    formals = {}
    for formal, actual in zip((*callee.params, *callee.returns), (*args, *returns), strict=True):
        if not isinstance(actual, Sym | Reg):
            raise UnknownInstruction(instr.opcode, instr.line, "call with a literal argument")
        formals[formal.name] = actual.name
    _expand(program, module, callee, site, formals, stack)
    if skip:
        program.labels[skip] = len(program.code)


def _rename(o: Operand, names: dict[str, str]) -> Operand:
    if isinstance(o, Reg):
        return Reg(names.get(o.name, o.name))
    if isinstance(o, Sym):
        return Sym(names.get(o.name, o.name), o.offset)
    if isinstance(o, Addr):
        base = _rename(o.base, names) if o.base is not None else None
        assert base is None or isinstance(base, Reg | Sym)
        return Addr(base, o.offset, tuple(_rename(c, names) for c in o.coords))
    if isinstance(o, Vec):
        return Vec(tuple(_rename(c, names) for c in o.items))
    if isinstance(o, Group):
        return Group(tuple(_rename(c, names) for c in o.items))
    if isinstance(o, Pair):
        return Pair(_rename(o.first, names), _rename(o.second, names))
    if isinstance(o, Not):
        return Not(_rename(o.item, names))
    return o


def _symbols(o: Operand) -> list[str]:
    if isinstance(o, Sym):
        return [o.name]
    if isinstance(o, Addr):
        return [o.base.name] if isinstance(o.base, Sym) else []
    if isinstance(o, Vec | Group):
        return [s for i in o.items for s in _symbols(i)]
    return []
