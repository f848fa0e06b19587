"""A static performance model of GPU kernels: predicted time and the resource that binds it.

A kernel is described by what one block of it does (`BlockWork`) and how blocks fill the machine. Descriptions come from
machine code (`gpu_work.py`), or are written down for kernels that only a publication describes (`gpu_ladder.py`).
Everything here is a prediction; nothing has been measured by us. The constants are the same for every kernel: those
marked `ladder` were chosen with sight of one published series of H100 matrix products, the others are published
figures or properties of the hardware.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from tcomp.autotune.gpu_conditions import Moves, clock_under_load, left_in_cache
from tcomp.machine.gpu import GpuMachine

SETTLING = 4
"""Rounds in which clock and load settle: the more the matrix units do, the slower they run."""
SHARPNESS = 8.0
"""Resources used at the same time overlap almost wholly: t = (a^p + b^p)^(1/p)."""
MEMORY_SHARPNESS = 4.0
"""The same of device memory with all else: it is asked for more at some times of a launch than at others, the ends of
tiles above all, and waits. (Fitted to an H100's and an H200's times, whose memories alone differ: `linear_gelu` has 146
and 130 us, GELU's derivative in the product before it 156 and 144, a residual 45 and 37.)"""
HBM_EFFICIENCY = 0.89
"""Measured on an H100: a copy moves 2978 of 3350 GB/s, as do the longest passes of a step (AdamW, cross-entropy). A
read-only sum is published at 3.24 TB/s."""
MEMORY_LATENCY = 600.0
"""Cycles of a load from device memory (555 to 744 published); from L2 about half."""
L2_LATENCY = 270.0
L1_LATENCY = 38.0
COPY_LATENCY = 1000.0
"""Cycles from the issue of a bulk copy of tens of KB to its arrival; 1415 seen in a busy profile (ladder)."""
BARRIER = 30.0
"""Cycles of a block-wide barrier."""
HANDOVER = 20.0
"""Cycles per pipeline stage for wait and release through mbarriers, with few arrivals; other warpgroups' products hide
their part of it (measured: products of 4096 and 8192)."""
BEGINNING = 6000.0
"""Cycles that a launch of wgmma products takes beyond what is known of its blocks, while it begins and ends (fitted to
products of 4 to 255 tiles a multiprocessor, whose times lie on a line that has 8 to 10 us at none; profiles have 4 to 6
thousand cycles in which no warp is there. What they are made of was not established)."""
ARRIVAL = 0.5
"""Cycles that each further arrival on a stage's barrier costs (ladder: 257 arrivals against 3)."""
DRAIN = 190.0
"""Cycles that the matrix unit is empty when a warpgroup waits for all it issued; others fill part of it (ladder)."""
SERIALISED = 6.0
"""Matrix instructions that the assembler serialises take this many times as long (ladder)."""
ISSUE_RATE = 0.65
"""Instructions a cycle of a partition whose matrix unit works beside them, at most (measured: attention forward at
16,384 and at 1024 tokens, heads of 64, have 0.60 and 0.61 in their loops)."""
WARP_STALL = 2.5
"""Cycles between two instructions of one warp, for want of independent ones."""
MMA_SYNC_ON_WGMMA = 0.63
"""What mma.sync reaches of the rate of wgmma on Hopper (one paper, H800)."""
DRIFT, PERSISTENT_DRIFT = 0.3, 0.4
"""How far apart, in shares of a tile's loop, blocks are that were started together, and persistent ones (ladder: 83 %
of requests hit L2 in the grouped order)."""
L2_SHARE = 0.5
"""Share of L2 that keeps what all SMs read: each of the two halves holds its own copy of it."""
LAUNCH = 1.0e-6
"""Seconds between two kernels of a graph beside what they do (measured: the shortest takes 1.6 us in all)."""
BLOCK_START = 700.0
"""Cycles until a block's first loads are there."""

DELIVERY = 3700.0
"""Cycles from a bulk addition to memory in turn to the next block's, of the warp that does nothing else: it is awaited,
made visible to all SMs, and the word that says so is written and read. (Fitted to measured rates of attention backward
at 16,384 tokens: one constant for four.)"""

RESOURCES = ("tensor", "fma", "issue", "special", "shared memory", "L2", "HBM", "latency", "launch")


@dataclass(frozen=True)
class Ring:
    """A loop whose tiles are copied ahead: `turns` of it, `bytes` of tiles a turn (per block, from L2), `stages` copies
    in flight (1: none ahead). `tensor` cycles of the matrix unit and `other` cycles of issued work per turn.
    `consumers` warpgroups share the tensor work, `arrivals` complete a stage's barrier, `drains` waits per turn leave
    the matrix unit empty."""

    turns: float
    bytes: float
    stages: int
    tensor: float = 0.0
    other: float = 0.0
    consumers: int = 1
    arrivals: int = 0
    drains: float = 1.0
    serialised: bool = False
    lead: float = COPY_LATENCY
    """cycles until the first copy is there"""
    shared: float = 0.0
    """cycles a turn that shared memory is busy with tiles that come and that matrix instructions read"""
    sides: int = 1
    """of a block, that take tiles in turn: what one waits for is hidden by the other's products"""
    delivery: float = 0.0
    """cycles that a warp of its own takes to hand a turn's results over, before it can take the next"""


@dataclass(frozen=True)
class BlockWork:
    """What one block does, all its warps together. Counts are of warp instructions; `special` of exp, rsqrt and the
    like; `chain` are cycles of latency that nothing hides within the block; `stores` cycles of an epilogue that stops
    the matrix unit."""

    issue: float = 0.0
    fma: float = 0.0
    special: float = 0.0
    tensor: float = 0.0
    """cycles of the SM's matrix units"""
    shared_bytes: float = 0.0
    l2_bytes: float = 0.0
    chain: float = 0.0
    stores: float = 0.0
    rings: tuple[Ring, ...] = ()
    start: float = BLOCK_START
    """cycles until the first loads are there"""
    ends: float = 0.0
    """cycles at the beginning and end of a launch that no other block fills, where `stores` has what others leave"""


@dataclass(frozen=True)
class LaunchWork:
    """A launch: `blocks` of `work`, `resident` of them on an SM at a time. `hbm_bytes` of the whole launch. A
    persistent kernel has one block per SM whose work is all its tiles'."""

    name: str
    blocks: int
    resident: int
    work: BlockWork
    hbm_bytes: float
    flops: float = 0.0
    notes: tuple[str, ...] = ()
    imbalance: float = 0.0
    """of blocks that differ (`work` is then the mean one's): how much longer the fullest SM is busy than the mean; 0
    where blocks are alike, and go round by round"""
    sms: int = 0
    """SMs that the launch's clusters of blocks fit on; 0: all"""
    waiting: float = 1.0
    """how many times as long it takes because blocks wait for each other"""
    moves: Moves = Moves(0.0, 0.0)
    rest: BlockWork | None = None
    """a block of the last round, where fewer than `resident` are left for an SM; None: as `work`"""


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds, the resource that binds, and seconds per resource if it were alone."""

    name: str
    seconds: float
    binding: str
    parts: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    hbm_bytes: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def tflops(self) -> float:
        return self.flops / self.seconds / 1e12


def predict(launch: LaunchWork, machine: GpuMachine, before: float | None = None, most: float = math.inf) -> Prediction:
    """The predicted time of one launch. `before`: bytes that those before it left in L2, of which it drives some out to
    memory (and leaves some of its own to the next); None: as many as it leaves. `most`: hertz of the clock at most."""
    moved = launch.hbm_bytes
    if before is not None:
        moved = max(0.0, moved + before - left_in_cache(before, launch.moves, machine))
    busy, found = 0.0, {"total": 0.0}
    for _ in range(SETTLING):
        clock = min(most, clock_under_load(machine, busy))
        found = _seconds(launch, machine, clock, moved)
        busy = launch.work.tensor * launch.blocks / machine.sms / max(1.0, (found["total"] - LAUNCH) * clock)
    total = found.pop("total")
    return Prediction(launch.name, total, _binding(found), found, launch.flops, moved, launch.notes)


def _seconds(launch: LaunchWork, machine: GpuMachine, clock: float, moved: float) -> dict[str, float]:
    """Seconds of each resource if it were alone, and of the launch ("total"), at a clock in hertz."""
    work, sms = launch.work, launch.sms or machine.sms
    per_sm: float = -(-launch.blocks // sms)
    if launch.imbalance:
        per_sm = launch.blocks / sms * launch.imbalance
    resident = max(1, min(launch.resident, int(per_sm)))
    # (L2 keeps its own clock.)
    share = machine.l2_bandwidth / clock / min(sms, launch.blocks)
    single = {
        "tensor": work.tensor,
        "fma": work.fma * 32 / machine.f32_per_clock,
        "issue": work.issue / machine.partitions,
        "special": work.special * 32 / machine.special_per_clock,
        "shared memory": work.shared_bytes / machine.shared_per_clock,
        "L2": work.l2_bytes / share,
    }
    # (Matrix instructions that wait for their operands are no more work for it.)
    others = [c for name, c in single.items() if name not in ("tensor", "shared memory")]
    rate = _together(max(single["tensor"], single["shared memory"]), *others)
    seconds = {name: per_sm * c / clock for name, c in single.items()}
    whole, left = (per_sm / resident, 0) if launch.imbalance else divmod(int(per_sm), resident)
    latency = whole * _chain(work, share / resident)
    if left:
        latency += _chain(launch.rest or work, share / left)
    ends = work.ends + (BEGINNING if any(r.tensor and r.lead for r in work.rings) else 0.0)
    latency = latency * launch.waiting + ends
    memory = moved / (machine.memory_bandwidth * HBM_EFFICIENCY)
    on_chip = max(per_sm * rate * launch.waiting + ends, latency) / clock
    # Until the first block's loads are there and after the last, memory has nothing to do.
    idle = min(work.start + MEMORY_LATENCY, latency) / clock if moved else 0.0
    seconds |= {"HBM": memory, "latency": latency / clock, "launch": LAUNCH}
    return seconds | {"total": _together(on_chip, memory + idle, sharpness=MEMORY_SHARPNESS) + LAUNCH}


def _binding(parts: dict[str, float]) -> str:
    """The resource whose own time is the longest; latency only where it is clearly longer than all else, since a chain
    of waits contains the time of the work itself."""
    rest = {n: s for n, s in parts.items() if n != "latency"}
    most = max(rest, key=lambda n: rest[n])
    return "latency" if parts["latency"] > 1.5 * rest[most] else most


def _chain(work: BlockWork, share: float) -> float:
    """Cycles of a block from its start to its end, with `share` bytes per cycle from L2."""
    return max(0.0, work.start + work.chain + work.stores + sum(_ring(r, share) for r in work.rings))


def _ring(r: Ring, share: float) -> float:
    """Cycles of a pipelined loop for one block that has `share` bytes per cycle from L2."""
    tensor = max(r.tensor * (SERIALISED if r.serialised else 1.0), r.shared)
    copy = r.bytes / share
    waits = 0.0
    if r.sides == 1:
        drain = DRAIN * r.drains / r.consumers if r.tensor else 0.0
        waits = drain + (HANDOVER / r.consumers if r.arrivals else 0.0) + ARRIVAL * r.arrivals
    if r.stages <= 1:
        return r.turns * (COPY_LATENCY + copy + _together(tensor, r.other) + waits) + r.delivery
    arrival = (COPY_LATENCY + copy) / (r.stages - 1)
    turn = _together(_together(tensor, r.other, copy, arrival) + waits, r.delivery)
    return r.turns * turn + r.lead + r.delivery


def _together(*times: float, sharpness: float = SHARPNESS) -> float:
    most = max(times, default=0.0)
    if most <= 0:
        return 0.0
    return float(most * sum((max(t, 0.0) / most) ** sharpness for t in times) ** (1 / sharpness))


def tensor_cycles(flops: float, dtype: str, machine: GpuMachine, instruction: str = "") -> float:
    """Cycles of one SM's matrix units for `flops` operations on `dtype` operands. UserError-free: 0 without a unit."""
    rate = machine.tensor_rate(dtype)
    if not rate:
        return 0.0
    per_cycle = rate / machine.sms / machine.clock_hz
    if instruction == "mma.sync" and machine.matrix_path != "mma.sync":
        per_cycle *= MMA_SYNC_ON_WGMMA
    return flops / per_cycle


def cached_traffic(unique: float, total: float, machine: GpuMachine, drift: float = DRIFT) -> float:
    """Bytes from device memory of blocks that run at the same time and read `total` bytes, `unique` of them different.
    The blocks are within a share `drift` of their loops of each other, so that much of what is different is live at a
    time; what of it does not fit the usable share of L2 is read again as often as it is used."""
    room, live = machine.l2_bytes * L2_SHARE, unique * drift
    missed = max(0.0, 1.0 - room / live) if live else 0.0
    return min(total, unique + (total - unique) * missed)


def scaled(work: BlockWork, times: float) -> BlockWork:
    """A persistent block that does the same work several times."""
    return replace(
        work, issue=work.issue * times, fma=work.fma * times, special=work.special * times,
        tensor=work.tensor * times, shared_bytes=work.shared_bytes * times, l2_bytes=work.l2_bytes * times,
        chain=work.chain * times, stores=work.stores * times,
        rings=tuple(replace(r, turns=r.turns * times) for r in work.rings),
    )  # fmt: skip
