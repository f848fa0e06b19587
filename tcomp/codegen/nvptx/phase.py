"""A phase as one kernel entry: the grid of blocks, loops inside a block, pipelines, barriers.

Each entry takes a pointer per operand, where blocks share tiles a pointer to their region, and its tensor maps. With a
`Producer` the statements are written twice: as the copies that one thread issues, and as all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from llvmlite import ir

from tcomp.codegen.cpu.bounds import integer_value
from tcomp.codegen.cpu.emitter import Int
from tcomp.codegen.cpu.integers import Facts, Known, affine_form
from tcomp.codegen.cpu.types import I8, I32, I64, VOID, IrValue
from tcomp.codegen.nvptx.compute import ComputeGenerator
from tcomp.codegen.nvptx.domain import GpuScope
from tcomp.codegen.nvptx.emitter import GLOBAL, GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.evaluation import slot_type
from tcomp.codegen.nvptx.grid import turns_of
from tcomp.codegen.nvptx.groups import Groups
from tcomp.codegen.nvptx.launch import OperandMap
from tcomp.codegen.nvptx.layout import SharedLayout, leading_packs, pipe_stages, rings_of, statements_in, team_layout
from tcomp.codegen.nvptx.matrix import matched, write_contraction
from tcomp.codegen.nvptx.pack import PackGenerator
from tcomp.codegen.nvptx.pipe import PipeGenerator
from tcomp.codegen.nvptx.plan import accesses_of
from tcomp.codegen.nvptx.ring import Ring, elected
from tcomp.codegen.nvptx.sync import Planner
from tcomp.codegen.nvptx.tensor_copy import Share, await_deliveries, deliver, map_of
from tcomp.codegen.nvptx.tensor_pipe import TensorPipe, TensorTile
from tcomp.codegen.nvptx.turn_taking import TurnTaking
from tcomp.dsl.ast import Access, Call, Num
from tcomp.instructions.matching import Match
from tcomp.ir.multicast import cluster_of, shared_packs
from tcomp.ir.pairs import SECOND, paired
from tcomp.ir.tile import (
    Buffer,
    Compute,
    Fragment,
    Kernel,
    Loop,
    Pack,
    Producer,
    Scope,
    Statement,
    ThreadShape,
    Unpack,
)
from tcomp.machine.gpu import GpuMachine

DYNAMIC = "tc_shared"
MOST_REGISTERS = 240
"""registers that a thread may be given by another warpgroup"""


class PhaseGenerator:
    """Writes one phase of a kernel as an entry of the module.

    `role` says whose part of the statements is being written: that of all threads, of the producer of tensor copies, or
    of their consumers. `inside` says, where clusters do not fit the grid, whether the block has work. `pipe` is the
    innermost pipe loop of tensor copies around the place being written."""

    role = "all"
    inside: IrValue | None = None
    pipe: TensorPipe | None = None

    def __init__(
        self,
        module: ir.Module,
        symbol: str,
        kernel: Kernel,
        phase: Sequence[Statement],
        shape: ThreadShape,
        layout: SharedLayout,
        machine: GpuMachine,
        maps: tuple[OperandMap, ...] = (),
    ) -> None:
        team, team_bytes = team_layout(kernel.tiles)
        self.maps = maps
        pointers = len(kernel.operands) + (1 if team_bytes else 0)
        parameters = [GLOBAL] * pointers + [ir.PointerType()] * len(maps)
        function = ir.Function(module, ir.FunctionType(VOID, parameters), name=symbol)
        function.calling_convention = "ptx_kernel"
        # llvmlite knows no attributes with a value, but prints what its set holds.
        # (The assembler only moves registers between warps of a kernel that says how many blocks share the file.)
        producer = producer_of(kernel, phase)
        alone = ' "nvvm.minctasm"="1"' if producer is not None and producer.registers else ""
        together = cluster_of(kernel.cluster, phase)
        clusters = f' "nvvm.cluster_dim"="{together.blocks},1,1"' if together is not None else ""
        set.add(function.attributes, f'nounwind "nvvm.reqntid"="{threads_of(kernel, phase)}"{alone}{clusters}')
        for argument in function.args[:pointers]:
            set.add(argument.attributes, "align 256")
        for argument in function.args[pointers:]:
            set.add(argument.attributes, 'byval([128 x i8]) align 64 "nvvm.grid_constant"')
        self.map_addresses = dict(zip(maps, function.args[pointers:], strict=True))
        self.kernel, self.layout, self.machine = kernel, layout, machine
        self.cluster = cluster_of(kernel.cluster, phase)
        self.shared = shared_packs(phase, self.cluster, {t.name: t for t in kernel.operands + kernel.tiles})
        self.rings: dict[int, Ring] = {}
        self.free: set[str] = set()
        """tiles for the copy engine that the place being written knows to be free"""
        self.delivered = {s.buffer for s in statements_in(phase) if isinstance(s, Unpack)}
        self.tensor_tiles: dict[int, TensorTile] = {}
        self.em = GpuEmitter(function, shape)
        self.groups = Groups(self.em)
        self.turn_taking: TurnTaking | None = None
        em = self.em
        b = em.here()
        names = [o.name for o in kernel.operands]
        roots: dict[str, IrValue] = dict(zip(names, function.args, strict=False))
        for name, at in team.items():
            roots[name] = b.gep(function.args[pointers - 1], [ir.Constant(I64, at)], source_etype=I8)
        shared = module.globals.get(DYNAMIC)
        for name, at in layout.offsets.items():
            roots[name] = b.gep(shared, [ir.Constant(I32, at)], source_etype=I8)
        self.scope = GpuScope(
            buffers={t.name: t for t in kernel.operands + kernel.tiles}, roots=roots, variables={}, facts=Facts(),
            fma=True, registers=255, lanes_f32=1, features=frozenset(), threads=shape, target=machine.target,
            constant=constant_operands(kernel),
            exchange={k: b.gep(shared, [ir.Constant(I32, at)], source_etype=I8) for k, at in layout.exchange.items()},
        )  # fmt: skip

    def generate(self, phase: Sequence[Statement]) -> int:
        """Emit the whole entry; gives the number of blocks to launch."""
        filled = {s.buffer for s in statements_in(phase) if isinstance(s, Pack) and s.by == "tma"}
        self.ordinary = {t.name for t in self.kernel.tiles if t.scope is Scope.SHARED} - filled
        self.sync = Planner(phase, self.scope.buffers, self.em.threads, self.kernel.order.persistent).plan(phase)
        self.scope.bounded = bounded_fragments(phase, self.scope.buffers)
        self.scope.zeroed = matrix_operands(phase)
        self.em.async_reads = reads_ordinary_tiles(phase, self.scope)
        self.em.calls = not any(True for _ in asynchronous(phase, self.scope))
        used = {a.tensor for s in statements_in(phase) if isinstance(s, Compute) for a in accesses_of(s)}
        for t in self.kernel.tiles:
            if t.name in used and t.scope is Scope.REGISTERS:
                self._fragment(t)
            if t.name in used and t.scope is Scope.SCRATCH:
                raise Unsupported(f"tile '{t.name}' is in a CPU core's scratch memory", self.kernel.span)
        for s in statements_in(phase):
            if isinstance(s, Loop) and (product := paired(s)) is not None:
                self._second(product.target.tensor)
        self._start_rings(phase)
        if any(isinstance(s, Unpack) and s.turns is not None for s in statements_in(phase)):
            self.turn_taking = TurnTaking(self.em, self.scope)
        path: tuple[int, ...] = ()
        nest: list[Loop] = []
        body: Sequence[Statement] = phase
        while len(body) == 1 and isinstance(body[0], Loop) and body[0].level == "grid":
            nest.append(body[0])
            body, path = body[0].body, (*path, 0)
        self.turns, self.body, self.path = turns_of(nest, self.cluster), body, path
        total, size = self.turns.total, self.turns.cluster
        if self.turns.padded and any(isinstance(s, Pack) and s.by != "tma" for s in statements_in(phase)):
            raise Unsupported(
                "tiles are no whole clusters, and some are staged by other ways than tma", self.kernel.span
            )
        blocks = min(total, self.machine.clusters(size) * size) if self.kernel.order.persistent else total
        producer = producer_of(self.kernel, phase)
        if total and producer is None:
            self._blocks(blocks)
            self._finish()
        elif total and producer is not None:
            self._apart(producer, blocks)
        if size > 1:
            self.em.cluster_barrier()  # a peer may still write into this block, or tell its mbarriers
        self.em.here().ret_void()
        return max(1, blocks)

    def _blocks(self, blocks: int) -> None:
        """A block's turns: one, or every blocks-th from its own number on."""
        em, total, size = self.em, self.turns.clusters, self.turns.cluster
        b = em.here()
        number: Int = 0 if blocks == 1 else em.nvvm("ctaid.x", I32)
        if size > 1:
            number = b.udiv(em.i64(number), em.i64(size))
        if blocks == total * size:
            self._turn(number)
            return

        def turn(base: Int, _: Sequence[IrValue]) -> Sequence[IrValue]:
            self._turn(base)
            return []

        em.loop(number, total, blocks // size, [], turn, nonempty=True)

    def _finish(self) -> None:
        """A block's shared memory stays until the copy engine has read it."""
        if self.delivered and self.role != "producer":
            self.leader(self._delivered)

    def _turn(self, number: Int) -> None:
        """The statements of one turn of the grid loops."""
        self.em.here()
        rank: Int = self.em.cluster_rank() if self.cluster is not None else 0
        self.em.here()
        values = self.turns.values(self.em, number, self.kernel.order, rank)
        for g, r, value in zip(self.turns.loops, self.turns.ranges, values, strict=True):
            self.bind(g.variable, value, self.scope.facts.loop(Num(r.start), Num(r.stop), g.step), self.em.depth)
        if self.turns.padded:
            at, last = values[self.turns.along], self.turns.ranges[self.turns.along]
            stop = self.em.i64(last.stop - self.turns.padded * last.step)
            self.inside = self.em.here().icmp_signed("<", self.em.i64(at), stop)
        self.statements(self.body, self.path)
        self.inside = None
        for g in self.turns.loops:
            self.unbind(g.variable)

    def _delivered(self) -> None:
        """The leader waits until its copies have left their tiles; where blocks take turns, until all is done."""
        await_deliveries(self.em, self.turn_taking is not None)
        if self.turn_taking is not None:
            self.turn_taking.pass_on()

    def _free_tiles(self, rest: Sequence[Statement]) -> None:
        """Before a barrier: the leader sees that tiles are free which these statements write, so that they need none of
        their own. It waits for its turn there too: products run meanwhile."""
        unpacks = [s for s in rest if isinstance(s, Unpack) and s.buffer not in self.free]
        if not unpacks or not {s.buffer for s in unpacks} <= {s.target.tensor for s in rest if isinstance(s, Compute)}:
            return

        def lead() -> None:
            self._delivered()
            for s in unpacks:
                if self.turn_taking is not None and s.turns is not None:
                    self.turn_taking.wait(s.turns)

        self.leader(lead)
        self.free |= {s.buffer for s in unpacks}

    def _before_delivery(self) -> None:
        """A tile is about to be written that the copy engine may still be reading."""
        self.leader(self._delivered)
        self.em.barrier()

    def _unpack(self, s: Unpack) -> None:
        """All threads' stores become visible to the copy engine, which one thread then starts."""
        em = self.em
        em.here()
        em.asm("fence.proxy.async.shared::cta;", VOID, "~{memory}", effect=True)
        em.barrier()
        address = self.map_address(s.reversed)
        taking, turns = self.turn_taking, s.turns
        if taking is None or turns is None:
            self.leader(lambda: deliver(em, self.scope, s, address))
            return

        def hand_over() -> None:
            if s.buffer not in self.free:
                taking.wait(turns)
            taking.issue(
                turns,
                lambda: deliver(em, self.scope, s, address),
                lambda: deliver(em, self.scope, s, address, stores=turns.stores),
            )

        self.leader(hand_over)

    def compute(self, s: Compute, hold: Callable[[Callable[[], None]], bool] | None = None) -> None:
        """One Compute; not in a block that only makes its cluster whole, where all that reaches is zeros, which do no
        harm in matrix instructions on registers (and those are not to be waited for under a condition). `hold` is the
        pipe's, where the Compute is all that its turns do."""

        rotated = self.pipe is not None and self.pipe.rotated

        def write() -> None:
            if s.instruction:
                write_contraction(self.em, self.scope, s, self.groups, hold, rotated)
            else:
                ComputeGenerator(self.em, self.scope, s).generate()

        onto_registers = self.scope.buffers[s.target.tensor].scope is Scope.REGISTERS
        if self.inside is None or (s.instruction and onto_registers):
            write()
        else:

            def write_whole() -> None:
                write()
                self.groups.before(None)

            self.groups.before(None)
            self.em.here()
            self.em.when(self.inside, write_whole)

    def asynchronous(self, s: Compute) -> bool:
        """Is it computed by wgmma?"""
        return any(True for _ in asynchronous((s,), self.scope))

    def _apart(self, producer: Producer, blocks: int) -> None:
        """The statements twice: tensor copies by one thread of the producer, everything else by the other warps."""
        em = self.em
        computing = em.threads.warps
        first = em.uniform_warp()
        b = em.here()
        mine, registers = b.icmp_signed(">=", first, em.i64(computing)), self._registers(producer)

        def produce() -> None:
            self._take(registers, producer.registers)
            self.role = "producer"
            chosen = em.here().icmp_signed("==", first, em.i64(computing))
            em.when(chosen, lambda: em.when(elected(em), lambda: self._blocks(blocks)))

        def consume() -> None:
            self._take(registers, registers)
            self.role, em.apart = "consumer", True
            self._blocks(blocks)
            self._finish()
            self.role, em.apart = "all", False

        em.either(mine, produce, consume)

    def _registers(self, producer: Producer) -> int:
        """Registers of a computing thread once the producer has given up its own; 0 where none move."""
        if not producer.registers:
            return 0
        threads = self.em.threads.threads
        pool = self.machine.registers_at_entry(self.em.threads.warps + producer.warps)
        left = (pool * (threads + 32 * producer.warps) - producer.registers * 32 * producer.warps) // threads
        return max(0, min(MOST_REGISTERS, left // 8 * 8)) if pool < MOST_REGISTERS else 0

    def _take(self, moved: int, registers: int) -> None:
        if moved:
            self.em.here()
            direction = "inc" if registers == moved else "dec"
            self.em.nvvm(f"setmaxnreg.{direction}.sync.aligned.u32", args=[self.em.i64(registers)])

    def _start_rings(self, phase: Sequence[Statement]) -> None:
        """Make the mbarriers of what the copy engine fills, before anything uses them."""
        em = self.em
        shared = em.module.globals.get(DYNAMIC)
        found = list(rings_of(phase))
        written = {s.target.tensor for s in statements_in(phase) if isinstance(s, Compute)}
        repeated = repeated_in(phase, self.kernel.order.persistent)
        for node, stages in found:
            packs = leading_packs(node) if isinstance(node, Loop) else (node,)
            _check_packs(packs, written)
            b = em.at(0)
            place = b.gep(shared, [ir.Constant(I32, self.layout.rings[id(node)])], source_etype=I8)
            peers = self.cluster.blocks if self.cluster and any(id(p) in self.shared for p in packs) else 1
            ring = self.rings[id(node)] = Ring(em, place, stages, em.threads.warps, peers)
            if isinstance(node, Pack):
                self.tensor_tiles[id(node)] = TensorTile(self, node, ring, id(node) in repeated)
        if not found:
            return

        def start() -> None:
            for ring in self.rings.values():
                ring.start()
            em.here()
            em.nvvm("fence.mbarrier_init.release.cluster")
            for address in self.map_addresses.values():
                em.here()
                em.asm("prefetch.tensormap [$0];", VOID, "l,~{memory}", [address], effect=True)

        self.leader(start)
        if self.cluster is not None:
            em.cluster_barrier()
        else:
            em.barrier()

    def leader(self, body: Callable[[], None]) -> None:
        """Let one thread do it: of the producer, or of the block's first warp."""
        em = self.em
        if self.role == "producer":
            body()
            return

        def elect() -> None:
            em.when(elected(em), body)

        if em.threads.warps == 1:
            elect()
        else:
            em.when(em.here().icmp_signed("==", em.warp(), em.i64(0)), elect)

    def map_address(self, pack: Pack) -> IrValue:
        parts = self.cluster.blocks if self.cluster is not None and id(pack) in self.shared else 1
        return self.map_addresses[map_of(pack, self.scope.buffers, parts)]

    def share(self, pack: Pack) -> Share | None:
        """What this block fetches of a tile that its cluster shares."""
        if self.cluster is None or id(pack) not in self.shared:
            return None
        return Share(self.em.cluster_rank(), self.cluster.blocks)

    def _fragment(self, t: Buffer) -> None:
        """One stack slot per element of a register tile, which LLVM turns into a register."""
        if not isinstance(t.layout, Fragment):
            raise Unsupported(f"tile '{t.name}' is in registers without a layout for threads", self.kernel.span)
        count = 1
        for size, s in zip(t.shape, t.layout.spreads, strict=True):
            count *= s.per_thread(size)
        b = self.em.here()
        kind = slot_type(t.dtype)
        slots = [b.alloca(kind, name=f"{_safe(t.name)}.{i}") for i in range(count)]
        for slot in slots:
            b.store(ir.Constant(kind, 0), slot)
        self.scope.fragments[t.name] = slots

    def _second(self, name: str) -> None:
        """The second of two register tiles that products of a pair of turns fill."""
        tile = replace(self.scope.buffers[name], name=name + SECOND)
        self.scope.buffers[tile.name] = tile
        self._fragment(tile)
        for known in ("bounded", "zeroed"):
            names: frozenset[str] = getattr(self.scope, known)
            setattr(self.scope, known, names | {tile.name} if name in names else names)

    # ------------------------------------------------------------------------------------- statements

    def statements(self, body: Sequence[Statement], path: tuple[int, ...], skip: int = 0, running: int = 0) -> None:
        """Emit statements of a body, from number `skip` on. So many of the newest asynchronous products go on after
        them."""
        for i, s in enumerate(body):
            if i < skip:
                continue
            at = (*path, i)
            if self.role == "producer" and not any(True for _ in rings_of((s,))):
                continue
            barrier = at in self.sync.barriers and self.role != "producer"
            if isinstance(s, Compute) and s.target.tensor in self.delivered - self.free:
                self._before_delivery()
            self.groups.before(self._touched(s, barrier))
            if barrier:
                if at in self.sync.awaits:
                    self.await_copies(0)
                self._free_tiles(body[i:])
                self.em.barrier()
            match s:
                case Compute():
                    alone = self.pipe is not None and body is self.pipe.loop.body and len(body) == skip + 1
                    self.compute(s, self.pipe.hold if alone and self.pipe else None)
                case Pack() if s.by == "tma":
                    self.tensor_tiles[id(s)].fill()
                case Pack():
                    PackGenerator(self.em, self.scope, s).generate()
                    if s.by == "cp.async":
                        self.commit()
                case Unpack():
                    self._unpack(s)
                    self.free.discard(s.buffer)
                case Loop():
                    self._loop(s, at)
        self.groups.end(running)
        for s in body[skip:]:
            if isinstance(s, Pack) and s.by == "tma":
                self.tensor_tiles[id(s)].release()

    def _touched(self, s: Statement, barrier: bool) -> set[str] | None:
        """Buffers that must be at rest before a statement; None: all. Behind a barrier other warps may write what this
        one has read, but for tiles of the copy engine, which are released."""
        if isinstance(s, Unpack):
            return {s.buffer} | self.ordinary
        if not isinstance(s, Compute):
            return None
        return touched(s, self.scope) | self.ordinary if barrier else touched(s, self.scope)

    def _loop(self, loop: Loop, path: tuple[int, ...]) -> None:
        if loop.level not in ("seq", "pipe"):
            raise Unsupported(f"loop '{loop.variable}' of level {loop.level} inside a block", loop.span)
        if id(loop) in self.rings:
            TensorPipe(self, loop, path, self.rings[id(loop)]).generate()
            return
        if loop.level == "pipe" and leading_packs(loop):
            PipeGenerator(self, loop, path, pipe_stages(loop)).generate()
            return
        em = self.em
        origin, start, stop = self.span(loop)

        def body(base: Int, _: Sequence[IrValue]) -> Sequence[IrValue]:
            em.here()
            self.bind_turn(loop, em.add(origin, base))
            self.statements(loop.body, path)
            self.unbind(loop.variable)
            return []

        em.loop(start, stop, loop.step, [], body)

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


def producer_of(kernel: Kernel, phase: Sequence[Statement]) -> Producer | None:
    """The kernel's producer, where the phase has something for it."""
    return kernel.producer if any(True for _ in rings_of(phase)) else None


def threads_of(kernel: Kernel, phase: Sequence[Statement]) -> int:
    """Threads of a phase's blocks, a producer's included."""
    assert kernel.threads is not None
    producer = producer_of(kernel, phase)
    return kernel.threads.threads + (32 * producer.warps if producer is not None else 0)


def matrix_operands(phase: Sequence[Statement]) -> frozenset[str]:
    """Tiles that matrix instructions read or add to."""
    used = [a.tensor for s in statements_in(phase) if isinstance(s, Compute) and s.instruction for a in accesses_of(s)]
    return frozenset(used)


def reads_ordinary_tiles(phase: Sequence[Statement], scope: GpuScope) -> bool:
    """Do matrix instructions read shared tiles in place (by the async proxy) that ordinary stores or cp.async fill?"""
    copied = {s.buffer for s in statements_in(phase) if isinstance(s, Pack) and s.by == "tma"}
    read = {o.buffer.name for m in asynchronous(phase, scope) for o in (m.a, m.b) if not o.in_registers}
    return bool(read - copied)


def touched(s: Compute, scope: GpuScope) -> set[str]:
    """Buffers that must be at rest when the Compute begins: not those in shared memory that it only reads, as what
    still runs only reads there too. One by wgmma may add to what a group before it adds to."""
    adds = s.accumulate and s.instruction and matched(s, scope).instruction.threads == 128
    found = {a.tensor for a in accesses_of(s) if scope.buffers[a.tensor].scope is not Scope.SHARED}
    return found - {s.target.tensor} if adds else found | {s.target.tensor}


def asynchronous(phase: Sequence[Statement], scope: GpuScope) -> Iterator[Match]:
    """The contractions by wgmma."""
    for s in statements_in(phase):
        if isinstance(s, Compute) and s.instruction and (match := matched(s, scope)).instruction.threads == 128:
            yield match


def repeated_in(phase: Sequence[Statement], persistent: bool) -> set[int]:
    """Packs (by number) that one block may run more than once."""
    loops = [s for s in statements_in(phase) if isinstance(s, Loop) and (persistent or s.level != "grid")]
    return {id(s) for loop in loops for s in statements_in(loop.body) if isinstance(s, Pack)}


def _check_packs(packs: Sequence[Pack], written: set[str]) -> None:
    for p in packs:
        if p.by != "tma":
            raise Unsupported(f"'{p.source.tensor}' is staged by {p.by} in a pipe loop of tensor copies", p.span,
                              "stage everything in this loop by tma")  # fmt: skip
        if p.source.tensor in written:
            raise Unsupported(f"'{p.source.tensor}' is staged by tma and written by the same kernel", p.span,
                              "stage it by cp.async")  # fmt: skip


def constant_operands(kernel: Kernel) -> frozenset[str]:
    """Operands whose memory nothing writes while the kernel runs: read-only, and sharing memory with no output."""
    shared = {name for pair in kernel.inplace for name in pair}
    targets = {w for p in kernel.phases for s in statements_in(p) if isinstance(s, Compute) for w in [s.target.tensor]}
    return frozenset(o.name for o in kernel.operands) - targets - shared - kernel.writes


def bounded_fragments(phase: Sequence[Statement], buffers: dict[str, Buffer]) -> frozenset[str]:
    """Register tiles that all Computes walk within the same ranges."""
    ranges: dict[str, set[tuple[object, ...]]] = {}
    for s in statements_in(phase):
        if isinstance(s, Compute):
            for access in accesses_of(s):
                if buffers[access.tensor].scope is Scope.REGISTERS:
                    ranges.setdefault(access.tensor, set()).add(_range(s, access))
    return frozenset(n for n, r in ranges.items() if len(r) == 1)


def _range(s: Compute, access: Access) -> tuple[object, ...]:
    axes = [next((a for a in s.axes if a.name in str(x)), None) for x in access.subscripts]
    return tuple((a.start, a.stop) if a is not None else None for a in axes)


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
