"""Function calls of one kernel, expanded in place or turned into run-time calls: PtxModule -> Program.

Registers, labels and variables of a callee get a prefix that is unique to the call site (expanded) or to the
function (run time). An expanded callee's formal `.param` variables become the caller's, so that nothing is
copied; `.reg` parameters are copied, as they are passed by value.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.runtime.vgpu.callgraph import CallGraph, called
from tcomp.runtime.vgpu.errors import PtxError, UnknownInstruction
from tcomp.runtime.vgpu.program import Callee, CallSite, Program, up
from tcomp.runtime.vgpu.ptx import (
    Addr,
    Function,
    Imm,
    Instr,
    Label,
    Operand,
    PtxModule,
    Reg,
    Sym,
    Variable,
    renamed,
    symbols,
)

# External functions that have a meaning here: the opcode that stands for the call.
EXTERNAL = {"vprintf": "vgpu.zero", "malloc": "vgpu.malloc", "free": "vgpu.free", "__assertfail": "trap"}


def flatten(module: PtxModule, entry: Function) -> Program:
    """PtxError or UnknownInstruction for a call that cannot be made."""
    return _Expander(module, entry).run()


class _Expander:
    def __init__(self, module: PtxModule, entry: Function) -> None:
        self.module, self.entry = module, entry
        self.program = Program(entry)
        self.graph = CallGraph(module, entry)
        self.callee: Callee | None = None  # the run-time function that is being expanded

    def run(self) -> Program:
        p, module = self.program, self.module
        for v in self.entry.params:
            start = up(p.param_bytes, v.align)
            p.variables[v.name] = replace(v, space="kernel")
            p.offsets[v.name] = start
            p.param_bytes = start + v.size
        self.run_time_functions()
        self.expand(self.entry, "", {})
        p.code.append(Instr("exit", (), self.entry.line))
        used = {s for i in p.code for o in i.operands for s in symbols(o)}
        for v in module.variables.values():
            if v.space == "shared" and v.name in used and v.name not in p.variables:
                p.place(v.name, v)
            elif v.space in ("global", "const"):
                p.variables[v.name] = v
        for name in p.dynamic_shared:
            p.offsets[name] = up(p.shared_bytes, p.variables[name].align)
        return p

    # --- functions called at run time
    def run_time_functions(self) -> None:
        p = self.program
        names = sorted(self.graph.run_time)
        if not names:
            return
        for name in names:
            p.callees[name] = Callee(name, name in self.graph.recursive, f"{name}:")
        most = max(sum(up(v.size, 16) for v in vs) for n in names for vs in (self.of(n).params, self.of(n).returns))
        p.passing, p.args_bytes = 0, most
        for name in names:
            f, callee = self.of(name), p.callees[name]
            for vs, spans in ((f.params, callee.formals), (f.returns, callee.results)):
                for v in vs:
                    if v.space == "reg":
                        raise UnknownInstruction("call", f.line, f"`{name}` is called at run time with .reg parameters")
                    p.place(callee.label + v.name, v)
                    spans.append((p.offsets[callee.label + v.name], v.size))
        p.code.append(Instr("bra", (Sym(".kernel"),), self.entry.line))
        for name in names:
            callee = self.callee = p.callees[name]
            p.labels[callee.label] = len(p.code)
            f = self.of(name)
            self.expand(f, callee.label, {v.name: callee.label + v.name for v in (*f.params, *f.returns)})
            p.returns[len(p.code)] = name
            p.code.append(Instr("ret", (), f.line))
        self.callee = None
        p.labels[".kernel"] = len(p.code)

    def of(self, name: str) -> Function:
        return self.module.functions[name]

    # --- bodies
    def expand(self, f: Function, prefix: str, formals: dict[str, str]) -> None:
        p = self.program
        names = dict(formals)
        for r, t in f.registers.items():
            names[r] = prefix + r
            p.registers[prefix + r] = t
        for v in f.variables.values():
            if v.name in formals or v.space == "reg" or (f.entry and v.name in p.variables):
                continue
            names[v.name] = prefix + v.name
            if v.space == "shared" and not f.entry:  # one for all calls of the function
                names[v.name] = f"{f.name}:{v.name}"
            if names[v.name] not in p.variables:
                self.place(names[v.name], v)
        assert f.body is not None
        names |= {s.name: prefix + s.name for s in f.body if isinstance(s, Label)}
        for table, targets in f.tables.items():
            names[table] = prefix + table
            p.tables[prefix + table] = tuple(names.get(t, t) for t in targets)
        end = f"{prefix}.end"
        for s in f.body:
            if isinstance(s, Label):
                p.labels[names[s.name]] = len(p.code)
            else:
                self.statement(s, f, names, prefix, end)
        p.labels[end] = len(p.code)

    def place(self, name: str, v: Variable) -> None:
        frame = v.space == "local" and self.callee is not None
        self.program.place(name, v, self.callee)
        if frame:
            self.program.variables[name] = replace(v, space="frame")

    def statement(self, s: Instr, f: Function, names: dict[str, str], prefix: str, end: str) -> None:
        p = self.program

        def name(written: str) -> Operand:
            found = names.get(written, written)
            return Reg(found) if found in p.registers or found.startswith("%") or found == "_" else Sym(found)

        if f.entry:  # the kernel's names are its own
            i = s
        else:
            guard = names.get(s.guard, s.guard) if s.guard else None
            i = replace(s, operands=tuple(renamed(o, name) for o in s.operands), guard=guard)
        base = s.opcode.split(".")[0]
        if base == "call":
            self.call(i, prefix)
        elif base == "ret" and not f.entry:
            p.code.append(replace(i, opcode="bra.uni", operands=(Sym(end),)))
        elif base == "ret":
            p.code.append(replace(i, opcode="exit"))
        else:
            p.code.append(i)

    # --- calls
    def call(self, i: Instr, prefix: str) -> None:
        p = self.program
        results, target, arguments = called(i)
        skip = None
        if i.guard:  # a guarded call: jump around it
            skip = f"{prefix}.skip#{len(p.code)}"
            p.code.append(replace(i, opcode="bra", operands=(Sym(skip),), guard_not=not i.guard_not))
            i = replace(i, guard=None, guard_not=False)
        if isinstance(target, Reg):
            self.run_time_call(i, target, self.graph.targets(i), results, arguments)
        elif isinstance(target, Sym):
            callee = self.module.functions.get(target.name)
            if callee is None:
                raise PtxError(f"call of `{target.name}`, which is not in this module", i.line)
            if callee.body is None:
                self.external(i, target.name, results, arguments)
            elif target.name in p.callees:
                label = Sym(p.callees[target.name].label)
                self.run_time_call(i, label, (target.name,), results, arguments)
            else:
                self.in_place(i, callee, prefix, results, arguments)
        else:
            raise UnknownInstruction(i.opcode, i.line, "the target is neither a function nor a register")
        if skip:
            p.labels[skip] = len(p.code)

    def external(self, i: Instr, name: str, results: tuple[Operand, ...], arguments: tuple[Operand, ...]) -> None:
        if name not in EXTERNAL:
            raise PtxError(f"call of the external function `{name}`: only its declaration is here", i.line,
                           "link the module that defines it, or inline it")  # fmt: skip
        opcode = EXTERNAL[name]
        operands = () if opcode == "trap" else results if opcode == "vgpu.zero" else (*results, *arguments)
        self.program.code.append(replace(i, opcode=opcode, operands=operands))

    def in_place(
        self, i: Instr, f: Function, prefix: str, results: tuple[Operand, ...], arguments: tuple[Operand, ...]
    ) -> None:
        p = self.program
        site = f"{prefix}{f.name}#{len(p.code)}:"
        formals: dict[str, str] = {}
        after: list[Instr] = []
        if len(results) != len(f.returns) or len(arguments) != len(f.params):
            raise PtxError(f"this call of `{f.name}` does not have the parameters and results it declares", i.line)
        for v, actual, returned in [
            *((v, a, False) for v, a in zip(f.params, arguments, strict=True)),
            *((v, a, True) for v, a in zip(f.returns, results, strict=True)),
        ]:
            if v.space == "reg":
                own = formals[v.name] = site + v.name
                p.registers[own] = v.type
                move = f"mov.{v.type}"
                if returned:
                    after.append(Instr(move, (actual, Reg(own)), i.line))
                else:
                    p.code.append(Instr(move, (Reg(own), actual), i.line))
            elif isinstance(actual, Sym):
                formals[v.name] = actual.name
            elif isinstance(actual, Imm | Reg) and not returned:
                own = formals[v.name] = site + v.name
                self.place(own, v)
                p.code.append(Instr(f"st.param.{v.type}", (Addr(Sym(own)), actual), i.line))
            else:
                raise UnknownInstruction(i.opcode, i.line, "this argument is not a .param variable")
        self.expand(f, site, formals)
        p.code += after

    def run_time_call(
        self, i: Instr, target: Operand, targets: tuple[str, ...], results: tuple[Operand, ...],
        arguments: tuple[Operand, ...],
    ) -> None:  # fmt: skip
        """call target; the .param variables are copied to and from the passing area around it."""
        p = self.program
        if not targets:
            raise UnknownInstruction(i.opcode, i.line, "no function of this module can be its target")
        for o in (*results, *arguments):
            if not isinstance(o, Sym):
                raise UnknownInstruction(i.opcode, i.line, "an argument of a run-time call is not a .param variable")
        p.code.append(replace(i, opcode="vgpu.pass", operands=arguments))
        p.calls[len(p.code)] = CallSite(targets, self.callee.name if self.callee else "")
        p.code.append(replace(i, opcode="call", operands=(target,)))
        p.code.append(replace(i, opcode="vgpu.result", operands=results))
