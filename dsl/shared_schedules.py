"""Lines of a schedule that several ops share: each op takes of a line what it has.

schedule linear, linear_gelu on gpu:      for linear, which has no P:      for linear_gelu, the whole.
  kernel P, Y:                       -->    kernel Y:
    m -> grid                                 m -> grid

A name that none of these ops has stays, so that its check refuses it. A derived backward op's names are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tcomp.dsl import ast
from tcomp.dsl.ast import KernelSchedule, Module, Op, Reduction, Schedule, Span, named_tensor
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import infer


def fit_shared(module: Module) -> None:
    """Every line that holds for several ops is cut to what the op has whose schedule it is in."""
    holders: dict[Span, dict[str, None]] = {}
    for (op, _), schedule in module.schedules.items():
        for line in _lines(schedule):
            holders.setdefault(line.span, {})[op] = None
    known = {op: _known(op, module) for op in {op for ops in holders.values() if len(ops) > 1 for op in ops}}
    for key, schedule in module.schedules.items():
        own = known.get(schedule.op)
        if own is not None:
            module.schedules[key] = _fitted(schedule, own, holders, known)


def _lines(s: Schedule) -> Iterator[ast.Directive | KernelSchedule]:
    yield from s.shared
    for k in s.kernels:
        yield k
        yield from k.directives


@dataclass(frozen=True)
class _Known:
    """What an op has. `sums` are the tensors that its reductions write, `computed` those that any equation does."""

    tensors: frozenset[str]
    loops: frozenset[str]
    sums: frozenset[str]
    computed: frozenset[str]


def _known(name: str, module: Module) -> _Known | None:
    op = module.ops.get(name)
    if op is None:
        return None
    try:
        return _had_by(op, module)
    except TcError:  # its own check says what is wrong
        return None


def _had_by(op: Op, module: Module) -> _Known:
    info = infer(op, module)
    sums = frozenset(t.name for q in op.equations if isinstance(q.value, Reduction) for t in q.targets)
    computed = frozenset(t.name for q in op.equations for t in q.targets)
    tensors = frozenset(o.name for o in op.operands) | frozenset(info.temporaries)
    return _Known(tensors, frozenset(info.ranges), sums, computed)


def fitted(s: Schedule, op: Op, module: Module) -> Schedule:
    """The schedule cut to what a derived op has, whose names depend on which gradients there are."""
    own = _had_by(op, module)
    return _cut(s, lambda line: _Fit(own, [], True))


def _fitted(
    s: Schedule, own: _Known, holders: Mapping[Span, Iterable[str]], known: Mapping[str, _Known | None]
) -> Schedule:
    """The schedule of an op; `holders` are the ops that a line, known by its span, holds for."""

    def fit(line: ast.Directive | KernelSchedule) -> _Fit:
        found = [known[op] for op in holders[line.span] if op != s.op]
        return _Fit(own, [o for o in found if o is not None], None in found)

    return _cut(s, fit)


def _cut(s: Schedule, fit: Callable[[ast.Directive | KernelSchedule], _Fit]) -> Schedule:
    def directives(ds: Iterable[ast.Directive]) -> tuple[ast.Directive, ...]:
        return tuple(f for d in ds if (f := fit(d).directive(d)) is not None)

    kernels = []
    for k in s.kernels:
        outputs = fit(k).computed(k.outputs)
        if outputs or not k.outputs:
            kernels.append(replace(k, outputs=outputs, directives=directives(k.directives)))
    return replace(s, shared=directives(s.shared), kernels=tuple(kernels))


@dataclass(frozen=True)
class _Fit:
    """One line in the schedule of one of the ops that it holds for."""

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

    def foreign_sum(self, name: str) -> bool:
        return name not in self.own.sums and any(name in o.sums for o in self.others)

    def foreign_loop(self, loop: str) -> bool:
        return loop not in self.own.loops and (self.derived or any(loop in o.loops for o in self.others))

    def tensors(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(n for n in names if not self.foreign(n))

    def computed(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of a `kernel`, `of` or `combine` line, which names what is computed."""

        def elsewhere(base: str) -> bool:
            return base not in self.own.computed and any(base in o.computed for o in self.others)

        return tuple(n for n in self.tensors(names) if not elsewhere(n.partition(".")[0]))

    def loops(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(n for n in names if not self.foreign_loop(n))

    def sums(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names in a `use` line that are sums of this op, or of none that is known. (`dX, dX_sum`: where a
        derived op makes dX of dX_sum, that is the sum.)"""
        kept = tuple(n for n in self.tensors(names) if not self.foreign_sum(n))
        own = tuple(n for n in kept if n in self.own.sums)
        return own if self.derived and own else kept

    def foreign_argument(self, flag: str, argument: ast.Expr) -> bool:
        """A tensor or loop of another of the ops as the argument of a flag, such as `inline t`."""
        if flag == "reverse":
            return isinstance(argument, ast.Name) and self.foreign_loop(argument.id)
        tensor = named_tensor(flag, argument)
        return bool(tensor) and self.foreign(tensor)

    def directive(self, d: ast.Directive) -> ast.Directive | None:
        """What of the line is about this op; None where nothing is."""
        match d:
            case ast.MapLoops(loops, of):
                return _kept(d, loops=self.loops(loops), **({"of": self.computed(of)} if of else {}))
            case ast.Order(loops):
                return _kept(d, loops=self.loops(loops))
            case ast.Fuse(names, loop) | ast.Combine(names, loop):
                return None if self.foreign_loop(loop) else _kept(d, names=self.computed(names))
            case ast.Stage(names, _, loop):
                return None if self.foreign_loop(loop) else _kept(d, tensors=self.tensors(names))
            case ast.Use(_, names):
                return _kept(d, names=self.sums(names))
            case ast.Cast(what):
                tensor, _, read = what.partition(".")
                return None if self.foreign(tensor) or self.foreign_read(read) else d
            case ast.Flag(name, args) if args:
                return _kept(d, args=tuple(a for a in args if not self.foreign_argument(name, a)))
        return d


def _kept(d: ast.Directive, **lists: tuple[object, ...]) -> ast.Directive | None:
    """The line with these lists in place of its own; None where one of them is empty."""
    changes: dict[str, Any] = lists
    return replace(d, **changes) if all(lists.values()) else None
