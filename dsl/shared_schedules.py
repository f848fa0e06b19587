"""One schedule for several ops: each takes the lines that speak of what it has.

schedule linear, linear_gelu on gpu:      for linear, which has no P:      for linear_gelu, the whole.
  kernel P, Y:                       -->    kernel Y:
    m -> grid                                 m -> grid

A name that none of the ops has stays, so that its check refuses it. Of a derived backward op names are not known here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tcomp.dsl import ast
from tcomp.dsl.ast import Module, Schedule, named_tensor
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import infer


def fit_shared(module: Module) -> None:
    """Every schedule that stands for several ops is cut to what its own op has."""
    known: dict[str, _Known | None] = {}
    for key, schedule in module.schedules.items():
        if len(schedule.ops) > 1:
            for op in schedule.ops:
                if op not in known:
                    known[op] = _known(op, module)
            own = known[schedule.op]
            if own is not None:
                others = [k for op in schedule.ops if op != schedule.op and (k := known[op]) is not None]
                derived = any(known[op] is None for op in schedule.ops)
                module.schedules[key] = _Fit(own, others, derived).schedule(schedule)


@dataclass(frozen=True)
class _Known:
    tensors: frozenset[str]
    loops: frozenset[str]


def _known(name: str, module: Module) -> _Known | None:
    op = module.ops.get(name)
    if op is None:
        return None
    try:
        info = infer(op, module)
    except TcError:  # its own check says what is wrong
        return None
    return _Known(frozenset(o.name for o in op.operands) | frozenset(info.temporaries), frozenset(info.ranges))


@dataclass(frozen=True)
class _Fit:
    own: _Known
    others: list[_Known]
    derived: bool

    def foreign(self, tensor: str) -> bool:
        """A tensor of another of the ops, not of this one."""
        base = tensor.partition(".")[0]
        return base not in self.own.tensors and (self.derived or any(base in o.tensors for o in self.others))

    def foreign_read(self, tensor: str) -> bool:
        """A tensor that only others of the ops are known to have (what is read may also be a `weight`)."""
        return tensor not in self.own.tensors and any(tensor in o.tensors for o in self.others)

    def foreign_loop(self, loop: str) -> bool:
        return loop not in self.own.loops and (self.derived or any(loop in o.loops for o in self.others))

    def tensors(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(n for n in names if not self.foreign(n))

    def loops(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(n for n in names if not self.foreign_loop(n))

    def schedule(self, s: Schedule) -> Schedule:
        kernels = []
        for k in s.kernels:
            outputs = self.tensors(k.outputs)
            if outputs or not k.outputs:
                kernels.append(replace(k, outputs=outputs, directives=self.directives(k.directives)))
        return replace(s, shared=self.directives(s.shared), kernels=tuple(kernels))

    def directives(self, directives: Iterable[ast.Directive]) -> tuple[ast.Directive, ...]:
        return tuple(f for d in directives if (f := self.directive(d)) is not None)

    def directive(self, d: ast.Directive) -> ast.Directive | None:
        """What of the line is about this op; None where nothing is."""
        match d:
            case ast.MapLoops(loops, of):
                loops, kept = self.loops(loops), self.tensors(of)
                return replace(d, loops=loops, of=kept) if loops and (kept or not of) else None
            case ast.Order(loops):
                loops = self.loops(loops)
                return replace(d, loops=loops) if loops else None
            case ast.Fuse(names, at):
                names = self.tensors(names)
                return replace(d, names=names) if names and not self.foreign_loop(at) else None
            case ast.Stage(names, _, at):
                names = self.tensors(names)
                return replace(d, tensors=names) if names and not self.foreign_loop(at) else None
            case ast.Use(_, names):
                names = self.tensors(names)
                return replace(d, names=names) if names else None
            case ast.Combine(names, over):
                names = self.tensors(names)
                return replace(d, names=names) if names and not self.foreign_loop(over) else None
            case ast.Cast(what):
                tensor, _, read = what.partition(".")
                return None if self.foreign(tensor) or self.foreign_read(read) else d
            case ast.Flag("reverse", args):
                args = tuple(a for a in args if not (isinstance(a, ast.Name) and self.foreign_loop(a.id)))
                return replace(d, args=args) if args or not d.args else None
            case ast.Flag("inline" | "overlap" | "promote" as name, args):
                args = tuple(a for a in args if not ((t := named_tensor(name, a)) and self.foreign(t)))
                return replace(d, args=args) if args or not d.args else None
            case _:
                return d
