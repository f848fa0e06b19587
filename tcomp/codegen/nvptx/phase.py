"""A phase as one kernel entry: the grid of blocks, the statements of a block, its loops.

With a `Producer` the statements are written twice (`roles.py`): as the copies that one thread issues, and as all the
rest. Copies in the background have files of their own: `copies/pipe.py` (cp.async), `copies/tensor_pipe.py`,
`copies/tensor_tile.py` and `copies/tensor_rings.py` (the copy engine fills tiles), `results/delivery.py` (it takes
results away).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from llvmlite import ir

from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import Known, affine_form
from tcomp.codegen.llvm.types import I32, IrValue
from tcomp.codegen.nvptx.assembly.residency import computing_registers, resident_blocks
from tcomp.codegen.nvptx.copies.pack import PackGenerator
from tcomp.codegen.nvptx.copies.pipe import PipeGenerator
from tcomp.codegen.nvptx.copies.tensor_pipe import TensorPipe
from tcomp.codegen.nvptx.copies.tensor_rings import TensorRings
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.entry import declare_entry, scope_of, share_registers
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.grid import turns_of
from tcomp.codegen.nvptx.launch import OperandMap
from tcomp.codegen.nvptx.layout import SharedLayout, handed_over, last_turns, leading_packs, pipe_stages, rings_of
from tcomp.codegen.nvptx.phase_facts import (
    any_asynchronous,
    know_tiles,
    needs_whole_clusters,
    producer_of,
    reads_ordinary_tiles,
    staggered,
    touched,
)
from tcomp.codegen.nvptx.products.groups import Groups
from tcomp.codegen.nvptx.products.tensor_memory import TensorMemory
from tcomp.codegen.nvptx.results.delivery import Deliveries
from tcomp.codegen.nvptx.results.stream_shares import write_share
from tcomp.codegen.nvptx.roles import Roles
from tcomp.codegen.nvptx.statement import write_compute
from tcomp.codegen.nvptx.sync import Planner
from tcomp.codegen.nvptx.threads.beside import join_registers, joined_behind
from tcomp.codegen.nvptx.threads.register_tiles import give_tiles
from tcomp.codegen.nvptx.threads.runs import run_of, write_run, written
from tcomp.dsl.ast import Call, Num
from tcomp.ir.multicast import HALF, cluster_of
from tcomp.ir.panels import written_out
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Scope, Statement, Unpack
from tcomp.ir.walk import accesses_of, grid_nest, statements_in, streams
from tcomp.machine.gpu import GpuMachine


class PhaseGenerator:
    """Writes one phase of a kernel as an entry of the module.

    `inside` says, where clusters do not fit the grid, whether the block has work. Are its warpgroups `staggered`?
    `pipe` is the innermost pipe loop of tensor copies around the place being written."""

    inside: IrValue | None = None
    staggered = False
    joined_behind: frozenset[int] = frozenset()
    """numbers of the sums whose lanes are joined behind the loop around them"""
    pipe: TensorPipe | None = None
    resident = False
    """Must all blocks run at the same time? Those that stay take turns at one sum with what others do later. (The parts
    of a stream only wait for blocks of lower numbers, which start before.)"""

    def __init__(
        self,
        module: ir.Module,
        symbol: str,
        kernel: Kernel,
        phase: Sequence[Statement],
        layout: SharedLayout,
        machine: GpuMachine,
        maps: tuple[OperandMap, ...] = (),
    ) -> None:
        entry = declare_entry(module, symbol, kernel, phase, maps)
        self.kernel, self.phase, self.layout, self.machine = kernel, phase, layout, machine
        self.cluster = cluster_of(kernel, phase)
        self.paired = self.cluster is not None and self.cluster.paired
        """Does the cluster's first block issue the products of both?"""
        self.em = GpuEmitter(entry.function, kernel.gpu.shape, kernel.gpu.sides)
        self.groups = Groups(self.em)
        self.scope = scope_of(entry, self.em, kernel, layout, machine.target)
        self.copies = TensorRings(self, phase, entry.maps)
        self.tensor = TensorMemory(self, phase)
        resident = resident_blocks(kernel, machine, layout.bytes, self.tensor.columns)
        producer = producer_of(kernel, phase)
        if producer is not None and producer.registers:
            share_registers(entry, resident)
        self.roles = Roles(self.em, computing_registers(kernel, machine, resident))
        self.groups.pieces = self.tensor.pieces
        self.collected = set(self.tensor.kept)
        """of the sums that stay in tensor memory while a loop goes on, those that are in registers, or not yet begun"""
        self.last_turns = {id(s) for s in last_turns(phase)}

    def generate(self) -> int:
        """Emit the whole entry; gives the number of blocks to launch."""
        self._plan()
        give_tiles(self.em, self.scope, self.kernel, self.phase)
        self.joined_behind = joined_behind(self.phase, self.scope)
        self.copies.start(self, self.phase)
        self.staggered = staggered(self.kernel, self.phase, self.scope)
        persistent = self.kernel.gpu.order.persistent
        self.deliveries = Deliveries(self.em, self.scope, self.roles, self.copies, self.phase, persistent)
        self._enter_grid()
        total, size = self.turns.total, self.turns.cluster
        work = total if self.stream is None else total * self.stream.units
        blocks = min(work, self.machine.clusters(size) * size) if persistent else total
        takes_turns = any(isinstance(s, Unpack) and s.turns is not None for s in statements_in(self.phase))
        self.resident = takes_turns and blocks < total and self.stream is None
        producer = producer_of(self.kernel, self.phase)
        if total and producer is None:
            self._whole(blocks)
        elif total and producer is not None:
            one = partial(self._blocks, blocks)
            others = {"deliverer": one} if self.copies.handed else {}
            if self.tensor.products:
                others["multiplier"] = partial(self.tensor.by_multiplier, one)
            self.roles.apart(producer, partial(self._produce, blocks), partial(self._whole, blocks), others)
        if size > 1:
            self.em.cluster_barrier()  # a peer may still write into this block, or tell its mbarriers
        if self.paired:
            self.tensor.free_paired()
        self.em.here().ret_void()
        return max(1, blocks)

    def _plan(self) -> None:
        """What is known of the phase before any of its statements: where barriers stand, and what its tiles are for."""
        phase = self.phase
        filled = {s.buffer for s in statements_in(phase) if isinstance(s, Pack) and s.by == "tma"}
        self.ordinary = {t.name for t in self.kernel.tiles if t.scope is Scope.SHARED} - filled
        self.sync = Planner(
            phase, self.scope.buffers, self.em.threads, self.kernel.gpu.order.persistent, self.kernel.inplace,
            frozenset(u.buffer for u in handed_over(phase, self.kernel)), self.tensor.meeting(),
        ).plan(phase)  # fmt: skip
        self.left: dict[tuple[int, ...], set[str]] = {}
        """of a statement (by path), the tiles whose place its results take"""
        for later in self.layout.successors.values():
            self.left.setdefault(later.path, set()).add(later.of)
        self.sync.barriers |= set(self.left)
        know_tiles(self.scope, phase)
        self.em.async_reads = reads_ordinary_tiles(phase, self.scope)
        self.em.calls = not any_asynchronous(phase, self.scope)

    def _enter_grid(self) -> None:
        """The turns of the grid loops, what is in them, and how they are shared out."""
        nest, self.body = grid_nest(self.phase)
        self.turns, self.path = turns_of(nest, self.cluster), (0,) * len(nest)
        if self.turns.padded and (why := needs_whole_clusters(self.phase, self.scope)):
            hint = "leave `cluster` out, or take tiles of which the size is whole clusters"
            raise Unsupported(f"tiles are no whole clusters, and {why}", self.kernel.span, hint)
        stream = self.kernel.gpu.order.stream
        self.stream = stream if stream is not None and any(streams(s, stream) for s in self.phase) else None

    def _blocks(self, blocks: int) -> None:
        """A block's turns: one, or every blocks-th from its own number on."""
        em, total, size = self.em, self.turns.clusters, self.turns.cluster
        b = em.here()
        number: Int = 0 if blocks == 1 else em.nvvm("ctaid.x", I32)
        if size > 1:
            number = b.udiv(em.i64(number), em.i64(size))
        if self.stream is not None:
            write_share(self, self.stream, number, blocks // size)
            return
        sides = em.sides if self.roles.computing else 1
        if sides > 1:
            side = em.side()
            em.here()
            number = em.add(em.i64(number), em.mul(side, blocks // size))
        elif blocks == total * size:
            self.turn(number)
            return

        def turn(base: Int) -> None:
            self.turn(base)

        em.repeat(number, total, sides * (blocks // size), turn, nonempty=sides == 1)

    def _produce(self, blocks: int) -> None:
        self._blocks(blocks)
        self.copies.finish()

    def _whole(self, blocks: int) -> None:
        if self.staggered or (self.em.sides > 1 and not self.tensor.products):
            self.em.turn_barrier("start")
        self._blocks(blocks)
        self.deliveries.finish()
        self.tensor.free()

    def turn(self, number: Int) -> None:
        """The statements of one turn of the grid loops."""
        self.em.here()
        rank: Int = self.em.cluster_rank() if self.cluster is not None else 0
        self.em.here()
        if self.paired:
            self.bind(HALF, rank, Known(0, 1), self.em.depth)
        values = self.turns.values(self.em, number, self.kernel.gpu.order, rank)
        for g, r, value in zip(self.turns.loops, self.turns.ranges, values, strict=True):
            self.bind(g.variable, value, self.scope.facts.loop(Num(r.start), Num(r.stop), g.step), self.em.depth)
        if self.turns.padded:
            at, last = values[self.turns.along], self.turns.ranges[self.turns.along]
            stop = self.em.i64(last.stop - self.turns.padded * last.step)
            self.inside = self.em.here().icmp_signed("<", self.em.i64(at), stop)
        self.statements(self.body, self.path)
        self.inside = None
        for name in [g.variable for g in self.turns.loops] + ([HALF] if self.paired else []):
            self.unbind(name)

    def compute(
        self,
        s: Compute,
        hold: Callable[[Callable[[], None]], bool] | None = None,
        beside: Callable[[], None] | None = None,
    ) -> None:
        """One Compute; `hold` and `beside` are those of `write_compute`."""
        write_compute(self, s, hold, beside)

    # ------------------------------------------------------------------------------------- statements

    def statements(self, body: Sequence[Statement], path: tuple[int, ...], skip: int = 0, running: int = 0) -> None:
        """Emit statements of a body, from number `skip` on. So many of the newest asynchronous products go on after
        them."""
        done = skip
        for i, s in enumerate(body):
            if i < done or not (self.roles.computing or self._concerns(s)):
                continue
            self._come_to(s, body[i:], (*path, i))
            run = run_of(self, body, i, path)
            self._collect(run or (s,))
            if run:
                self.tensor.moves.met = None
                write_run(self.em, self.scope, run, self.joined_behind)
                done, self.groups.beside = i + len(run), ()
                self.groups.ready(body[i:done], body[done:])
                continue
            alone = self.pipe is not None and body is self.pipe.loop.body and len(body) == skip + 1
            behind = bool(self.tensor.pieces) and any(isinstance(x, Loop) for x in body[:i])
            with self.em.afresh() if behind else nullcontext():  # (registers are all taken by then)
                self._statement(s, (*path, i), alone)
            if self.roles.computing:
                self.groups.ready((s,), body[i + 1 :])
        self.groups.end(running)
        for s in body[skip:]:
            if isinstance(s, Pack) and s.by == "tma":
                self.copies.tiles[id(s)].release()

    def _collect(self, coming: Sequence[Statement]) -> None:
        """Sums that stayed in tensor memory while their loop went on come to registers before what reads them."""
        read = {a.tensor for x in statements_in(coming) if isinstance(x, Compute) for a in accesses_of(x)}
        for tensor in sorted(read & self.tensor.kept.keys() - self.collected) if self.roles.computing else ():
            self.groups.before({tensor})
            self.tensor.kept[tensor].collect()
            self.collected.add(tensor)

    def _come_to(self, s: Statement, rest: Sequence[Statement], at: tuple[int, ...]) -> None:
        """Wait for what a statement needs before it can begin: products, copies, other threads. It is the first of the
        `rest` of its body."""
        barrier = at in self.sync.barriers and self.roles.computing
        self.deliveries.before(s, rest)
        at_rest = self._touched(s, barrier)
        self.groups.before(at_rest if at_rest is None else at_rest | self.left.get(at, set()))
        if barrier:
            if at in self.sync.awaits:
                self.await_copies(0)
            if at not in self.left:
                self.deliveries.free_tiles(rest, self.inside)
            self.em.barrier()

    def _statement(self, s: Statement, at: tuple[int, ...], alone: bool) -> None:
        """Emit one statement. `alone`: it is all that a turn of the pipe loop still has to do."""
        if id(s) not in self.tensor.pieces:
            self.tensor.moves.met = None
        match s:
            case Compute():
                self.compute(s, self.pipe.hold if alone and self.pipe else None)
                self.groups.beside = written(self, s)
                self.groups.written = tuple(self.scope.fragments.get(s.target.tensor, ()))
            case Pack() if s.by == "tma":
                self.copies.tiles[id(s)].fill()
            case Pack():
                PackGenerator(self.em, self.scope, s).generate()
                if s.by == "cp.async":
                    self.commit()
            case Unpack():
                self.deliveries.start(s, self.inside)
            case Loop():
                self._loop(s, at)

    def _concerns(self, s: Statement) -> bool:
        """Is there something in it for the producer (or the deliverer) that is being written?"""
        if self.roles.now == "producer":
            return any(True for _ in rings_of((s,)))
        if self.roles.now in ("multiplier", "relay"):
            return any(id(x) in self.tensor.products for x in statements_in((s,)))
        handed = (isinstance(u, Unpack) and u.buffer in self.copies.handed for u in statements_in((s,)))
        return any(handed) or id(s) in self.last_turns

    def _touched(self, s: Statement, barrier: bool) -> set[str] | None:
        """Buffers that must be at rest before a statement; None: all. Behind a barrier other warps may write what this
        one has read, but for tiles of the copy engine, which are released."""
        if isinstance(s, Unpack):
            return {s.buffer} if s.buffer in self.copies.handed else {s.buffer} | self.ordinary
        if not isinstance(s, Compute):
            return None
        return touched(s, self.scope) | self.ordinary if barrier else touched(s, self.scope)

    def _loop(self, loop: Loop, path: tuple[int, ...]) -> None:
        if loop.level == "panel":
            self._panels(loop, path)
            return
        if loop.level not in ("seq", "pipe"):
            raise Unsupported(f"loop '{loop.variable}' of level {loop.level} inside a block", loop.span)
        if id(loop) in self.copies.rings:
            TensorPipe(self, loop, path, self.copies.rings[id(loop)]).generate()
        elif loop.level == "pipe" and leading_packs(loop):
            PipeGenerator(self, loop, path, pipe_stages(loop)).generate()
        elif id(loop) in self.last_turns:
            self.deliveries.settle(loop, partial(self.bounds, loop), partial(self._turns, loop, path))
        else:
            self._turns(loop, path)
        if self.roles.computing:
            self.collected -= {p.node.target.tensor for p in self.tensor.kept.values() if p.node in loop.body}
            for s in loop.body:
                if id(s) in self.joined_behind and isinstance(s, Compute):
                    join_registers(self.em, self.scope, s)

    def _turns(self, loop: Loop, path: tuple[int, ...]) -> None:
        em = self.em
        origin, start, stop = self.span(loop)

        def body(base: Int) -> None:
            em.here()
            self.bind_turn(loop, em.add(origin, base))
            self.statements(loop.body, path)
            self.unbind(loop.variable)

        em.repeat(start, stop, loop.step, body)

    def _panels(self, loop: Loop, path: tuple[int, ...]) -> None:
        """The turns of a panel loop, each with a copy of its tile."""
        turns = written_out(loop)
        for number, body in enumerate(turns):
            if self.roles.computing:
                self.tensor.panel(loop, body, number == len(turns) - 1)
            with self.deliveries.panel(loop, number, len(turns)):
                self.statements(body, path)

    def bounds(self, loop: Loop) -> tuple[Int, Int]:
        self.em.here()
        return integer_value(self.em, loop.start, self.scope), integer_value(self.em, loop.stop, self.scope)

    def span(self, loop: Loop, past: bool = False) -> tuple[Int, Int, Int]:
        """Where the loop begins, and from where to where it counts from there on. A loop whose length is known counts
        from 0, also where it begins somewhere else in each block; `past`: turns beyond its end do no harm, so a last
        part may be as long as the others."""
        start, stop = self.bounds(loop)
        first = affine_form(loop.start)
        ends = [loop.stop, *(loop.stop.args if past and isinstance(loop.stop, Call) else ())]
        for end in ends:
            last = affine_form(end)
            if not isinstance(start, int) and first is not None and last is not None and not (last - first).terms:
                return start, 0, (last - first).constant
        return 0, start, stop

    def bind_turn(self, loop: Loop, value: Int) -> None:
        self.bind(loop.variable, value, self.scope.facts.loop(loop.start, loop.stop, loop.step), self.em.depth)

    def bind(self, name: str, value: Int, facts: Known, level: int) -> None:
        self.scope.variables[name] = self.em.i64(value)
        self.scope.levels[name] = level
        self.scope.facts.symbols[name] = Known.exact(value) if isinstance(value, int) else facts

    def unbind(self, name: str) -> None:
        del self.scope.variables[name], self.scope.levels[name], self.scope.facts.symbols[name]

    # ---------------------------------------------------------------------------------- background copies

    def commit(self) -> None:
        """Close the group of background copies issued since the last one."""
        self.em.here()
        self.em.nvvm("cp.async.commit.group")

    def await_copies(self, left: int) -> None:
        """Wait until at most `left` groups of this thread's copies are unfinished."""
        self.em.here()
        self.em.nvvm("cp.async.wait.group", args=[self.em.i64(left)])
