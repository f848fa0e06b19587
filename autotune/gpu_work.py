"""What a launch does, read off its machine code: the counts that `gpu_model` turns into a time.

A few blocks stand for all (`gpu_sample`). Loops whose tiles are copied ahead are followed turn by turn: of wgmma
products by a replay of their warpgroups, of mma.sync products by one of whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tcomp.autotune.gpu_blocks import middle_blocks, unevenness
from tcomp.autotune.gpu_counts import Copies
from tcomp.autotune.gpu_epilogue import Epilogue, behind_products, epilogue, loaded, staggered
from tcomp.autotune.gpu_model import (
    BARRIER,
    COPY_LATENCY,
    DELIVERY,
    ISSUE_RATE,
    L1_LATENCY,
    L2_LATENCY,
    MEMORY_LATENCY,
    WARP_STALL,
    BlockWork,
    LaunchWork,
    Ring,
    tensor_cycles,
)
from tcomp.autotune.gpu_replay import loop_turns, replay
from tcomp.autotune.gpu_residents import Residents, residents
from tcomp.autotune.gpu_sample import Sample, sample_block, some_blocks
from tcomp.autotune.opcodes import LANES
from tcomp.autotune.sass import Function
from tcomp.autotune.sass_descriptors import TENSOR_MEMORY_MATRIX
from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.codegen.nvptx.assembly.resources import Resources
from tcomp.codegen.nvptx.launch import LaunchShape
from tcomp.machine.gpu import GpuMachine

SHUFFLE_LATENCY = 23.0
LONG = 20_000
"""Blocks of code on a warp's way from which one block of the grid stands for all."""


@dataclass(frozen=True)
class Known:
    """What is known of a launch beside its machine code. Bytes of device memory and FLOP are of the whole launch."""

    hbm_bytes: float
    flops: float = 0.0
    stages: int | None = None
    """the depth of its pipeline; None: read from the waits"""
    constants: Mapping[int, int] = field(default_factory=dict)
    """kernel parameters by their offset in the constant bank"""
    turns: Sequence[float] = ()
    """of each block's loop, in the order in which blocks start, where they differ"""
    copy: Copies = Copies()
    sides: int = 1
    """of a block, that take its tiles in turn"""


def launch_work(
    function: Function, launch: LaunchShape, resources: Resources, machine: GpuMachine, known: Known
) -> LaunchWork:
    """The description of a launch."""
    shared = resources.shared_bytes + launch.shared_bytes
    fit = occupancy(machine, resources.registers, launch.threads, shared, launch.tensor_columns)
    resident = max(1, fit.blocks)
    sms = machine.clusters(launch.cluster) * launch.cluster
    per_sm = -(-launch.blocks // sms)
    at_once = launch.blocks <= sms * resident
    first, *others = some_blocks(launch.blocks, at_once)
    chosen: Mapping[int, float] = middle_blocks(known.turns) if known.turns else {first: 1.0}
    samples = [sample_block(function, launch, b, known.constants, known.copy) for b in chosen]
    if samples[0].steps < LONG and not known.turns:
        samples += [sample_block(function, launch, b, known.constants, known.copy) for b in others]
    weights = list(chosen.values()) if known.turns else [1.0 / len(samples)] * len(samples)

    def works(side_by_side: int) -> BlockWork:
        found = [_Block(s, function, machine, known, side_by_side, launch.cluster).work() for s in samples]
        # Where all blocks run at once the longest decides; else short and long ones even out.
        return max(found, key=_length) if at_once and not known.turns else _mean(found, weights)

    work = works(min(resident, per_sm))
    rest = per_sm % resident if per_sm > resident and not known.turns else 0
    notes = []
    if any(s.unknown for s in samples):
        notes.append("branches that depend on data or on other threads are taken to go around a rare case")
    if any(s.cut for s in samples):
        notes.append("at least this long: its code was not followed to the end")
    imbalance = unevenness(known.turns, sms * resident) if known.turns else 0.0
    return LaunchWork(
        launch.symbol, launch.blocks, resident, work, known.hbm_bytes, known.flops, tuple(notes), imbalance, sms,
        rest=works(rest) if rest else None,
    )  # fmt: skip


def _length(w: BlockWork) -> float:
    return w.chain + w.tensor + sum(r.turns * (r.tensor + r.other) for r in w.rings)


@dataclass(frozen=True)
class _Pipeline:
    """A block's loop over tiles that are copied ahead. `cycles`: those of all its turns, as they were replayed."""

    turns: float
    cycles: float = 0.0
    replayed: bool = False
    """as warpgroups that wait for products"""
    residents: Residents | None = None
    """as whole blocks beside each other"""
    epilogue: Epilogue = Epilogue()
    behind: int = 0
    """turns by which a place of the ring is read later than by the first that reads it"""


@dataclass(frozen=True)
class _Block:
    """One block's work, `resident` of which are on an SM at a time."""

    sample: Sample
    function: Function
    machine: GpuMachine
    known: Known
    resident: int
    cluster: int

    def work(self) -> BlockWork:
        pipeline = self.pipeline()
        issue = self.sample.total(lambda c: c.issue)
        share = max(self.longest, issue / self.machine.partitions)
        chain = self.chain(pipeline.epilogue if pipeline is not None else Epilogue())
        work = BlockWork(
            issue,
            self.sample.total(lambda c: c.fma),
            self.sample.total(lambda c: c.special),
            self.tensor,
            self.sample.total(lambda c: c.shared_bytes),
            self.sample.total(lambda c: c.l2_bytes),
        )
        if pipeline is None:
            return replace(work, chain=chain + max(share, self.tensor))
        work = replace(work, rings=(self.ring(pipeline, max(1.0, share)),))
        if (beside := pipeline.residents) is not None:
            return replace(work, start=0.0, stores=beside.beyond, ends=beside.ends)
        return replace(work, chain=chain, stores=pipeline.epilogue.cycles)

    @property
    def tensor(self) -> float:
        """Cycles of the matrix unit."""
        cycles = 0.0
        for n, c in self.sample.warps:
            for (dtype, path), flops in c.flops.items():
                cycles += tensor_cycles(n * flops, dtype, self.machine, path)
        return cycles

    @property
    def longest(self) -> float:
        """Cycles that the warp with the most instructions takes to issue them."""
        return self.sample.most(lambda c: c.issue) * WARP_STALL

    def chain(self, last: Epilogue) -> float:
        """Cycles of latency outside of the pipeline and of the ends of tiles."""
        most = self.sample.most
        cycles = max(0.0, most(lambda c: c.load_rounds) - last.loads) * (L2_LATENCY + MEMORY_LATENCY) / 2
        cycles += max(0.0, most(lambda c: c.shuffles) - last.shuffles) * SHUFFLE_LATENCY
        cycles += most(lambda c: c.near_loads) * (L1_LATENCY + MEMORY_LATENCY / 32)
        return cycles + most(lambda c: c.barriers) * BARRIER

    def pipeline(self) -> _Pipeline | None:
        """The loop whose tiles are copied ahead; None where nothing is."""
        turns = self.sample.most(lambda c: c.copy_turns)
        if self.sample.wgmma:  # (most of a short loop's copies may be issued before it)
            turns = max([turns, *(float(loop_turns(self.function, w.path)) for w in self.sample.ways)])
        if turns <= 1 or not self.sample.total(lambda c: c.async_bytes):
            return None
        if self.sample.wgmma:
            return self.of_warpgroups(turns)
        if self.sample.tcgen05:
            own = [w.path for w in self.sample.groups if self.multiplies(w.path)]
            if own and all(loaded(self.function, w) for w in own):
                return self.of_groups(turns, own)
            return self.of_multiplier(turns)
        return self.of_warps(turns) if self.tensor else _Pipeline(turns)

    def multiplies(self, way: tuple[int, ...]) -> bool:
        """Does a warp that goes this way issue products by tcgen05?"""
        return any(i.name in TENSOR_MEMORY_MATRIX for b in set(way) for i in self.function.blocks[b].instructions)

    def of_groups(self, turns: float, ways: list[tuple[int, ...]]) -> _Pipeline:
        """The loop of warpgroups that issue products of their own and load what they have made, replayed."""
        found = replay(self.function, ways, self.resident, self.machine)
        if found is None:
            return _Pipeline(turns)
        issued = self.sample.total(lambda c: c.issue) / max(1, found.turns) * self.resident
        cycles = max(found.cycles, issued / self.machine.partitions / ISSUE_RATE)
        return _Pipeline(max(turns, float(found.turns)), cycles * found.turns, True)

    def of_multiplier(self, turns: float) -> _Pipeline:
        """The loop of one thread, which does nothing but wait and multiply; others take what it has summed."""
        tiles = self.sample.total(lambda c: c.tile_bytes) / self.machine.shared_per_clock
        ways = [w.path for w in self.sample.groups]
        ways = [w for w in ways if loaded(self.function, w)]
        last = behind_products(self.function, ways, self.machine, max(self.tensor, tiles))
        return _Pipeline(turns, epilogue=last)

    def of_warpgroups(self, turns: float) -> _Pipeline:
        """The loop replayed, for what its turns wait for between products. (Turns of all blocks on the SM run side by
        side, so that one block's take as long. Of two sides only one multiplies at a time: what it waits for is the
        other's.)"""
        sample, function, machine, sides = self.sample, self.function, self.machine, self.known.sides
        ways = self.consumers()
        found = replay(function, ways, self.resident, machine) if ways and sides == 1 else None
        each = self.tensor / turns / max(1, len(ways))
        loop = max(self.tensor, sample.total(lambda c: c.tile_bytes) / machine.shared_per_clock)
        last = epilogue(function, ways, found is None, machine, each, sides, loop)
        behind = int(staggered(function, ways) and sides == 1)
        if found is None:
            return _Pipeline(turns, epilogue=last, behind=behind)
        # Cycles that the instructions of a turn of all resident blocks need at least.
        issue = sample.total(lambda c: c.issue)
        issued = issue / max(1, found.turns) * self.resident / machine.partitions / ISSUE_RATE
        cycles = max(found.cycles, issued) * found.turns
        return _Pipeline(max(turns, float(found.turns)), cycles, True, epilogue=last, behind=behind)

    def of_warps(self, turns: float) -> _Pipeline:
        """Whole blocks replayed beside each other, with a warp on each partition."""
        ways = tuple(w.path for w in self.sample.groups)
        # Blocks of less than four warps leave partitions to each other.
        partitions = self.machine.partitions
        on_partition = -(-self.resident * min(partitions, self.sample.many(lambda _: True)) // partitions)
        found = residents(self.function, ways, on_partition, self.machine)
        if found is None:
            return _Pipeline(turns, epilogue=epilogue(self.function, ways, False, self.machine))
        return _Pipeline(max(turns, float(found.turns)), found.cycles * found.turns, residents=found)

    def ring(self, loop: _Pipeline, issued: float) -> Ring:
        """The pipeline for the model. `issued`: cycles in which the block's instructions are issued."""
        sample, sides, turns = self.sample, self.known.sides, loop.turns
        pending = [c.pending for _, c in sample.warps if c.pending is not None]
        depth = self.known.stages or ((max(pending) + 2) if pending else 2)
        wgmma, alone = sample.wgmma, loop.residents is None
        beside = wgmma or sample.tcgen05  # products that go on beside what their warps issue
        shared = sample.total(lambda c: c.tile_bytes) / self.machine.shared_per_clock / turns
        return Ring(
            turns,
            sample.total(lambda c: c.async_bytes) / turns,
            depth - loop.behind,
            # (A turn of the machine's loop may be several of the ring's, written out one after the other.)
            max(self.tensor / turns, loop.cycles / turns),
            issued / turns if alone and not beside else 0.0,
            sample.many(lambda c: c.wgmma) // (4 * sides) or 1,
            # (A place is free when all blocks have read it.)
            arrivals=self.arrivals(turns / sides) // sides * self.cluster,
            drains=sample.most(lambda c: c.drains) / turns if wgmma and not loop.replayed else 0.0,
            lead=COPY_LATENCY if alone else 0.0,
            shared=shared if beside else 0.0,
            sides=sides,
            delivery=DELIVERY if any(c.delivers for _, c in sample.warps) else 0.0,
        )

    def consumers(self) -> list[tuple[int, ...]]:
        """The ways of the warpgroups that wait for matrix instructions."""
        waits = {
            b.number
            for b in self.function.blocks
            if any(i.name == "WARPGROUP" and "DEPBAR" in i.opcode for i in b.instructions)
        }
        return [w.path for w in self.sample.groups if waits & set(w.path)]

    def arrivals(self, turns: float) -> int:
        """Arrivals that complete a stage: one per warp that waits on memory barriers; where a warpgroup's loop has a
        block-wide barrier instead, every thread's."""
        waiting = self.sample.many(lambda c: c.waits >= turns)
        if waiting or not self.sample.wgmma:
            return waiting
        return self.sample.many(lambda c: c.barriers >= turns) * LANES


def _mean(works: Sequence[BlockWork], weights: Sequence[float]) -> BlockWork:
    """The mean block."""

    def mean(part: Callable[[BlockWork], float]) -> float:
        return float(sum(w * part(x) for x, w in zip(works, weights, strict=True)))

    with_ring = [(x.rings[0], w) for x, w in zip(works, weights, strict=True) if x.rings]
    turns = sum(r.turns * w for r, w in with_ring)
    return BlockWork(
        mean(lambda w: w.issue),
        mean(lambda w: w.fma),
        mean(lambda w: w.special),
        mean(lambda w: w.tensor),
        mean(lambda w: w.shared_bytes),
        mean(lambda w: w.l2_bytes),
        mean(lambda w: w.chain),
        mean(lambda w: w.stores),
        (replace(with_ring[0][0], turns=turns),) if with_ring else (),
        mean(lambda w: w.start),
        mean(lambda w: w.ends),
    )
