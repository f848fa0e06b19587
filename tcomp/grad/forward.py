"""What differentiation asks about the forward op: its equations, which tensors carry gradients, who covers what.

Also says which ops have no derivative here: in-place state, and tensors that are written again after a read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tcomp.dsl.ast import (
    Access,
    Call,
    Equation,
    Expr,
    Module,
    Name,
    Num,
    Op,
    Reduction,
    accesses_in,
    children,
    names_in,
    walk,
)
from tcomp.dsl.check import infer
from tcomp.dsl.errors import TcError
from tcomp.dsl.extents import same
from tcomp.dsl.info import OpInfo
from tcomp.dsl.inline import inline_functions
from tcomp.grad.parts import disjoint, map_equation, plain, reads, writes
from tcomp.grad.simplify import simplify


@dataclass(frozen=True)
class Forward:
    """An op to be differentiated. Raises TcError when it cannot be."""

    op: Op
    module: Module

    def __post_init__(self) -> None:
        for p in self.op.params:
            if p.inout and p.dtype.is_float:
                raise self.error(
                    f"op '{self.op.name}' changes '{p.name}' in place, so it has no derivative",
                    p,
                    "give the new value as an output of its own, or write `backward` by hand",
                )
        for position, eq in enumerate(self.equations):
            for name in sorted(reads(eq) & self.active):
                later = [w for w in self.equations[position:] if name in writes(w)]
                if later:
                    raise self.error(
                        f"'{name}' is written again after its value was read, so '{self.op.name}' has no derivative",
                        later[0],
                        f"give the new value another name than '{name}'",
                    )
        for name in self.active:
            self._check_assigned_once(name)

    def _check_assigned_once(self, name: str) -> None:
        before: list[tuple[Expr, ...]] = []
        for eq in self.equations:
            for t in eq.targets:
                if t.name != name:
                    continue
                if not eq.accumulate and any(
                    not disjoint(t.subscripts, b, self.info.ranges, self.info.dims) for b in before
                ):
                    raise self.error(
                        f"'{name}' is assigned again, so '{self.op.name}' has no derivative",
                        t,
                        f"give the new value another name than '{name}', or add to it with `+=`",
                    )
                before.append(t.subscripts)

    def error(self, message: str, at: object, hint: str) -> TcError:
        span = getattr(at, "span", self.op.span)
        return TcError(message, span, hint, text=self.module.sources.get(span.file, ""))

    @cached_property
    def info(self) -> OpInfo:
        return infer(self.op, self.module)

    @cached_property
    def equations(self) -> tuple[Equation, ...]:
        """The op's equations with user functions expanded."""
        return tuple(map_equation(eq, lambda e: inline_functions(e, self.module)) for eq in self.op.equations)

    @cached_property
    def inputs(self) -> frozenset[str]:
        """The parameters that get a gradient: floats that are no state."""
        return frozenset(p.name for p in self.op.params if p.dtype.is_float and not p.inout and not p.state)

    @cached_property
    def active(self) -> frozenset[str]:
        """The float tensors whose values depend on `inputs`."""
        found = set(self.inputs)
        for eq in self.equations:
            if reads(eq) & found:
                found |= {n for n in writes(eq) if self.dtype_is_float(n)}
        return frozenset(found)

    def dtype_is_float(self, name: str) -> bool:
        operand = self.op.operand(name)
        dtype = operand.dtype if operand is not None else self.info.temporaries[name].dtype
        return bool(dtype.is_float)

    def extents(self, name: str) -> tuple[Expr, ...]:
        """The extents of a tensor's axes."""
        operand = self.op.operand(name)
        if operand is not None:
            return operand.shape
        return tuple(self.info.ranges[i] for i in self.info.temporaries[name].indices)

    def parallel(self, eq: Equation) -> tuple[str, ...]:
        """The indices of an equation's left-hand side."""
        names = (n for t in eq.targets for s in t.subscripts for n in _in_order(s))
        return tuple(dict.fromkeys(n for n in names if n in self.info.ranges and n not in self.info.dims))

    def indices(self, eq: Equation) -> tuple[str, ...]:
        """The parallel indices of an equation, then its reduced ones."""
        left = self.parallel(eq)
        reduced = eq.value.indices if isinstance(eq.value, Reduction) else ()
        return (*left, *(i for i in reduced if i not in left))

    def covers(self, name: str, subscripts: tuple[Expr, ...]) -> bool:
        """Are the subscripts distinct indices, each over the whole of its axis?"""
        return plain(subscripts, self.info.ranges) and all(
            isinstance(s, Name) and same(self.info.ranges[s.id], extent)
            for s, extent in zip(subscripts, self.extents(name), strict=True)
        )

    def final(self, eq: Equation) -> bool:
        """Does no other equation write what this one does, so that its target has its value in the end?"""
        return all(
            other is eq
            or u.name != eq.target.name
            or disjoint(eq.target.subscripts, u.subscripts, self.info.ranges, self.info.dims)
            for other in self.equations
            for u in other.targets
        )

    def definitions(self) -> dict[str, tuple[tuple[str, ...], Expr | Reduction]]:
        """What tensors are at all points of their indices: those that one equation defines, as a value or a sum."""
        found: dict[str, tuple[tuple[str, ...], Expr | Reduction]] = {}
        for eq in self.equations:
            t, v = eq.target, eq.value
            once = sum(t.name == u.name for e in self.equations for u in e.targets) == 1
            known = not isinstance(v, Reduction) or v.reducer == "sum"
            if once and known and len(eq.targets) == 1 and not eq.accumulate and self.covers(t.name, t.subscripts):
                found[t.name] = (tuple(s.id for s in t.subscripts if isinstance(s, Name)), v)
        return found

    @cached_property
    def outputs_by_value(self) -> dict[Expr, Expr]:
        """Calls whose value an output has when the op is done, at the call's own indices: elements that no other
        equation writes."""
        found: dict[Expr, Expr] = {}
        for eq in self.equations:
            if len(eq.targets) == 1 and isinstance(eq.value, Call) and not eq.accumulate:
                t = eq.target
                output = any(o.name == t.name for o in self.op.outputs)
                within = set().union(*map(names_in, t.subscripts)) <= names_in(eq.value)
                if output and within and eq.value.function != "select" and self.final(eq):
                    found[simplify(eq.value)] = Access(t.name, t.subscripts)
        return found

    def inside(self, subscripts: tuple[Expr, ...]) -> bool:
        """Are the subscripts surely within the tensor: bare indices and constants?"""
        return all(isinstance(s, Num) or (isinstance(s, Name) and s.id in self.info.ranges) for s in subscripts)

    def index_names(self, name: str) -> tuple[str, ...] | None:
        """Indices that run over the tensor's axes, as the op itself names them; None where it never does."""
        if name in self.info.temporaries:
            return tuple(self.info.temporaries[name].indices)
        places = [t.subscripts for eq in self.equations for t in eq.targets if t.name == name]
        for eq in self.equations:
            values = eq.value.values if isinstance(eq.value, Reduction) else (eq.value,)
            places += [a.subscripts for v in values for a in accesses_in(v) if a.tensor == name]
        for subscripts in places:
            if self.covers(name, subscripts):
                return tuple(s.id for s in subscripts if isinstance(s, Name))
        return None

    def differentiable(self, e: Expr) -> list[Access]:
        """The distinct accesses in a value that carry gradients (those inside subscripts do not)."""
        return list(dict.fromkeys(a for a in _value_accesses(e) if a.tensor in self.active))


def _in_order(e: Expr) -> list[str]:
    return [n.id for n in walk(e) if isinstance(n, Name)]


def _value_accesses(e: Expr) -> list[Access]:
    if isinstance(e, Access):
        return [e]
    return [a for c in children(e) for a in _value_accesses(c)]
