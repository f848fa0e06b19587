"""Reverse-mode derivative of an op's equations, as an op of equations.

    Y[m, n] = sum k: X[m, k] * W[n, k]   -->   dX[m, k] = sum n: dY[m, n] * W[n, k]
                                               dW[n, k] = sum m: dY[m, n] * X[m, k]

Equations are taken last to first. The adjoint of a tensor is kept as an expression over its axes for as long
as that is cheap; a reduction, or an expression that would be evaluated again and again, becomes a temporary.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import (
    Access,
    Binary,
    Call,
    Equation,
    Expr,
    Module,
    Name,
    Num,
    Op,
    Reduction,
    Span,
    Target,
    accesses_in,
    names_in,
    substitute,
)
from tcomp.grad.assemble import assemble, recomputed
from tcomp.grad.contribution import Contribution, at, axes, costly, diagonal, guarded, joined, writes
from tcomp.grad.forward import Forward
from tcomp.grad.gather import Gathers
from tcomp.grad.monoid import differentiate_monoid
from tcomp.grad.parts import all_names, both, expressions, fresh, injective, plain_target
from tcomp.grad.proof import Prover
from tcomp.grad.recover import Recovered, recoverable, substitute_recovered
from tcomp.grad.rules import partial, reached
from tcomp.grad.simplify import ONE, ZERO, factored, polynomial, rewrite, simplify


def derive(op: Op, module: Module, outputs: frozenset[str] | None = None) -> Op:
    """The op "<op>.backward": from the forward operands it needs and d<output> to d<input>.

    `outputs` are the results that have a gradient (default: every float output); d<input> is given for each
    float parameter. TcError where the op has no derivative here.
    """
    forward = Forward(op, module)
    given = frozenset(o.name for o in op.outputs if o.dtype.is_float and (outputs is None or o.name in outputs))
    recovered = recoverable(forward)
    attempts = [Derivation(forward, given, {})]
    if recovered:
        attempts.append(Derivation(forward, given, recovered))
    for a in attempts:
        a.run()
    best = min(attempts, key=lambda a: recomputed(forward, a.all_equations()))
    return assemble(forward, given, best.all_equations(), best.renamed)


class Derivation:
    """One walk through the forward equations, last to first."""

    def __init__(self, forward: Forward, given: frozenset[str], recovered: Recovered) -> None:
        self.forward, self.recovered = forward, recovered
        self.taken = all_names(forward.op) | {f"d{o.name}" for o in forward.op.operands}
        self.equations: list[Equation] = []
        self.adjoints: dict[str, list[Expr]] = {}
        """tensor -> contributions at every point, its axes named .0, .1, ..."""
        self.parts: dict[str, list[Contribution]] = {}
        """tensor -> contributions to some points: parts of axes, scatters; for inputs, all"""
        self.closed: dict[str, Expr] = {}
        self.sums: dict[tuple[frozenset[str], Expr | None, Expr], Access] = {}
        self.support: dict[str, Expr] = {}
        """temporary -> condition (over .0, .1, ...) without which it is zero"""
        self.renamed: dict[str, str] = {}
        """sum -> the name it gets in the end, where it is the whole gradient of a tensor"""
        self.new_axes: dict[str, tuple[str, ...]] = {}
        self.gathers = Gathers(forward, self.taken)
        self.prover = Prover(forward.definitions(), forward.info.ranges)
        for name in given:
            self.adjoints[name] = [Access(f"d{name}", axes(len(forward.extents(name))))]

    def run(self) -> None:
        for eq in reversed(self.forward.equations):
            if isinstance(eq.value, Reduction) and eq.value.key is not None:
                differentiate_monoid(self, eq, eq.value)
            elif self.live(eq.target.name):
                self.equation(eq)

    def live(self, name: str) -> bool:
        """Whether anything contributed to the tensor's gradient."""
        return name in self.adjoints or name in self.parts or name in self.closed

    # -------------------------------------------------------------------------------- one equation

    def equation(self, eq: Equation) -> None:
        """Contributions of one equation to the gradients of what it reads."""
        value, indices = eq.value, self.forward.indices(eq)
        guard, body = (value.guard, value.values[0]) if isinstance(value, Reduction) else (None, value)
        accesses = self.forward.differentiable(body)
        if not accesses:
            return
        g = self.incoming(eq.target, len(accesses), isinstance(value, Reduction))
        if g == ZERO:
            return
        if isinstance(value, Reduction) and value.reducer in ("max", "min"):
            g = self.to_extremum(eq, value, body, g)
        for a in accesses:
            slope = Binary("*", g, partial(body, a))
            self.contribute(a, indices, guard, slope, reached(body, a), eq.span, self.forward.parallel(eq))

    def to_extremum(self, eq: Equation, value: Reduction, body: Expr, g: Expr) -> Expr:
        """The gradient of a maximum goes to the elements equal to it, shared evenly between equals."""
        result: Expr = Access(eq.target.name, eq.target.subscripts)
        if not (isinstance(body, Access) and body.tensor in self.forward.inputs):
            again = fresh(f"{eq.target.name}_again", self.taken)  # equality needs the very same rounding
            indices = tuple(i for i in self.forward.indices(eq) if i not in value.indices)
            self.equations.append(Equation((plain_target(again, indices),), False, value, eq.span))
            result = Access(again, tuple(Name(i) for i in indices))
        return self.shared(Binary("==", body, result), value.indices, value.guard, self.forward.indices(eq), g, eq.span)

    def shared(
        self, chosen: Expr, reduced: tuple[str, ...], guard: Expr | None, order: tuple[str, ...], g: Expr, span: Span
    ) -> Expr:
        """g divided evenly among the points where `chosen` holds, zero elsewhere."""
        ties = self.sum_temporary(reduced, both(guard, chosen), ONE, order, span, "ties")
        return Call("select", (chosen, Binary("/", g, ties), ZERO))

    def incoming(self, target: Target, uses: int, reduced: bool) -> Expr:
        """The gradient of an equation's target at the equation's points."""
        name = target.name
        if name not in self.closed:
            self.closed[name] = self.close(name, uses, reduced)
        return at(self.closed[name], target.subscripts)

    def close(self, name: str, uses: int, reduced: bool) -> Expr:
        """All contributions to a tensor's gradient are known: their sum, made a temporary where that pays."""
        total: Expr = ZERO
        for e in self.adjoints.pop(name, []):
            total = Binary("+", total, e) if total != ZERO else e
        total = self.zero_if_proven(self.value(total))
        parts = self.parts.pop(name, [])
        if parts:
            return self.materialise(name, total, parts)
        if total != ZERO and costly(total) and (uses > 1 or reduced):
            return self.materialise(name, total, [])
        self.name_after(name, total)
        return total

    def name_after(self, name: str, e: Expr) -> None:
        """A sum that is the whole gradient of a tensor is named for it."""
        wanted = f"d{name}"
        if not isinstance(e, Access) or e.tensor in self.renamed or wanted in self.renamed.values():
            return
        known = any(eq.target.name == e.tensor for eq in self.equations)
        if known and e.tensor.startswith("g") and not self.given(wanted):
            self.renamed[e.tensor] = wanted

    def given(self, name: str) -> bool:
        """Is it the name of an operand of the backward op?"""
        return name[1:] in {o.name for o in self.forward.op.params} or any(
            name == f"d{o.name}" and self.uses_parameter(name) for o in self.forward.op.outputs
        )

    def uses_parameter(self, name: str) -> bool:
        known = [e for es in self.adjoints.values() for e in es] + list(self.closed.values())
        known += [e for eq in self.equations for e in expressions(eq.value)]
        known += [c.value for cs in self.parts.values() for c in cs]
        return any(a.tensor == name for e in known for a in accesses_in(e))

    def materialise(self, name: str, total: Expr, parts: list[Contribution]) -> Expr:
        """`d<name>[...] = total`, then the parts added; gives the access to it."""
        operand = self.forward.op.operand(name)
        wanted = f"d{name}"
        if (
            (operand is not None and any(a.tensor == wanted for a in accesses_in(total)))
            or wanted in self.renamed.values()
            or (operand is not None and self.given(wanted))
        ):
            wanted = fresh(f"d{name}_total", self.taken)
        else:
            self.taken.add(wanted)
        names = self.axis_names(name)
        value = at(total, tuple(map(Name, names)))
        self.equations.append(Equation((plain_target(wanted, names),), False, value))
        self.equations += writes(wanted, parts, [axes(len(names))])
        if not parts:
            self.prover.definitions[wanted] = (names, value)
            condition = self.support_of(total)
            if condition is not None:
                self.support[wanted] = condition
        return Access(wanted, axes(len(names)))

    def axis_names(self, name: str) -> tuple[str, ...]:
        """Indices for a tensor's axes: the op's own where it has some, else new ones."""
        known = self.new_axes.get(name) or self.forward.index_names(name)
        if known is None:
            known = tuple(fresh(f"i{axis}", self.taken) for axis in range(len(self.forward.extents(name))))
            for i, extent in zip(known, self.forward.extents(name), strict=True):
                self.forward.info.ranges[i] = extent
            self.new_axes[name] = known
        return known

    # ------------------------------------------------------------------------------- contributions

    def contribute(
        self, a: Access, indices: tuple[str, ...], guard: Expr | None, value: Expr, where: Expr | None, span: Span,
        parallel: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Add `value` at each point of the indices (where the guard holds) to the gradient of the access.

        `where` is a condition without which the access may lie outside its tensor. `parallel` are the indices that
        another may be put in the place of (`gather.py`).
        """
        value = self.value(value)
        if value == ZERO:
            return
        forward = self.forward
        subscripts = a.subscripts
        if forward.covers(a.tensor, subscripts):
            rest = self._rest(indices, subscripts)
            guard = self._guard(guard, value, rest)
            if a.tensor in forward.inputs:
                self._part(a.tensor, subscripts, indices, guard, value, span)
                return
            if rest:
                value = self.total(rest, guard, value, indices, span)
            else:
                value = guarded(value, guard)
            place = {s.id: Name(f".{n}") for n, s in enumerate(subscripts) if isinstance(s, Name)}
            self.adjoints.setdefault(a.tensor, []).append(substitute(value, dict(place)))
            return
        subscripts, indices, condition, value = self.gathers.gather(a, indices, both(guard, where), value, parallel)
        value = self.value(value)
        if condition is not None and not forward.inside(subscripts):
            subscripts = tuple(
                s if forward.inside((s,)) else Call("select", (condition, s, Num(0))) for s in subscripts
            )
        rest = self._rest(indices, subscripts)
        self._part(a.tensor, subscripts, indices, self._guard(condition, value, rest), value, span)

    def _rest(self, indices: tuple[str, ...], subscripts: tuple[Expr, ...]) -> tuple[str, ...]:
        used = {n for s in subscripts for n in names_in(s)}
        return tuple(i for i in indices if i not in used)

    def _guard(self, guard: Expr | None, value: Expr, rest: tuple[str, ...]) -> Expr | None:
        """The guard, with what bounds the value's own support where a reduction can use it."""
        support = self.support_of(value)
        if support is not None and names_in(support) & set(rest) and support != guard:
            return both(guard, support)
        return guard

    def _part(
        self,
        name: str,
        subscripts: tuple[Expr, ...],
        indices: tuple[str, ...],
        guard: Expr | None,
        value: Expr,
        span: Span,
    ) -> None:
        rest = self._rest(indices, subscripts)
        kept = tuple(i for i in indices if i not in rest)
        if not rest:
            value, guard = guarded(value, guard), None
        new = Contribution(diagonal(subscripts), kept, rest, guard, value, span)
        parts = self.parts.setdefault(name, [])
        for n, old in enumerate(parts):
            same = (old.subscripts, old.reduced, old.guard) == (new.subscripts, new.reduced, new.guard)
            if same:
                parts[n] = replace(old, value=Binary("+", old.value, new.value))
                return
        parts.append(new)

    def value(self, e: Expr) -> Expr:
        """A derivative simplified: values that forward already gives are read, not computed again."""
        e = simplify(e)
        matches = self.forward.outputs_by_value
        if matches:
            e = simplify(rewrite(e, lambda x: matches.get(x) if isinstance(x, Call) else None))
        return simplify(substitute_recovered(e, self.recovered)) if self.recovered else e

    def support_of(self, e: Expr) -> Expr | None:
        """A condition without which a product is zero because one of its factors is."""
        p = polynomial(e)
        if len(p) != 1:
            return None
        ((m, _),) = p.items()
        out: Expr | None = None
        for atom, _ in m:
            if isinstance(atom, Access) and atom.tensor in self.support:
                out = both(out, at(self.support[atom.tensor], atom.subscripts))
            elif isinstance(atom, Call) and atom.function == "select" and atom.args[2] == ZERO:
                out = both(out, atom.args[0])
        return out

    # ----------------------------------------------------------------------------------------- sums

    def total(self, reduced: tuple[str, ...], guard: Expr | None, e: Expr, order: tuple[str, ...], span: Span) -> Expr:
        """The sum of an expression: factors that do not depend on the indices outside, the rest a temporary."""
        p = polynomial(e)
        if not p:
            return ZERO
        outer, inner = factored(p, set(reduced), guard is not None)
        if guard is None and inner == ONE:
            for i in reduced:
                outer = Binary("*", outer, self.forward.info.ranges[i])
            return simplify(outer)
        if guard is None and len(polynomial(inner)) > 1 and self.prover.is_zero(inner, reduced):
            return ZERO
        return simplify(Binary("*", outer, self.sum_temporary(reduced, guard, inner, order, span, "g1")))

    def sum_temporary(
        self, reduced: tuple[str, ...], guard: Expr | None, e: Expr, order: tuple[str, ...], span: Span, name: str
    ) -> Access:
        """`g1[...] = sum reduced where guard: e`, or the equal one that is there already."""
        key = (frozenset(reduced), guard, e)
        if key not in self.sums:
            used = names_in(e) | (names_in(guard) if guard is not None else set())
            indices = tuple(i for i in order if i in used and i not in reduced)
            if name == "g1":
                n = 1
                while f"g{n}" in self.taken:
                    n += 1
                name = f"g{n}"
            name = fresh(name, self.taken)
            value = Reduction("sum", reduced, guard, None, (e,), span)
            self.equations.append(Equation((plain_target(name, indices),), False, value, span))
            self.prover.definitions[name] = (indices, value)
            self.sums[key] = Access(name, tuple(map(Name, indices)))
        return self.sums[key]

    def temporary(self, name: str, e: Expr, guard: Expr | None, order: tuple[str, ...], span: Span) -> Access:
        """`name[...] = e` where the guard holds, else 0."""
        used = names_in(e) | (names_in(guard) if guard is not None else set())
        indices = tuple(i for i in order if i in used)
        name = fresh(name, self.taken)
        value = guarded(e, guard)
        self.equations.append(Equation((plain_target(name, indices),), False, value, span))
        self.prover.definitions[name] = (indices, value)
        if guard is not None:
            place: dict[str, Expr] = {i: Name(f".{n}") for n, i in enumerate(indices)}
            self.support[name] = substitute(guard, place)
        return Access(name, tuple(map(Name, indices)))

    def zero_if_proven(self, e: Expr) -> Expr:
        if len(polynomial(e)) < 2:
            return e
        return ZERO if self.prover.is_zero(e) else e

    # -------------------------------------------------------------------------------------- results

    def all_equations(self) -> list[Equation]:
        """The adjoints' equations, then those of the inputs' gradients in order of the parameters."""
        out = list(self.equations)
        for p in self.forward.op.params:
            if p.name not in self.forward.inputs:
                continue
            name = f"d{p.name}"
            parts = self.parts.get(p.name, [])
            whole = [c for c in parts if self.forward.covers(p.name, c.subscripts)]
            others = [c for c in parts if c not in whole]
            ordered = [*joined(whole), *sorted(others, key=lambda c: not injective(c.subscripts, c.indices))]
            if not ordered:
                names = self.axis_names(p.name)
                out.append(Equation((plain_target(name, names),), False, ZERO))
            out += writes(name, [replace(c, value=self.value(c.value)) for c in ordered], [])
        return out
