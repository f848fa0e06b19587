"""The search space of one kernel, read off its schedule's own `tune` and `where` lines.

Takes a schedule and the machine's facts; gives one `Space` per kernel that has something to choose. Kernels of an op
run one after the other, so each is a space of its own: `dX.KC` is chosen without regard to `dW.KC`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import (
    Directive,
    Expr,
    Flag,
    KernelSchedule,
    MapLoops,
    Num,
    Schedule,
    Span,
    Stage,
    Tune,
    Where,
    names_in,
)
from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.printer import print_expression

Values = dict[str, Number]
"""Parameter names (without the kernel) and their values."""
ENUMERATED = 20_000
"""Points of a space that are walked one by one; larger spaces are sampled."""


@dataclass(frozen=True)
class Parameter:
    """`tune KC = 384 from 192, 384`. `choices` are all that can occur; a choice may depend on other parameters, and
    then not every combination is a point of the space."""

    name: str
    choices: tuple[Number, ...]
    line: Tune


@dataclass(frozen=True)
class Space:
    """The points of one kernel. `kernel` is `dX` or `dw+db` as its line in the schedule has it, or "" where the
    schedule has no `kernel` lines. `span` is the kernel's place in the schedule."""

    kernel: str
    span: Span
    parameters: tuple[Parameter, ...]
    conditions: tuple[Expr, ...]
    facts: Mapping[str, Number]

    @property
    def default(self) -> Values:
        """The values that the schedule gives itself."""
        values: Values = {}
        for p in self.parameters:
            values[p.name] = evaluate_dim(p.line.default, {**self.facts, **values})
        return values

    @property
    def size(self) -> int:
        """Combinations of choices, those that a condition forbids included."""
        n = 1
        for p in self.parameters:
            n *= len(p.choices)
        return n

    def problem(self, values: Mapping[str, Number]) -> str:
        """Why the values are no point of the space; empty when they are one."""
        known: dict[str, Number] = dict(self.facts)
        for p in self.parameters:
            if p.name not in values:
                return f"{p.name} has no value"
            value = values[p.name]
            allowed = [evaluate_dim(c, known) for c in p.line.choices]
            if value not in allowed and value != evaluate_dim(p.line.default, known):
                return f"{p.name} = {value} is not among its choices {', '.join(map(str, allowed))}"
            known[p.name] = value
        for name in values:
            if name not in known:
                return f"there is no parameter {name}"
        for c in self.conditions:
            if not evaluate_dim(c, known):
                return f"where {print_expression(c)} does not hold"
        return ""

    def chosen(self, values: Mapping[str, Number]) -> Values:
        """The values under the names that lowering takes: `dX.KC`."""
        prefix = f"{self.kernel}." if self.kernel else ""
        return {f"{prefix}{name}": value for name, value in values.items()}

    def own(self, chosen: Mapping[str, Number]) -> Values:
        """This kernel's part of an op's chosen values, the defaults where they say nothing."""
        prefix = f"{self.kernel}." if self.kernel else ""
        return {n: chosen.get(prefix + n, chosen.get(n, v)) for n, v in self.default.items()}

    def points(self, seed: int) -> Iterator[Values]:
        """Points of the space, each once, in an order that the seed decides."""
        draw = random.Random(seed)
        if self.size <= ENUMERATED:
            every = [self._decode(i) for i in range(self.size)]
            draw.shuffle(every)
            yield from (v for v in every if not self.problem(v))
            return
        seen = set()
        for _ in range(ENUMERATED):
            i = draw.randrange(self.size)
            if i not in seen:
                seen.add(i)
                values = self._decode(i)
                if not self.problem(values):
                    yield values

    def _decode(self, i: int) -> Values:
        values: Values = {}
        for p in self.parameters:
            i, at = divmod(i, len(p.choices))
            values[p.name] = p.choices[at]
        return values


def spaces_of(schedule: Schedule, facts: Mapping[str, Number]) -> tuple[Space, ...]:
    """The spaces of a schedule's kernels, those with two points or more. TcError for a choice that has no value."""
    kernels = schedule.kernels or (KernelSchedule((), (), schedule.span),)
    found = []
    for kernel in kernels:
        directives = schedule.shared + kernel.directives
        span = kernel.span if kernel.directives else schedule.span
        used = _used(directives)
        space = Space(
            "+".join(kernel.outputs),
            span,
            tuple(p for p in _parameters(directives, facts) if p.name in used),
            tuple(c for d in directives if isinstance(d, Where) for c in d.conditions),
            dict(facts),
        )
        if space.size > 1:
            found.append(space)
    return tuple(found)


def _parameters(directives: tuple[Directive, ...], facts: Mapping[str, Number]) -> tuple[Parameter, ...]:
    """The tune lines. Choices that depend on other parameters are collected over the values of those."""
    out: list[Parameter] = []
    combinations: list[Values] = [{}]
    for d in directives:
        if not isinstance(d, Tune):
            continue
        choices: dict[Number, None] = {}
        for known in combinations:
            at = {**facts, **known}
            choices[evaluate_dim(d.default, at)] = None
            for c in d.choices:
                choices[evaluate_dim(c, at)] = None
        out.append(Parameter(d.name, tuple(sorted(choices)), d))
        if any(not isinstance(c, Num) for later in directives if isinstance(later, Tune) for c in later.choices):
            combinations = [{**known, d.name: c} for known in combinations for c in choices][:ENUMERATED]
    return tuple(out)


def _used(directives: tuple[Directive, ...]) -> set[str]:
    """Names that a kernel's own lines refer to: a shared parameter that it does not use is none of its own."""
    expressions: list[Expr] = []
    for d in directives:
        match d:
            case MapLoops():
                expressions += [a for level in d.levels for a in level.args]
            case Flag():
                expressions += d.args
            case Stage():
                expressions += [a for option in d.options for a in option.args]
            case Where():
                expressions += d.conditions
            case Tune():
                expressions += [d.default, *d.choices]
    return {n for e in expressions for n in names_in(e)}


def valid(space: Space, values: Mapping[str, Number]) -> bool:
    """Whether the values are a point of the space, an expression without a value included among the reasons not."""
    try:
        return not space.problem(values)
    except TcError:
        return False
