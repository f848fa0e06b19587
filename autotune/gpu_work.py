"""What a launch does, read off its machine code: the counts that `gpu_model` turns into a time.

A few blocks and warps stand for all: those that take the same way count once for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tcomp.autotune.gpu_blocks import middle_blocks, unevenness
from tcomp.autotune.gpu_counts import Copies, Counts, counts_of
from tcomp.autotune.gpu_epilogue import Epilogue, epilogue, staggered
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
from tcomp.autotune.gpu_replay import Replay, loop_turns, replay
from tcomp.autotune.gpu_residents import Residents, residents
from tcomp.autotune.opcodes import LANES
from tcomp.autotune.sass import Function
from tcomp.autotune.sass_walk import Walk, Way
from tcomp.codegen.nvptx.launch import LaunchShape
from tcomp.codegen.nvptx.occupancy import occupancy
from tcomp.codegen.nvptx.resources import Resources
from tcomp.machine.gpu import GpuMachine

SHUFFLE_LATENCY = 23.0


@dataclass(frozen=True)
class Sample:
    """The counts of a block: each kind of warp with how many there are of it."""

    warps: tuple[tuple[int, Counts], ...]
    ways: tuple[Way, ...]
    """of each kind of warp"""
    groups: tuple[Way, ...]
    """of each four warps, that of the one whose way is longest"""
    unknown: int
    cut: bool
    steps: int


def sample_block(
    function: Function, launch: LaunchShape, block: int, constants: Mapping[int, int], copy: Copies
) -> Sample:
    """Walk the block's warps, or a few that stand for all."""
    warps = -(-launch.threads // LANES)
    bank = {0x0: launch.threads, 0xC: launch.blocks, 0x360: launch.threads, 0x370: launch.blocks, **constants}
    kinds: dict[tuple[tuple[int, int], ...], tuple[int, Counts, Way]] = {}
    unknown, cut, steps = 0, False, 0
    every: list[Way] = []
    roles = any(i.name == "SYNCS" for i in function.instructions)
    for w, members in _representatives(warps, roles):
        special = {
            "SR_TID.X": w * LANES, "SR_CTAID.X": block, "SR_LANEID": 0, "SR_TID.Y": 0, "SR_TID.Z": 0, "SR_CTAID.Y": 0,
            "SR_CTAID.Z": 0, "SR_CgaCtaId": 0, "SR_NCTAID.X": launch.blocks, "SR_VIRTID": 0,
        }  # fmt: skip
        path = Walk(function, special, bank).run()
        every += [path] * members
        unknown, cut = max(unknown, path.unknown), cut or path.cut
        steps = max(steps, sum(path.visits.values()))
        key = tuple(sorted(path.visits.items()))
        if key in kinds:
            kinds[key] = kinds[key][0] + members, kinds[key][1], path
        else:
            kinds[key] = members, counts_of(function, path, copy), path
    warps_of = tuple((n, c) for n, c, _ in kinds.values())
    groups = tuple(max(every[g : g + 4], key=lambda w: len(w.path)) for g in range(0, warps, 4))
    return Sample(warps_of, tuple(w for _, _, w in kinds.values()), groups, unknown, cut, steps)


LONG = 20_000
"""Blocks on a warp's way from which one block of the grid stands for all."""
GOLDEN = (5**0.5 - 1) / 2
"""whose multiples, without their whole parts, lie as far apart as such places can"""


def _representatives(warps: int, roles: bool) -> list[tuple[int, int]]:
    """(warp, how many it stands for): every warp where they have roles, else the first and the last."""
    if roles:
        return [(w, 1) for w in range(warps)]
    return [(0, warps)] if warps < 3 else [(0, warps - 1), (warps - 1, 1)]


def launch_work(
    name: str,
    function: Function,
    launch: LaunchShape,
    resources: Resources,
    machine: GpuMachine,
    hbm_bytes: float,
    flops: float = 0.0,
    stages: int | None = None,
    constants: Mapping[int, int] | None = None,
    turns: Sequence[float] = (),
    copy: Copies = Copies(),
    sides: int = 1,
) -> LaunchWork:
    """The description of a launch. `stages` is the depth of its pipeline where the plan knows it (else it is read from
    the waits); `constants` are known kernel parameters by their offset in the constant bank; `turns` are those of each
    block, in the order in which they start, where blocks differ; `sides` of a block take its tiles in turn."""
    fit = occupancy(machine, resources.registers, launch.threads, resources.shared_bytes + launch.shared_bytes)
    resident = max(1, fit.blocks)
    sms = machine.clusters(launch.cluster) * launch.cluster
    per_sm = -(-launch.blocks // sms)
    at_once = launch.blocks <= sms * resident
    first, *others = some_blocks(launch.blocks, at_once)
    chosen: Mapping[int, float] = middle_blocks(turns) if turns else {first: 1.0}
    samples = [sample_block(function, launch, b, constants or {}, copy) for b in chosen]
    if samples[0].steps < LONG and not turns:
        samples += [sample_block(function, launch, b, constants or {}, copy) for b in others]
    weights = list(chosen.values()) if turns else [1.0 / len(samples)] * len(samples)

    def works(side_by_side: int) -> BlockWork:
        found = [_block(s, machine, stages, function, side_by_side, launch.cluster, sides) for s in samples]
        # Where all blocks run at once the longest decides; else short and long ones even out.
        return max(found, key=_length) if at_once and not turns else _mean(found, weights)

    work = works(min(resident, per_sm))
    rest = per_sm % resident if per_sm > resident and not turns else 0
    notes = []
    if any(s.unknown for s in samples):
        notes.append("branches that depend on data or on other threads are taken to go around a rare case")
    if any(s.cut for s in samples):
        notes.append("at least this long: its code was not followed to the end")
    imbalance = unevenness(turns, sms * resident) if turns else 0.0
    return LaunchWork(
        name, launch.blocks, resident, work, hbm_bytes, flops, tuple(notes), imbalance, sms,
        rest=works(rest) if rest else None,
    )  # fmt: skip


def some_blocks(blocks: int, at_once: bool) -> list[int]:
    """Blocks that are followed: where all run at once those at the ends and between them, since the longest decides; of
    rounds of them a few that no stride meets. (Of attention over 16,384 tokens every 86th block has the last rows of a
    head, which are cut: the first, the last and every quarter were such blocks.)"""
    if at_once:
        return list(dict.fromkeys((blocks // 2, 0, blocks // 4, 3 * blocks // 4, blocks - 1)))
    return list(dict.fromkeys(int(k * GOLDEN % 1.0 * blocks) for k in range(1, 6)))


def _length(w: BlockWork) -> float:
    return w.chain + w.tensor + sum(r.turns * (r.tensor + r.other) for r in w.rings)


def _block(
    sample: Sample,
    machine: GpuMachine,
    stages: int | None,
    function: Function,
    resident: int,
    cluster: int,
    sides: int = 1,
) -> BlockWork:
    def total(get: str) -> float:
        return float(sum(n * getattr(c, get) for n, c in sample.warps))

    def most(get: str) -> float:
        return float(max((getattr(c, get) for _, c in sample.warps), default=0.0))

    tensor = 0.0
    for n, c in sample.warps:
        for (dtype, path), flops in c.flops.items():
            tensor += tensor_cycles(n * flops, dtype, machine, path)
    issue, turns = total("issue"), most("copy_turns")
    longest = most("issue") * WARP_STALL
    last = Epilogue()
    found = None
    wgmma = any(path == "wgmma" for _, c in sample.warps for _, path in c.flops)
    beside: Residents | None = None
    behind = 0
    """turns by which a place of the ring is read later than by the first that reads it"""
    if wgmma:  # (most of a short loop's copies may be issued before it)
        turns = max([turns, *(float(loop_turns(function, w.path)) for w in sample.ways)])
    if turns > 1 and total("async_bytes") and wgmma:
        found = _replayed(sample, function, machine, resident, sides)
        ways = _consumers(sample, function)
        loop = max(tensor, total("tile_bytes") / machine.shared_per_clock)
        last = epilogue(function, ways, found is None, machine, tensor / turns / max(1, len(ways)), sides, loop)
        behind = int(staggered(function, ways) and sides == 1)
    elif turns > 1 and total("async_bytes") and tensor:
        ways = [w.path for w in sample.groups]
        # Blocks of less than four warps leave partitions to each other.
        on_partition = -(-resident * min(machine.partitions, sum(n for n, _ in sample.warps)) // machine.partitions)
        beside = residents(function, tuple(ways), on_partition, machine)
        last = Epilogue() if beside is not None else epilogue(function, ways, False, machine)
    chain = max(0.0, most("load_rounds") - last.loads) * (L2_LATENCY + MEMORY_LATENCY) / 2
    chain += max(0.0, most("shuffles") - last.shuffles) * SHUFFLE_LATENCY
    chain += most("near_loads") * (L1_LATENCY + MEMORY_LATENCY / 32)
    chain += most("barriers") * BARRIER
    rings: tuple[Ring, ...] = ()
    if turns > 1 and total("async_bytes"):
        consumers = sum(n for n, c in sample.warps if any(p == "wgmma" for _, p in c.flops)) // (4 * sides) or 1
        pending = [c.pending for _, c in sample.warps if c.pending is not None]
        depth = stages or ((max(pending) + 2) if pending else 2)
        replayed = found or beside
        if replayed is not None:
            turns = max(turns, float(replayed.turns))
        if found is not None:
            replayed = found = replace(found, cycles=max(found.cycles, _issued(sample, found, machine, resident)))
        # (A turn of the machine's loop may be several of the ring's, written out one after the other.)
        tensor_turn = max(tensor / turns, replayed.cycles * replayed.turns / turns if replayed is not None else 0.0)
        share = max(1.0, issue / machine.partitions, longest) / turns
        rings = (
            Ring(
                turns, total("async_bytes") / turns, depth - behind, tensor_turn, 0.0 if wgmma or beside else share,
                consumers,
                # (A place is free when all blocks have read it.)
                arrivals=_arrivals(sample, turns / sides) // sides * cluster,
                drains=most("drains") / turns if wgmma and found is None else 0.0,
                lead=COPY_LATENCY if beside is None else 0.0,
                shared=total("tile_bytes") / machine.shared_per_clock / turns if wgmma else 0.0,
                sides=sides,
                delivery=DELIVERY if any(c.delivers for _, c in sample.warps) else 0.0,
            ),
        )  # fmt: skip
    else:
        chain += max(longest, issue / machine.partitions, tensor)
    work = BlockWork(
        issue,
        total("fma"),
        total("special"),
        tensor,
        total("shared_bytes"),
        total("l2_bytes"),
        chain,
        last.cycles,
        rings,
    )
    if beside is None:
        return work
    return replace(work, chain=0.0, start=0.0, stores=beside.beyond, ends=beside.ends)


def _replayed(sample: Sample, function: Function, machine: GpuMachine, resident: int, sides: int) -> Replay | None:
    """The loop replayed, for what its turns wait for between products. (Turns of all blocks on the SM run side by side,
    so that one block's take as long. Of two sides only one multiplies at a time: what it waits for is the other's.)"""
    ways = _consumers(sample, function)
    return replay(function, ways, resident, machine) if ways and sides == 1 else None


def _issued(sample: Sample, loop: Replay, machine: GpuMachine, resident: int) -> float:
    """Cycles that the instructions of a turn of all resident blocks need at least."""
    issue = sum(n * c.issue for n, c in sample.warps)
    return issue / max(1, loop.turns) * resident / machine.partitions / ISSUE_RATE


def _consumers(sample: Sample, function: Function) -> list[tuple[int, ...]]:
    """The ways of the warpgroups that wait for matrix instructions."""
    waits = {
        b.number for b in function.blocks if any(i.name == "WARPGROUP" and "DEPBAR" in i.opcode for i in b.instructions)
    }
    return [w.path for w in sample.groups if waits & set(w.path)]


def _arrivals(sample: Sample, turns: float) -> int:
    """Arrivals that complete a stage: one per warp that waits on memory barriers; where a warpgroup's loop has a
    block-wide barrier instead, every thread's."""
    waiting = sum(n for n, c in sample.warps if c.waits >= turns)
    if waiting:
        return waiting
    wgmma = any(path == "wgmma" for _, c in sample.warps for _, path in c.flops)
    return sum(n * LANES for n, c in sample.warps if c.barriers >= turns) if wgmma else 0


def _mean(works: Sequence[BlockWork], weights: Sequence[float]) -> BlockWork:
    """The mean block."""

    def mean(get: str) -> float:
        return float(sum(w * getattr(x, get) for x, w in zip(works, weights, strict=True)))

    rings: tuple[Ring, ...] = ()
    with_ring = [(x.rings[0], w) for x, w in zip(works, weights, strict=True) if x.rings]
    if with_ring:
        turns = sum(r.turns * w for r, w in with_ring)
        rings = (replace(with_ring[0][0], turns=turns),)
    return BlockWork(
        mean("issue"), mean("fma"), mean("special"), mean("tensor"), mean("shared_bytes"), mean("l2_bytes"),
        mean("chain"), mean("stores"), rings, mean("start"), mean("ends"),
    )  # fmt: skip
