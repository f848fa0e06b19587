"""The search space of one kernel, read off its schedule's own `tune` and `where` lines.

Takes a schedule and the machine's facts; gives one `Space` per kernel that has something to choose. Kernels of an op
run one after the other, so each is a space of its own: `dX.KC` is chosen without regard to `dW.KC`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import Directive, Expr, Flag, KernelSchedule, MapLoops, Schedule, Span, Stage, Tune, Where, names_in
from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.printer import print_expression
from tcomp.dsl.schedule_blocks import own_lines

Values = dict[str, Number]
"""Parameter names (without the kernel) and their values."""
ENUMERATED = 20_000
"""Points of a space that are walked one by one; larger spaces are sampled."""


@dataclass(frozen=True)
class Parameter:
    """`tune KC = 384 from 192, 384`. `choices` are all that can occur, ascending. Where default or choices are
    expressions of parameters above (`needs`), what is allowed depends on their values: `places` is the greatest number
    of choices that are allowed at once."""

    name: str
    choices: tuple[Number, ...]
    line: Tune
    needs: frozenset[str] = frozenset()
    places: int = 0


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
        return self.filled({})

    def filled(self, values: Mapping[str, Number]) -> Values:
        """The values, with defaults for parameters that have none: those that follow from the values above them."""
        found: Values = {}
        for p in self.parameters:
            given = values.get(p.name)
            found[p.name] = evaluate_dim(p.line.default, {**self.facts, **found}) if given is None else given
        return found

    @property
    def size(self) -> int:
        """Combinations of choices, those that a condition forbids included."""
        n = 1
        for p in self.parameters:
            n *= p.places
        return n

    def allowed(self, p: Parameter, above: Mapping[str, Number]) -> tuple[Number, ...]:
        """What the parameter may be where those above it have these values, ascending."""
        return _allowed(p.line, {**self.facts, **above}) if p.needs else p.choices

    def problem(self, values: Mapping[str, Number]) -> str:
        """Why the values are no point of the space; empty when they are one."""
        known: dict[str, Number] = dict(self.facts)
        for p in self.parameters:
            if p.name not in values:
                return f"{p.name} has no value"
            value = values[p.name]
            allowed = self.allowed(p, known)
            if value not in allowed:
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
        names = [p.name for p in self.parameters]
        given = {n: chosen.get(prefix + n, chosen.get(n)) for n in names}
        return self.filled({n: v for n, v in given.items() if v is not None})

    def points(self, seed: int) -> Iterator[Values]:
        """Points of the space, each once, in an order that the seed decides."""
        draw = random.Random(seed)
        if self.size <= ENUMERATED:
            every = list(range(self.size))
            draw.shuffle(every)
        else:
            every = list(dict.fromkeys(draw.randrange(self.size) for _ in range(ENUMERATED)))
        for i in every:
            values = self._decode(i)
            if values is not None and not self.problem(values):
                yield values

    def _decode(self, i: int) -> Values | None:
        """The i-th combination; None where a parameter has fewer choices than elsewhere."""
        values: Values = {}
        for p in self.parameters:
            i, at = divmod(i, p.places)
            allowed = self.allowed(p, values)
            if at >= len(allowed):
                return None
            values[p.name] = allowed[at]
        return values


def spaces_of(schedule: Schedule, facts: Mapping[str, Number]) -> tuple[Space, ...]:
    """The spaces of a schedule's kernels, those with two points or more. TcError for a choice that has no value."""
    kernels = schedule.kernels or (KernelSchedule((), (), schedule.span),)
    found = []
    for kernel in kernels:
        directives = own_lines(schedule.shared, kernel.directives)
        span = kernel.span if kernel.directives else schedule.span
        used, conditions = _used(directives)
        space = Space("+".join(kernel.outputs), span, _parameters(directives, facts, used), conditions, dict(facts))
        if space.size > 1:
            found.append(space)
    return tuple(found)


def _parameters(
    directives: tuple[Directive, ...], facts: Mapping[str, Number], used: set[str]
) -> tuple[Parameter, ...]:
    """The tune lines of the used names. Choices that depend on parameters above are collected over all values that
    those can have together. TcError where these are too many."""
    out: dict[str, Parameter] = {}
    for d in directives:
        if not isinstance(d, Tune) or d.name not in used:
            continue
        needs = _needs(d, out)
        choices: dict[Number, None] = {}
        places = 0
        for known in _together([p for n, p in out.items() if n in needs], facts, d):
            allowed = _allowed(d, {**facts, **known})
            choices |= dict.fromkeys(allowed)
            places = max(places, len(allowed))
        out[d.name] = Parameter(d.name, tuple(sorted(choices)), d, needs, places)
    return tuple(out.values())


def _needs(d: Tune, above: Mapping[str, Parameter]) -> frozenset[str]:
    """The parameters that a tune line's default and choices refer to, and those that these need."""
    named = {n for e in (d.default, *d.choices) for n in names_in(e)} & set(above)
    return frozenset(named.union(*(above[n].needs for n in named)))


def _allowed(d: Tune, known: Mapping[str, Number]) -> tuple[Number, ...]:
    return tuple(sorted({evaluate_dim(e, known) for e in (d.default, *d.choices)}))


def _together(parameters: list[Parameter], facts: Mapping[str, Number], line: Tune) -> list[Values]:
    """Every combination of values that the parameters (closed under `needs`, in order) can have."""
    combinations: list[Values] = [{}]
    for p in parameters:
        combinations = [{**k, p.name: v} for k in combinations for v in _allowed(p.line, {**facts, **k})]
        if len(combinations) > ENUMERATED:
            raise TcError(
                f"the choices of '{line.name}' depend on more than {ENUMERATED} combinations of parameters",
                line.span,
                hint="let it depend on fewer parameters, or write its choices out and forbid some by `where`",
            )
    return combinations


def _used(directives: tuple[Directive, ...]) -> tuple[set[str], tuple[Expr, ...]]:
    """Names that a kernel's own lines refer to, themselves or through conditions and other parameters' lines, and the
    conditions that touch them: a shared parameter that a kernel does not use is none of its own."""
    expressions: list[Expr] = []
    for d in directives:
        match d:
            case MapLoops():
                expressions += [a for level in d.levels for a in level.args]
                expressions += [d.condition] if d.condition is not None else []
            case Flag():
                expressions += d.args
            case Stage():
                expressions += [a for option in d.options for a in option.args]
    used = {n for e in expressions for n in names_in(e)}
    lines = {
        d.name: {n for e in (d.default, *d.choices) for n in names_in(e)} for d in directives if isinstance(d, Tune)
    }
    conditions = [(c, set(names_in(c)) & set(lines)) for d in directives if isinstance(d, Where) for c in d.conditions]
    before = -1
    while len(used) > before:
        before = len(used)
        used |= {n for name in used for n in lines.get(name, ())}
        used |= {n for _, names in conditions if names & used for n in names}
    return used, tuple(c for c, names in conditions if names & used or not names)


def valid(space: Space, values: Mapping[str, Number]) -> bool:
    """Whether the values are a point of the space, an expression without a value included among the reasons not."""
    try:
        return not space.problem(values)
    except TcError:
        return False
