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
from tcomp.schedule.kernel_plan import KernelPlan, LoopMap, Named, TileLevel
from tcomp.schedule.launch_flags import FLAGS, launch_flags
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


class Resolver:
    """Resolves the directives of one op instance's schedule."""

    def __init__(
        self,
        op: Op,
        extents: dict[str, int],
        rules: LevelRules,
        chosen: Mapping[str, int | float] | None = None,
        storage: DType = DType.F32,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        self.op, self.extents, self.rules = op, extents, rules
        self.facts = {**(dims or {}), **rules.facts}
        self.chosen = dict(chosen or {})
        self.storage = storage

    def plans(self, schedule: Schedule) -> list[KernelPlan]:
        """One plan per kernel of the schedule (one for the whole op when it has no `kernel` lines)."""
        kernels = schedule.kernels or (KernelSchedule((), (), schedule.span),)
        return [self._plan(schedule, k) for k in kernels]

    def _plan(self, schedule: Schedule, kernel: KernelSchedule) -> KernelPlan:
        directives = schedule.shared + kernel.directives
        values = self._tuned(directives, kernel.outputs)
        loops, special = self._mapped(directives, values)
        order = [d for d in directives if isinstance(d, Order)]
        inlined = (d for d in directives if isinstance(d, Flag) and d.name == "inline")
        joins = [(d, self._stands(d, values)) for d in directives if isinstance(d, Combine)]
        uses, flags = self._used(directives), launch_flags(directives, self.facts | values)
        return KernelPlan(
            kernel.outputs,
            loops,
            self._sequence(loops, order),
            tuple(d for d in directives if isinstance(d, Fuse)),
            tuple(s for d in directives if isinstance(d, Stage) for s in self._staged(d, values)),
            tuple(d for d, stands in joins if stands),
            frozenset(a.id for d in inlined for a in d.args if isinstance(a, Name)),
            special,
            values,
            kernel.span if kernel.directives else schedule.span,
            uses,
            casts_in(directives, self.storage),
            flags,
            self._named("overlap", directives, values),
            self._named("promote", directives, values),
            origins=origins_of(directives, uses, flags, values),
            absent=tuple(d for d, stands in joins if not stands),
        )

    def _mapped(
        self, directives: Sequence[Directive], values: dict[str, int | float]
    ) -> tuple[dict[str, LoopMap], dict[tuple[str, str], LoopMap]]:
        """The mapping of each loop, and those that hold `of` one tensor, by (index, tensor)."""
        loops: dict[str, LoopMap] = {}
        special: dict[tuple[str, str], LoopMap] = {}
        mapped: set[tuple[str, tuple[str, ...]]] = set()
        for directive in directives:
            self._refuse(directive)
        lines = [d for d in directives if isinstance(d, MapLoops) and self._stands(d, values)]
        for d, name in [(line, name) for line in lines for name in line.loops]:
            if name not in self.extents:
                known = ", ".join(sorted(self.extents))
                raise TcError(f"{self.op.name} has no loop '{name}'", d.span, f"its loops are: {known}")
            if (name, d.of) in mapped:
                hint = f"put all levels on one line: {name} -> ... / ..."
                hint = hint if d.condition is None else "write conditions of which only one holds"
                raise TcError(f"loop '{name}' is mapped twice", d.span, hint)
            mapped.add((name, d.of))
            mapping = self._loop(name, d, values)
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

    def _staged(self, stage: Stage, values: Mapping[str, int | float]) -> tuple[Stage, ...]:
        """The line without its conditions; nothing where one does not hold."""
        conditions = [o.args[0] for o in stage.options if o.kind == CONDITION]
        if not all(evaluate_dim(c, self.facts | dict(values)) for c in conditions):
            return ()
        return (replace(stage, options=tuple(o for o in stage.options if o.kind != CONDITION)),)

    def _used(self, directives: tuple[Directive, ...]) -> dict[str, Use]:
        """The `use` line of each equation that has one; `fma` is what is used without one."""
        found: dict[str, Use] = {}
        for d in directives:
            if not isinstance(d, Use):
                continue
            for name in d.names:
                if name in found:
                    raise TcError(f"two instructions are to compute '{name}'", d.span, "keep one `use` line for it")
                found[name] = d
        return {n: d for n, d in found.items() if d.instruction != "fma"}

    def _named(
        self, flag: str, directives: tuple[Directive, ...], values: Mapping[str, int | float]
    ) -> dict[str, Named]:
        """The products that lines `overlap o` or `promote acc(128)` name."""
        named: dict[str, Named] = {}
        for d in directives:
            if not isinstance(d, Flag) or d.name != flag:
                continue
            for a in d.args or (Num(0, d.span),):
                match a:
                    case Name(name):
                        named[name] = Named(name, None, a.span)
                    case Call(name, (number,)):
                        named[name] = Named(name, int(evaluate_dim(number, self.facts | dict(values))), a.span)
                    case _:
                        raise TcError(f"`{flag}` takes the products to {flag}", d.span, f"write: {flag} acc")
        return named

    def _tuned(self, directives: tuple[Directive, ...], outputs: tuple[str, ...]) -> dict[str, int | float]:
        """Parameter values; of several kernels' equally named ones, `dX.KC` chooses the one of kernel dX."""
        values: dict[str, int | float] = {}
        own = {d.name: d for d in directives if isinstance(d, Tune)}
        for d in directives:
            if isinstance(d, Tune):
                default = evaluate_dim(d.default, self.facts | values)
                if own[d.name] is not d:  # a kernel's own line below is the one that is tuned
                    values[d.name] = default
                    continue
                value = self.chosen.get(f"{'+'.join(outputs)}.{d.name}", self.chosen.get(d.name, default))
                allowed = [evaluate_dim(c, self.facts | values) for c in d.choices] or [default]
                if value not in allowed and value != default:
                    raise TcError(
                        f"{d.name} = {value} is not among its choices",
                        d.span,
                        f"choose one of {', '.join(map(str, allowed))}",
                    )
                values[d.name] = value
        for d in directives:
            if isinstance(d, Where):
                for c in d.conditions:
                    self._holds(c, c.span if c.span.line else d.span, values)
        return values

    def _stands(self, line: Combine | MapLoops, values: Mapping[str, int | float]) -> bool:
        return line.condition is None or bool(evaluate_dim(line.condition, self.facts | dict(values)))

    def _holds(self, condition: Expr, span: Span, values: Mapping[str, int | float]) -> None:
        known = {**self.facts, **values}
        try:
            if evaluate_dim(condition, known):
                return
            problem = "does not hold"
        except TcError as e:
            problem = f"cannot be told: {e.message}"
        names = names_in(condition)
        shown = ", ".join(f"{n} = {known[n]}" for n in sorted(names & set(known)))
        raise TcError(
            f"the schedule's `where` condition {problem}",
            span,
            "choose other parameter values" if names & set(values) else "write another schedule for these dimensions",
            (f"with {shown}",),
        )

    def _number(self, e: Expr, values: dict[str, int | float], span: Span, what: str) -> int:
        n = evaluate_dim(e, self.facts | values)
        if int(n) != n or n < 1:
            raise TcError(f"{what} must be a positive whole number, not {n}", span, "write 1 or more")
        return int(n)

    def _loop(self, name: str, d: MapLoops, values: dict[str, int | float]) -> LoopMap:
        levels = []
        for level in d.levels:
            span = level.span if level.span.line else d.span
            what = f"the size in {level.kind}(...)"
            args = tuple(self._number(a, values, span, what) for a in level.args)
            levels.append(ResolvedLevel(level.kind, args, span))
        return self.rules.loop(name, levels, d.span)

    def _refuse(self, d: Directive) -> None:
        """Directives of the language that no lowering exists for yet must not be ignored."""
        if isinstance(d, Flag) and d.name not in ("inline", "overlap", "promote", *FLAGS):
            raise TcError(
                f"`{d.name}` cannot be lowered yet",
                d.span,
                "remove the line: contractions run on FMA units, untransformed",
            )

    def _sequence(self, loops: dict[str, LoopMap], orders: list[Order]) -> tuple[TileLevel, ...]:
        core = [t for m in loops.values() for t in m.tiles if t.parallel]
        core.sort(key=lambda t: ("", "z", "y", "x").index(t.place))
        rest = {m.index: [t for t in m.tiles if not t.parallel] for m in loops.values()}
        sequence: list[TileLevel] = []
        for o in orders:
            for name in o.loops:
                if name not in loops:
                    raise TcError(
                        f"order names '{name}', which this kernel does not map",
                        o.span,
                        f"mapped loops: {', '.join(loops)}",
                    )
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
