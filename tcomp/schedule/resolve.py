"""A schedule's directives become numbers: per kernel, how each loop is tiled, ordered, staged and unrolled.

Takes the schedule's text, the op's index extents and the machine; gives one `KernelPlan` per kernel. Tuned
parameters take their chosen values (a lockfile's or a tuner's) or their defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tcomp.dsl.ast import (
    Call,
    Cast,
    Combine,
    Directive,
    DType,
    Expr,
    Flag,
    Fuse,
    KernelSchedule,
    MapLoops,
    Name,
    Num,
    Op,
    Order,
    Schedule,
    Span,
    Stage,
    Tune,
    Use,
    Where,
    names_in,
)
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.directives import CONDITION
from tcomp.dsl.errors import TcError
from tcomp.schedule.gpu.launch_flags import FLAGS, launch_flags
from tcomp.schedule.kernel_plan import KernelPlan, LoopMap, Named, TileLevel
from tcomp.schedule.origins import origins_of


class LevelRules(Protocol):
    """What a family of targets makes of a loop's levels (`cpu_levels`, `gpu_levels`)."""

    facts: dict[str, int | float]

    def loop(self, name: str, levels: Sequence[ResolvedLevel], span: Span) -> LoopMap:
        """The loop's mapping. TcError for a level that cannot stand where it does."""
        ...


@dataclass(frozen=True)
class ResolvedLevel:
    """A level with its numbers: `seq(KC)` is ("seq", (384,))."""

    kind: str
    args: tuple[int, ...]
    span: Span


@dataclass(frozen=True)
class Resolver:
    """Resolves the directives of one op instance's schedule. `chosen` are tuned parameters' values, `storage` is the
    type of the op's narrowest tensors."""

    op: Op
    extents: Mapping[str, int]
    rules: LevelRules
    chosen: Mapping[str, int | float]
    storage: DType
    dims: Mapping[str, int]

    def plans(self, schedule: Schedule) -> list[KernelPlan]:
        """One plan per kernel of the schedule (one for the whole op when it has no `kernel` lines)."""
        kernels = schedule.kernels or (KernelSchedule((), (), schedule.span),)
        return [self._plan(schedule, k) for k in kernels]

    def _plan(self, schedule: Schedule, kernel: KernelSchedule) -> KernelPlan:
        span = kernel.span if kernel.directives else schedule.span
        return _KernelResolver(self, kernel.outputs, schedule.shared + kernel.directives).plan(span)


class _KernelResolver:
    """Resolves the directives of one kernel. `values` are its tuned parameters', `known` these and the facts."""

    def __init__(self, whole: Resolver, outputs: tuple[str, ...], directives: tuple[Directive, ...]) -> None:
        self.whole, self.outputs, self.directives = whole, outputs, directives
        self.values: dict[str, int | float] = {}
        self.known: dict[str, int | float] = {**whole.dims, **whole.rules.facts}

    def plan(self, span: Span) -> KernelPlan:
        self._tune()
        loops, special = self._mapped()
        inlined = (d for d in self.directives if isinstance(d, Flag) and d.name == "inline")
        joins = [(d, self._stands(d)) for d in self.directives if isinstance(d, Combine)]
        uses, flags = self._used(), launch_flags(self.directives, self.known)
        return KernelPlan(
            self.outputs,
            loops,
            _sequence(loops, [d for d in self.directives if isinstance(d, Order)]),
            tuple(d for d in self.directives if isinstance(d, Fuse)),
            tuple(s for d in self.directives if isinstance(d, Stage) for s in self._staged(d)),
            tuple(d for d, stands in joins if stands),
            {a.id: a.span for d in inlined for a in d.args if isinstance(a, Name)},
            special,
            self.values,
            span,
            uses,
            casts_in(self.directives, self.whole.storage),
            flags,
            self._named("overlap"),
            self._named("promote"),
            origins=origins_of(self.directives, uses, flags, self.values),
            absent=tuple(d for d, stands in joins if not stands),
        )

    def _mapped(self) -> tuple[dict[str, LoopMap], dict[tuple[str, str], LoopMap]]:
        """The mapping of each loop, and those that hold `of` one tensor, by (index, tensor)."""
        loops: dict[str, LoopMap] = {}
        special: dict[tuple[str, str], LoopMap] = {}
        mapped: set[tuple[str, tuple[str, ...]]] = set()
        for directive in self.directives:
            _refuse(directive)
        lines = [d for d in self.directives if isinstance(d, MapLoops) and self._stands(d)]
        for d, name in [(line, name) for line in lines for name in line.loops]:
            if name not in self.whole.extents:
                known = ", ".join(sorted(self.whole.extents))
                raise TcError(f"{self.whole.op.name} has no loop '{name}'", d.span, f"its loops are: {known}")
            if (name, d.of) in mapped:
                hint = f"put all levels on one line: {name} -> ... / ..."
                hint = hint if d.condition is None else "write conditions of which only one holds"
                raise TcError(f"loop '{name}' is mapped twice", d.span, hint)
            mapped.add((name, d.of))
            mapping = self._loop(name, d)
            if d.of and mapping.tiles:
                raise TcError(
                    f"only levels within a tile can differ between equations, not '{mapping.tiles[0].kind}'",
                    mapping.tiles[0].span,
                    f"put tile levels on the line of '{name}' without `of`",
                )
            special |= {(name, tensor): mapping for tensor in d.of}
            if not d.of:
                loops[name] = mapping
        return loops, special

    def _staged(self, stage: Stage) -> tuple[Stage, ...]:
        """The line without its conditions; nothing where one does not hold."""
        conditions = [o.args[0] for o in stage.options if o.kind == CONDITION]
        if not all(evaluate_dim(c, self.known) for c in conditions):
            return ()
        return (replace(stage, options=tuple(o for o in stage.options if o.kind != CONDITION)),)

    def _used(self) -> dict[str, Use]:
        """The `use` line of each equation that has one; `fma` is what is used without one."""
        found: dict[str, Use] = {}
        for d in self.directives:
            if not isinstance(d, Use):
                continue
            for name in d.names:
                if name in found:
                    raise TcError(f"two instructions are to compute '{name}'", d.span, "keep one `use` line for it")
                found[name] = d
        return {n: d for n, d in found.items() if d.instruction != "fma"}

    def _named(self, flag: str) -> dict[str, Named]:
        """The products that lines `overlap o` or `promote acc(128)` name."""
        named: dict[str, Named] = {}
        for d in self.directives:
            if not isinstance(d, Flag) or d.name != flag:
                continue
            for a in d.args or (Num(0, d.span),):
                match a:
                    case Name(name):
                        named[name] = Named(name, None, a.span)
                    case Call(name, (number,)):
                        named[name] = Named(name, int(evaluate_dim(number, self.known)), a.span)
                    case _:
                        raise TcError(f"`{flag}` takes the products to {flag}", d.span, f"write: {flag} acc")
        return named

    def _tune(self) -> None:
        """Parameter values; of several kernels' equally named ones, `dX.KC` chooses the one of kernel dX."""
        own = {d.name: d for d in self.directives if isinstance(d, Tune)}
        for d in self.directives:
            if isinstance(d, Tune):  # a kernel's own line below is the one that is tuned
                value = self._chosen(d) if own[d.name] is d else evaluate_dim(d.default, self.known)
                self.values[d.name] = self.known[d.name] = value
        for d in self.directives:
            if isinstance(d, Where):
                for c in d.conditions:
                    self._hold(c, c.span if c.span.line else d.span)

    def _chosen(self, d: Tune) -> int | float:
        default, chosen = evaluate_dim(d.default, self.known), self.whole.chosen
        value = chosen.get(f"{'+'.join(self.outputs)}.{d.name}", chosen.get(d.name, default))
        allowed = [evaluate_dim(c, self.known) for c in d.choices] or [default]
        if value not in allowed and value != default:
            raise TcError(
                f"{d.name} = {value} is not among its choices", d.span, f"choose one of {', '.join(map(str, allowed))}"
            )
        return value

    def _stands(self, line: Combine | MapLoops) -> bool:
        return line.condition is None or bool(evaluate_dim(line.condition, self.known))

    def _hold(self, condition: Expr, span: Span) -> None:
        """TcError where a `where` condition does not hold."""
        try:
            if evaluate_dim(condition, self.known):
                return
            problem = "does not hold"
        except TcError as e:
            problem = f"cannot be told: {e.message}"
        names = names_in(condition)
        shown = ", ".join(f"{n} = {self.known[n]}" for n in sorted(names & set(self.known)))
        raise TcError(
            f"the schedule's `where` condition {problem}",
            span,
            "choose other parameter values"
            if names & set(self.values)
            else "write another schedule for these dimensions",
            (f"with {shown}",),
        )

    def _number(self, e: Expr, span: Span, what: str) -> int:
        n = evaluate_dim(e, self.known)
        if int(n) != n or n < 1:
            raise TcError(f"{what} must be a positive whole number, not {n}", span, "write 1 or more")
        return int(n)

    def _loop(self, name: str, d: MapLoops) -> LoopMap:
        levels = []
        for level in d.levels:
            span = level.span if level.span.line else d.span
            what = f"the size in {level.kind}(...)"
            args = tuple(self._number(a, span, what) for a in level.args)
            levels.append(ResolvedLevel(level.kind, args, span))
        return self.whole.rules.loop(name, levels, d.span)


def _refuse(d: Directive) -> None:
    """Directives of the language that no lowering exists for yet must not be ignored."""
    if isinstance(d, Flag) and d.name not in ("inline", "overlap", "promote", *FLAGS):
        raise TcError(
            f"`{d.name}` cannot be lowered yet", d.span, "remove the line: contractions run on FMA units, untransformed"
        )


def _sequence(loops: dict[str, LoopMap], orders: list[Order]) -> tuple[TileLevel, ...]:
    """Tile loops, outermost first: those that blocks or cores share, then the others, in the given order."""
    core = [t for m in loops.values() for t in m.tiles if t.parallel]
    core.sort(key=lambda t: ("", "z", "y", "x").index(t.place))
    rest = {m.index: [t for t in m.tiles if not t.parallel] for m in loops.values()}
    sequence: list[TileLevel] = []
    for o in orders:
        for name in o.loops:
            if name not in loops:
                known = f"mapped loops are {', '.join(loops)}" if loops else "no loop is mapped"
                hint = f"tile it: {name} -> seq(64) ({known})"
                raise TcError(f"order names '{name}', which this kernel does not map", o.span, hint)
            if rest[name]:
                sequence.append(rest[name].pop(0))
    for levels in rest.values():
        sequence += levels
    chunked = [t for t in core if t.block is None]
    if chunked and len(core) > 1:
        other = next(t for t in core if t is not chunked[0])
        raise TcError(
            f"loop '{chunked[0].index}' takes all cores (core without a size), so '{other.index}' cannot "
            "be divided among them too",
            other.span,
            f"give both a size, e.g. {chunked[0].index} -> core(1)",
        )
    return tuple(core + sequence)


def casts_in(directives: Iterable[Directive], storage: DType) -> dict[str, DType]:
    """What `cast` lines say, by tensor or EQUATION.TENSOR; `real` is `storage`, that of the op's narrowest tensors."""
    return {d.what: storage if d.dtype is DType.REAL else d.dtype for d in directives if isinstance(d, Cast)}
