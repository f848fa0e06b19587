"""Which functions a kernel can reach, and which of those must be called at run time instead of expanded in place."""

from __future__ import annotations

from collections.abc import Iterator

from tcomp.runtime.vgpu.ptx import AddressByte, Function, Group, Instr, Operand, PtxModule, Reg, Sym, symbols

# Expanding every call in place is refused beyond this many instructions; then each function stands once.
EXPANDED_LIMIT = 40_000


def called(i: Instr) -> tuple[tuple[Operand, ...], Operand, tuple[Operand, ...]]:
    """(results, target, arguments) of a `call`."""
    operands = list(i.operands)
    first = operands.pop(0)
    results: tuple[Operand, ...] = ()
    if isinstance(first, Group):
        results, first = first.items, operands.pop(0)
    arguments = operands[0].items if operands and isinstance(operands[0], Group) else ()
    return results, first, arguments


def calls_of(f: Function) -> Iterator[Instr]:
    for s in f.body or ():
        if isinstance(s, Instr) and s.opcode.split(".")[0] == "call":
            yield s


class CallGraph:
    def __init__(self, module: PtxModule, entry: Function) -> None:
        self.module = module
        self.taken = self._taken()
        self.edges: dict[str, set[str]] = {}
        work = [entry]
        while work:
            f = work.pop()
            if f.name in self.edges:
                continue
            self.edges[f.name] = {t for c in calls_of(f) for t in self.targets(c)}
            work += [module.functions[t] for t in self.edges[f.name]]
        indirect = any(isinstance(called(c)[1], Reg) for f in self.edges for c in calls_of(module.functions[f]))
        self.recursive = {f for f in self.edges if f in self._reachable(f)}
        self.run_time = set(self.recursive)
        if indirect:
            self.run_time |= {t for t in self.taken if t in self.edges}
        if self._expanded(entry.name, {}) > EXPANDED_LIMIT:
            self.run_time = set(self.edges) - {entry.name}

    def targets(self, call: Instr) -> tuple[str, ...]:
        """The functions with a body that `call` may reach; through a register, those whose address is taken
        and that take as many parameters and results of the same sizes as far as they are seen."""
        results, target, arguments = called(call)
        if isinstance(target, Sym):
            f = self.module.functions.get(target.name)
            return (target.name,) if f is not None and f.body is not None else ()
        return tuple(
            name for name in sorted(self.taken)
            if len(self.module.functions[name].params) == len(arguments)
            and len(self.module.functions[name].returns) == len(results)
        )  # fmt: skip

    def _taken(self) -> set[str]:
        """Functions whose address is taken, by an instruction or an initialiser."""
        bodies = {n for n, f in self.module.functions.items() if f.body is not None and not f.entry}
        found = set()
        for v in self.module.variables.values():
            found |= {x.name for x in v.initial if isinstance(x, Sym)}
            found |= {x.of.name for x in v.initial if isinstance(x, AddressByte)}
        for f in self.module.functions.values():
            for s in f.body or ():
                if isinstance(s, Instr) and s.opcode.split(".")[0] != "call":
                    found |= {x for o in s.operands for x in symbols(o) if x in bodies}
        return found & bodies

    def _reachable(self, start: str) -> set[str]:
        seen: set[str] = set()
        work = list(self.edges[start])
        while work:
            f = work.pop()
            if f not in seen:
                seen.add(f)
                work += self.edges[f]
        return seen

    def _expanded(self, name: str, known: dict[str, int]) -> int:
        """Instructions of `name` with every call expanded that is not made at run time."""
        if name not in known:
            f = self.module.functions[name]
            total = len(f.body or ())
            for c in calls_of(f):
                total += sum(self._expanded(t, known) for t in self.targets(c) if t not in self.run_time)
            known[name] = total
        return known[name]
