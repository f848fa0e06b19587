"""A static cost model of a kernel on CPU cores: cycles of one core, from tile IR alone.

Walks the loop nest with its trip counts. A `Compute` costs the greatest of arithmetic (vector operations per cycle, the
latency of too few accumulators, spills of too many), loads and stores issued, and bytes from the cache level its
tiles come from; a `Pack` costs bytes. It is used to put candidates in order before any is timed; its rank correlation
with measured times is part of `tcomp tune report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import Access, Binary, Call, Expr, Num, accesses_in, children, names_in
from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.instructions.vector_matching import vector_instruction
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Pack, Panels, Scope, Statement, Unpack
from tcomp.machine.cpu import CpuMachine

FMA_PER_CYCLE, LOADS_PER_CYCLE, STORES_PER_CYCLE = 2.0, 2.0, 1.0
FMA_LATENCY = 4.0
CALL_OPERATIONS = {"exp": 12.0, "log": 16.0, "tanh": 22.0, "sqrt": 8.0, "rsqrt": 10.0, "cos": 20.0, "sin": 20.0}
BYTES_PER_CYCLE = (64.0, 32.0, 14.0, 5.0)
"""From L1, L2, L3 and memory into one core: figures of current x86 servers, all cores at work."""
LOOP_OVERHEAD = 2.0
"""Cycles that a turn of an innermost loop adds beside its vector work."""


@dataclass(frozen=True)
class _Level:
    """A loop around: its variable, trip count and whether its turns are shared among cores."""

    variable: str
    trips: float


def predicted_cycles(kernel: Kernel, machine: CpuMachine, threads: int) -> float:
    """Cycles until the kernel's slowest core is done, all phases together."""
    return sum(_phase(s, kernel, machine, threads) for phase in kernel.phases for s in phase)


def _phase(s: Statement, kernel: Kernel, machine: CpuMachine, threads: int) -> float:
    return _Walk(kernel, machine, threads).cost(s, (), {})


class _Walk:
    def __init__(self, kernel: Kernel, machine: CpuMachine, threads: int) -> None:
        self.kernel, self.machine, self.threads = kernel, machine, threads

    def cost(self, s: Statement, around: tuple[_Level, ...], known: Mapping[str, Number]) -> float:
        """`known` has a typical value of every loop variable: its start."""
        match s:
            case Loop():
                start, stop = self._value(s.start, known), self._value(s.stop, known)
                extent = max(0.0, stop - start)
                trips = math.ceil(extent / s.step)
                here = {**known, s.variable: int(start)}
                if s.chunked:
                    share = math.ceil(trips / self.threads)
                    here[s.variable + ".stop"] = int(min(stop, start + share * s.step))
                    return sum(self.cost(b, (*around, _Level(s.variable, 1)), here) for b in s.body)
                if s.level == "core":
                    inner = sum(self.cost(b, (*around, _Level(s.variable, trips)), here) for b in s.body)
                    nested = any(isinstance(b, Loop) and b.level == "core" for b in s.body)
                    turns = float(trips) if nested else self._share(trips, around)
                    return turns * inner
                total = sum(self.cost(b, (*around, _Level(s.variable, trips)), here) for b in s.body)
                ragged = extent / (trips * s.step) if trips else 0.0
                return trips * total * ragged if trips else 0.0
            case Compute():
                turns = around[-1].trips if s.last is not None and around else 1.0
                follow = sum(self._compute(m, around, known) for m in s.epilogue)
                return self._compute(s, around, known) + follow / max(1.0, turns)
            case Pack():
                return self._pack(s, known)
            case Unpack():
                return 0.0  # GPUs only

    def _share(self, trips: int, around: tuple[_Level, ...]) -> float:
        """Turns of the innermost core loop that one core gets, per turn of the core loops around it."""
        outer = math.prod(level.trips for level in around) or 1.0
        return math.ceil(outer * trips / self.threads) / outer

    def _compute(self, c: Compute, around: tuple[_Level, ...], known: Mapping[str, Number]) -> float:
        extents = {a.name: self._extent(a, known) for a in c.axes}
        if not all(extents.values()):
            return 0.0
        tile = math.prod(a.unroll for a in c.axes if a.name not in c.reduced)
        turns = math.prod(math.ceil(extents[a.name] / (a.unroll * a.lanes)) for a in c.axes)
        instruction = vector_instruction(c.instruction)
        turns = math.ceil(turns / instruction.group) if instruction is not None else turns
        operations = self._operations(c.value) + (1.0 if c.reduced or c.accumulate else 0.0)
        if self.machine.has_fma and c.reduced:
            operations = max(1.0, operations - 1.0)
        unrolls = math.prod(a.unroll for a in c.axes)
        arithmetic = operations * unrolls / FMA_PER_CYCLE
        if c.reduced:
            arithmetic = max(arithmetic, FMA_LATENCY * max(1, unrolls // tile))
        loads, registers = self._loads(c)
        stores = 0.0
        if c.reduced:
            inner = math.prod(extents[a.name] / (a.unroll * a.lanes) for a in c.axes if a.name in c.reduced)
            stores = tile / max(1.0, inner) / STORES_PER_CYCLE
            spilled = max(0, tile + registers - self.machine.vector_registers)
            loads += 2.0 * spilled
        else:
            stores = unrolls / STORES_PER_CYCLE
        cycles = max(arithmetic, loads / LOADS_PER_CYCLE) + stores + LOOP_OVERHEAD / max(1.0, unrolls / 4)
        return turns * cycles + self._traffic(c, extents, around)

    def _loads(self, c: Compute) -> tuple[float, int]:
        """Load instructions of one register tile, and registers that hold what is loaded."""
        loads, registers = 0.0, 0
        vector = next((a for a in c.axes if a.lanes > 1), None)
        for access in dict.fromkeys(accesses_in(c.value)):
            names = {n for s in access.subscripts for n in names_in(s)}
            count = math.prod(a.unroll for a in c.axes if a.name in names)
            last = names_in(access.subscripts[-1]) if access.subscripts else set()
            if vector is not None and vector.name in names and vector.name not in last:
                packed = self._panel_axis(access)
                inside = packed is not None and vector.name in names_in(access.subscripts[packed])
                count *= 1 if inside else vector.lanes
            loads += count
            registers += count if vector is not None and vector.name in names else 1
        return loads, registers

    def _panel_axis(self, access: Access) -> int | None:
        buffer = self._buffer(access.tensor)
        return buffer.layout.axis if buffer is not None and isinstance(buffer.layout, Panels) else None

    def _buffer(self, name: str) -> Buffer | None:
        try:
            return self.kernel.buffer(name)
        except KeyError:
            return None

    def _traffic(self, c: Compute, extents: Mapping[str, float], around: tuple[_Level, ...]) -> float:
        """Cycles for bytes that come from beyond L1: each access's tile, from the level that holds what is used
        between two uses of it."""
        tiles = {}
        for access in [*dict.fromkeys(accesses_in(c.value)), c.target]:
            buffer = self._buffer(access.tensor)
            if buffer is None:
                continue
            names = {n for s in access.subscripts for n in names_in(s)}
            tiles[access.tensor] = (
                buffer, names, buffer.dtype.bytes * math.prod(extents[a.name] for a in c.axes if a.name in names)
            )  # fmt: skip
        together = sum(size for _, _, size in tiles.values())
        cycles = 0.0
        for buffer, names, size in tiles.values():
            reach = together
            found = None
            for level in reversed(around):
                if level.variable not in names and level.trips > 1:
                    found = reach  # the next turn of this loop reads the same tile again
                    break
                reach = min(reach * max(1.0, level.trips), 1e18)
            home = buffer.bytes if buffer.scope is Scope.OPERAND else together
            cycles += size / self._bandwidth(found if found is not None else max(home, together))
        return cycles

    def _bandwidth(self, footprint: float) -> float:
        m = self.machine
        for capacity, rate in zip((m.l1_bytes, m.l2_bytes, m.l3_bytes), BYTES_PER_CYCLE, strict=False):
            if footprint <= 0.8 * capacity:
                return rate
        return BYTES_PER_CYCLE[-1]

    def _pack(self, p: Pack, known: Mapping[str, Number]) -> float:
        buffer, source = self.kernel.buffer(p.buffer), self._buffer(p.source.tensor)
        size = buffer.dtype.bytes * math.prod(self._extent(a, known) for a in p.axes)
        last = names_in(p.source.subscripts[-1])
        along = isinstance(buffer.layout, Panels) and p.axes[buffer.layout.axis].name in last
        shuffle = 1.0 if along else 2.0  # a transposing pack shuffles every vector
        return size / self._bandwidth(source.bytes if source else size) + shuffle * size / 16.0

    def _operations(self, e: Expr) -> float:
        """Vector operations of an expression, one evaluation."""
        match e:
            case Binary(op, _, _) if op in ("+", "-", "*", "<", "<=", ">", ">=", "and", "or", "==", "!="):
                own = 1.0
            case Binary():
                own = 6.0
            case Call(function, _):
                own = CALL_OPERATIONS.get(function, 1.0)
            case Access():
                return 0.0
            case _:
                own = 0.0
        return own + sum(self._operations(x) for x in children(e))

    def _extent(self, a: Axis, known: Mapping[str, Number]) -> float:
        return max(0.0, min(self._value(a.stop, known) - self._value(a.start, known), a.block))

    def _value(self, e: Expr, known: Mapping[str, Number]) -> float:
        """A typical value, 0 where there is none; a bound that a scalar gives is known only at run time."""
        if isinstance(e, Call) and e.function == "min" and isinstance(e.args[0], Num):
            return min(self._value(a, known) for a in e.args if not accesses_in(a))
        try:
            return float(evaluate_dim(e, known))
        except TcError:
            return 0.0
