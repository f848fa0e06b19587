"""A phase as one function: loops over tiles, the cores' shares, scratch tiles.

Every phase becomes `void f(ptr arena, ptr offsets, ptr scratch, ptr team, i64 tid, i64 nthreads)`. Operand i
is at arena + offsets[i]. Nested `core` loops are flattened and each thread takes a contiguous share of the
iterations; statements outside any core loop run on thread 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from llvmlite import ir

from tcomp.codegen.cpu.ahead import AheadPacker, copy_ahead
from tcomp.codegen.cpu.compute import ComputeGenerator
from tcomp.codegen.cpu.groups import generate_dots, is_grouped, pack_groups
from tcomp.codegen.cpu.pack import generate_pack
from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.domain import Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.integers import Facts, Known
from tcomp.codegen.llvm.text import safe_name
from tcomp.codegen.llvm.types import I8, I64, POINTER, VOID, IrValue
from tcomp.dsl.ast import names_in
from tcomp.ir.regions import copy_bytes, tile_offsets
from tcomp.ir.tile import Ahead, Compute, Kernel, Loop, Pack, Scope as Where, Statement
from tcomp.machine.cpu import CpuMachine

SIGNATURE = ir.FunctionType(VOID, [POINTER, POINTER, POINTER, POINTER, I64, I64])


class PhaseGenerator:
    """Writes one phase of a kernel as a function of the module."""

    def __init__(self, module: ir.Module, name: str, kernel: Kernel, machine: CpuMachine) -> None:
        function = ir.Function(module, SIGNATURE, name=name)
        function.attributes.add("nounwind")
        self.em = Emitter(function)
        self.arena, offsets, scratch, team, self.tid, self.threads = function.args
        b = self.em.here()
        roots: dict[str, IrValue] = {}
        for i, operand in enumerate(kernel.operands):
            place = b.gep(offsets, [self.em.i64(i)], source_etype=I64)
            offset = b.load(place, typ=I64, align=8)
            roots[operand.name] = b.gep(self.arena, [offset], source_etype=I8, name=safe_name(operand.name))
        for where, region in ((Where.SCRATCH, scratch), (Where.TEAM, team)):
            for tile, at in tile_offsets(kernel, where)[0].items():
                roots[tile] = b.gep(region, [self.em.i64(at)], source_etype=I8, name=safe_name(tile))
        # Tiles with two copies: where they begin, and a word that is even where the first is in use, 0 before any turn.
        self.turning: dict[str, tuple[IrValue, IrValue]] = {}
        for t in kernel.tiles:
            if t.ring > 1:
                self.turning[t.name] = roots[t.name], b.alloca(I64)
                b.store(self.em.i64(0), self.turning[t.name][1])
        self.scope = Scope(
            buffers=kernel.buffers
            | {copy_ahead(t.name): replace(t, name=copy_ahead(t.name)) for t in kernel.tiles if t.ring > 1},
            roots=roots,
            variables={},
            facts=Facts(),
            fma=machine.has_fma,
            registers=machine.vector_registers,
            lanes_f32=machine.lanes_f32,
            features=frozenset(machine.features),
        )

    def generate(self, phase: Sequence[Statement]) -> None:
        """Emit the whole function."""
        serial: list[Statement] = []
        for statement in (*phase, None):
            if statement is not None and not _is_core(statement):
                serial.append(statement)
                continue
            if serial:
                b = self.em.here()
                first = b.icmp_signed("==", self.tid, self.em.i64(0))
                self.em.when(first, partial(self.statements, serial))
                serial = []
            if statement is not None:
                assert isinstance(statement, Loop)
                self._core(statement)
        self.em.here().ret_void()

    def statements(self, body: Sequence[Statement]) -> None:
        for s in body:
            match s:
                case Compute(ahead=Ahead() as ahead):
                    packer = AheadPacker(self.em, self.scope, s, ahead, self.turning[ahead.pack.buffer][1])
                    self._compute(packer.beside(s), packer)
                    packer.finish()
                case Compute():
                    self._compute(s)
                case Pack(by="ahead"):
                    self._pack_ahead(s)
                case Pack():
                    self._pack(s)
                case Loop():
                    if _is_core(s):
                        raise ValueError(f"core loop {s.variable} inside another statement")
                    self._sequential(s)

    def _compute(self, s: Compute, packer: AheadPacker | None = None) -> None:
        if s.instruction:
            generate_dots(self.em, self.scope, s, packer)
        else:
            ComputeGenerator(self.em, self.scope, s, packer).generate()

    def _pack(self, pack: Pack) -> None:
        generate = pack_groups if is_grouped(self.scope.buffers[pack.buffer]) else generate_pack
        generate(self.em, self.scope, pack)

    def _pack_ahead(self, pack: Pack) -> None:
        """Turn to the copy of the tile that the turn before has filled; before the first there is none."""
        em, scope = self.em, self.scope
        root, turns = self.turning[pack.buffer]
        apart = copy_bytes(scope.buffers[pack.buffer])
        b = em.here()
        turn = b.load(turns, typ=I64)
        odd = b.and_(turn, em.i64(1))
        this, other = em.mul(odd, apart), em.mul(b.sub(em.i64(1), odd), apart)
        scope.roots[pack.buffer] = b.gep(root, [em.i64(this)], source_etype=I8)
        scope.roots[copy_ahead(pack.buffer)] = b.gep(root, [em.i64(other)], source_etype=I8)
        first = b.icmp_signed("==", turn, em.i64(0))
        em.when(first, partial(self._pack, pack))

    # ------------------------------------------------------------------------------------------- loops

    def _sequential(self, loop: Loop) -> None:
        em = self.em
        em.here()
        start = integer_value(em, loop.start, self.scope)
        stop = integer_value(em, loop.stop, self.scope)
        facts = self.scope.facts.loop(loop.start, loop.stop, loop.step)

        def body(base: Int, _: Sequence[IrValue]) -> Sequence[IrValue]:
            self._with(loop.variable, base, facts, loop.body)
            return []

        em.loop(start, stop, loop.step, [], body)

    def _with(self, name: str, value: Int, facts: Known, body: Sequence[Statement]) -> None:
        """Emit a body with a loop variable bound."""
        self.bind(name, value, facts)
        self.statements(body)
        self.unbind(name)

    def bind(self, name: str, value: Int, facts: Known) -> None:
        self.scope.variables[name] = self.em.i64(value)
        self.scope.facts.symbols[name] = Known.exact(value) if isinstance(value, int) else facts

    def unbind(self, name: str) -> None:
        del self.scope.variables[name], self.scope.facts.symbols[name]

    # ------------------------------------------------------------------------------------------- cores

    def _core(self, loop: Loop) -> None:
        if loop.chunked:
            self._chunked(loop)
            return
        nest = [loop]
        while len(nest[-1].body) == 1 and _is_core(nest[-1].body[0]):
            inner = nest[-1].body[0]
            assert isinstance(inner, Loop)
            if inner.chunked or {v.variable for v in nest} & (names_in(inner.start) | names_in(inner.stop)):
                raise ValueError(f"core loop {inner.variable} cannot be flattened into {loop.variable}")
            nest.append(inner)
        em = self.em
        b = em.here()
        starts = [integer_value(em, v.start, self.scope) for v in nest]
        trips: list[Int] = []
        total: Int = 1
        for v, start in zip(nest, starts, strict=True):
            stop = integer_value(em, v.stop, self.scope)
            trips.append(self._trip_count(start, stop, v.step))
            total = em.mul(total, trips[-1])
        first, last = self._share(total)

        def body(flat: Int, _: Sequence[IrValue]) -> Sequence[IrValue]:
            b = em.here()
            rest = em.i64(flat)
            values: list[Int] = []
            for v, start, trip in reversed(list(zip(nest, starts, trips, strict=True))):
                count: Int = rest
                if v is not nest[0]:
                    count = b.urem(rest, em.i64(trip))
                    rest = b.udiv(rest, em.i64(trip))
                values.append(em.add(start, em.mul(count, v.step)))
            for v, value in zip(nest, reversed(values), strict=True):
                self.bind(v.variable, value, self.scope.facts.loop(v.start, v.stop, v.step))
            self.statements(nest[-1].body)
            for v in nest:
                self.unbind(v.variable)
            return []

        del b
        em.loop(first, last, 1, [], body)

    def _trip_count(self, start: Int, stop: Int, step: int) -> Int:
        if isinstance(start, int) and isinstance(stop, int):
            return max(0, -(-(stop - start) // step))
        em = self.em
        b = em.builder
        length = b.sub(em.i64(stop), em.i64(start))
        count = b.sdiv(b.add(length, em.i64(step - 1)), em.i64(step))
        return b.select(b.icmp_signed("<", count, em.i64(0)), em.i64(0), count)

    def _share(self, total: Int) -> tuple[IrValue, IrValue]:
        """This thread's contiguous part of range(total)."""
        em = self.em
        b = em.builder
        n = em.i64(total)
        first = b.udiv(b.mul(self.tid, n), self.threads)
        last = b.udiv(b.mul(b.add(self.tid, em.i64(1)), n), self.threads)
        return first, last

    def _chunked(self, loop: Loop) -> None:
        em = self.em
        b = em.here()
        start = integer_value(em, loop.start, self.scope)
        stop = integer_value(em, loop.stop, self.scope)
        first, last = self._share(self._trip_count(start, stop, loop.step))
        begin = em.add(start, em.mul(first, loop.step))
        limit = em.i64(em.add(start, em.mul(last, loop.step)))
        end = b.select(b.icmp_signed("<", limit, em.i64(stop)), limit, em.i64(stop))
        known_begin, known_end = self.scope.facts.chunk(loop.start, loop.stop, loop.step)

        def body() -> None:
            self.bind(loop.variable, begin, known_begin)
            self.bind(loop.variable + ".stop", end, known_end)
            self.statements(loop.body)
            self.unbind(loop.variable)
            self.unbind(loop.variable + ".stop")

        em.when(b.icmp_signed("<", em.i64(begin), end), body)


def _is_core(s: Statement) -> bool:
    return isinstance(s, Loop) and s.level in ("core", "grid")
