"""A schedule's directives become numbers: per kernel, how each loop is tiled, ordered, staged and unrolled.

Takes the schedule's text, the op's index extents and the machine; gives one `KernelPlan` per kernel. Tuned
parameters take their chosen values (a lockfile's or a tuner's) or their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import (
    Combine,
    Directive,
    Expr,
    Flag,
    Fuse,
    KernelSchedule,
    Level,
    MapLoops,
    Name,
    Num,
    Op,
    Order,
    Schedule,
    Span,
    Stage,
    Tune,
    Where,
)
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.machine.cpu import CpuMachine

CPU_LEVELS = ("core", "seq", "unroll", "vec")


@dataclass(frozen=True)
class TileLevel:
    """One generated loop: `block` values of `index` per turn; a chunked core level has no fixed block."""

    index: str
    number: int
    kind: str  # core | seq
    block: int | None
    span: Span

    @property
    def variable(self) -> str:
        return f"{self.index}.{self.number}"


@dataclass(frozen=True)
class LoopMap:
    """How one index is mapped: its tile levels, then its register tile (unroll x vector lanes)."""

    index: str
    tiles: tuple[TileLevel, ...] = ()
    unroll: int = 1
    vec: bool = False
    span: Span = field(default_factory=lambda: Span("<default>", 0, 0, 0, 0))


@dataclass(frozen=True)
class KernelPlan:
    """Everything one kernel's lowering needs to know from its schedule, all numbers resolved."""

    outputs: tuple[str, ...]
    loops: dict[str, LoopMap]
    sequence: tuple[TileLevel, ...]
    """tile levels, outermost first"""
    fuse: tuple[Fuse, ...]
    stages: tuple[Stage, ...]
    combine: tuple[Combine, ...]
    inline: frozenset[str]
    values: dict[str, int | float]
    span: Span


def machine_facts(machine: CpuMachine, threads: int) -> dict[str, int | float]:
    """Names a schedule's expressions may use: lanes, registers, l1, l2, l3 (bytes), cores."""
    return {
        "lanes": machine.lanes_f32,
        "registers": machine.vector_registers,
        "l1": machine.l1_bytes,
        "l2": machine.l2_bytes,
        "l3": machine.l3_bytes,
        "cores": threads,
    }


class Resolver:
    """Resolves the directives of one op instance's schedule."""

    def __init__(
        self,
        op: Op,
        extents: dict[str, int],
        machine: CpuMachine,
        threads: int,
        text: str,
        chosen: Mapping[str, int | float] | None = None,
    ) -> None:
        self.op, self.extents, self.text = op, extents, text
        self.machine, self.threads = machine, threads
        self.facts = machine_facts(machine, threads)
        self.chosen = dict(chosen or {})

    def error(self, message: str, span: Span, hint: str = "", *notes: str) -> TcError:
        return TcError(message, span, self.text, hint, notes)

    def plans(self, schedule: Schedule) -> list[KernelPlan]:
        """One plan per kernel of the schedule (one for the whole op when it has no `kernel` lines)."""
        kernels = schedule.kernels or (KernelSchedule((), (), schedule.span),)
        return [self._plan(schedule, k) for k in kernels]

    def _plan(self, schedule: Schedule, kernel: KernelSchedule) -> KernelPlan:
        directives = schedule.shared + kernel.directives
        values = self._tuned(directives, kernel.outputs)
        loops: dict[str, LoopMap] = {}
        for d in directives:
            if isinstance(d, MapLoops):
                for name in d.loops:
                    if name not in self.extents:
                        known = ", ".join(sorted(self.extents))
                        raise self.error(f"{self.op.name} has no loop '{name}'", d.span, f"its loops are: {known}")
                    if name in loops:
                        raise self.error(
                            f"loop '{name}' is mapped twice",
                            d.span,
                            f"put all levels on one line: {name} -> ... / ...",
                        )
                    loops[name] = self._loop(name, d, values)
        order = [d for d in directives if isinstance(d, Order)]
        inline = {
            a.id
            for d in directives
            if isinstance(d, Flag) and d.name == "inline"
            for a in d.args
            if isinstance(a, Name)
        }
        return KernelPlan(
            kernel.outputs,
            loops,
            self._sequence(loops, order),
            tuple(d for d in directives if isinstance(d, Fuse)),
            tuple(d for d in directives if isinstance(d, Stage)),
            tuple(d for d in directives if isinstance(d, Combine)),
            frozenset(inline),
            values,
            kernel.span if kernel.directives else schedule.span,
        )

    def _tuned(self, directives: tuple[Directive, ...], outputs: tuple[str, ...]) -> dict[str, int | float]:
        """Parameter values; of several kernels' equally named ones, `dX.KC` chooses the one of kernel dX."""
        values: dict[str, int | float] = {}
        for d in directives:
            if isinstance(d, Tune):
                default = evaluate_dim(d.default, self.facts | values)
                value = self.chosen.get(f"{'+'.join(outputs)}.{d.name}", self.chosen.get(d.name, default))
                allowed = [evaluate_dim(c, self.facts | values) for c in d.choices] or [default]
                if value not in allowed and value != default:
                    raise self.error(
                        f"{d.name} = {value} is not among its choices",
                        d.span,
                        f"choose one of {', '.join(map(str, allowed))}",
                    )
                values[d.name] = value
        for d in directives:
            if isinstance(d, Where):
                for c in d.conditions:
                    if not evaluate_dim(c, self.facts | values):
                        shown = ", ".join(f"{k} = {v}" for k, v in values.items())
                        raise self.error(
                            "the schedule's `where` condition does not hold",
                            c.span if c.span.line else d.span,
                            "choose other parameter values",
                            f"with {shown}",
                        )
        return values

    def _number(self, e: Expr, values: dict[str, int | float], span: Span, what: str) -> int:
        n = evaluate_dim(e, self.facts | values)
        if int(n) != n or n < 1:
            raise self.error(f"{what} must be a positive whole number, not {n}", span, "write 1 or more")
        return int(n)

    def _loop(self, name: str, d: MapLoops, values: dict[str, int | float]) -> LoopMap:
        tiles: list[TileLevel] = []
        unroll, vec, stage = 1, False, 0
        for level in d.levels:
            span = level.span if level.span.line else d.span
            if level.kind not in CPU_LEVELS:
                raise self.error(
                    f"level '{level.kind}' does not exist on cpu",
                    span,
                    f"levels on cpu, outermost first: {', '.join(CPU_LEVELS)}",
                )
            rank = CPU_LEVELS.index(level.kind)
            if rank < stage or (rank == stage and level.kind != "seq" and stage > 0):
                raise self.error(
                    f"level '{level.kind}' of loop '{name}' comes too late",
                    span,
                    "write levels outermost first: core / seq(...) / unroll(...) / vec",
                )
            stage = rank
            block = self._block(level, values, span)
            if level.kind in ("core", "seq"):
                if level.kind == "core" and tiles:
                    raise self.error(f"loop '{name}' is mapped to cores twice", span, "keep one core level")
                if level.kind == "seq" and block is None:
                    continue
                if block is not None and tiles and tiles[-1].block is not None and block > tiles[-1].block:
                    raise self.error(
                        f"tile {block} of loop '{name}' is larger than the tile {tiles[-1].block} around it",
                        span,
                        "inner tiles must not grow",
                    )
                tiles.append(TileLevel(name, len(tiles), level.kind, block, span))
            elif level.kind == "unroll":
                unroll = block or 1
            else:
                vec = True
        return LoopMap(name, tuple(tiles), unroll, vec, d.span)

    def _block(self, level: Level, values: dict[str, int | float], span: Span) -> int | None:
        if not level.args:
            if level.kind == "unroll":
                raise self.error("unroll needs a factor", span, "write unroll(4)")
            return None
        if len(level.args) != 1:
            raise self.error(f"{level.kind} takes one number", span, f"write {level.kind}(64)")
        return self._number(level.args[0], values, span, f"the size in {level.kind}(...)")

    def _sequence(self, loops: dict[str, LoopMap], orders: list[Order]) -> tuple[TileLevel, ...]:
        core = [t for m in loops.values() for t in m.tiles if t.kind == "core"]
        rest = {m.index: [t for t in m.tiles if t.kind == "seq"] for m in loops.values()}
        sequence: list[TileLevel] = []
        for o in orders:
            for name in o.loops:
                if name not in loops:
                    raise self.error(
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
            raise self.error(
                f"loop '{chunked[0].index}' takes all cores (core without a size), so '{other.index}' cannot "
                "be divided among them too",
                other.span,
                f"give both a size, e.g. {chunked[0].index} -> core(1)",
            )
        return tuple(core + sequence)


def level_number(value: Expr) -> int | None:
    """The integer of a literal level argument, for printing."""
    return value.value if isinstance(value, Num) and isinstance(value.value, int) else None
