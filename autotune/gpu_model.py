"""A static performance model of GPU kernels: predicted time and the resource that binds it.

A kernel is described by what one block of it does (`BlockWork`) and how blocks fill the machine. Descriptions come from
machine code (`gpu_work.py`), or are written down for kernels that only a publication describes (`gpu_ladder.py`).
Everything here is a prediction; nothing has been measured by us. The constants are the same for every kernel: those
marked `ladder` were chosen with sight of one published series of H100 matrix products, the others are published
figures or properties of the hardware.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tcomp.machine.gpu import GpuMachine

CLOCK = 0.96
"""Sustained clock over the one peak rates are given for: 1755 of 1830 MHz under matrix load (ladder)."""
SHARPNESS = 8.0
"""Resources used at the same time overlap almost wholly: t = (a^p + b^p)^(1/p)."""
HBM_EFFICIENCY = 0.92
"""A read-only sum reaches 3.24 of 3.35 TB/s on an H100, mixed reads and writes somewhat less (published)."""
MEMORY_LATENCY = 600.0
"""Cycles of a load from device memory (555 to 744 published); from L2 about half."""
L2_LATENCY = 270.0
L1_LATENCY = 38.0
COPY_LATENCY = 1000.0
"""Cycles from the issue of a bulk copy of tens of KB to its arrival; 1415 seen in a busy profile (ladder)."""
BARRIER = 30.0
"""Cycles of a block-wide barrier."""
HANDOVER = 150.0
"""Cycles per pipeline stage for wait and release through mbarriers, with few arrivals (ladder)."""
ARRIVAL = 0.5
"""Cycles that each further arrival on a stage's barrier costs (ladder: 257 arrivals against 3)."""
DRAIN = 190.0
"""Cycles that the matrix unit is empty when a warpgroup waits for all it issued; others fill part of it (ladder)."""
SERIALISED = 6.0
"""Matrix instructions that the assembler serialises take this many times as long (ladder)."""
WARP_STALL = 2.5
"""Cycles between two instructions of one warp, for want of independent ones."""
MMA_SYNC_ON_WGMMA = 0.63
"""What mma.sync reaches of the rate of wgmma on Hopper (one paper, H800)."""
DRIFT, PERSISTENT_DRIFT = 0.5, 0.8
"""How far apart, in shares of a tile's loop, blocks are that were started together, and persistent ones (ladder: 83 %
of requests hit L2 in the grouped order)."""
L2_SHARE = 0.5
"""Share of L2 that keeps what all SMs read: each of the two halves holds its own copy of it."""
LAUNCH = 1.5e-6
"""Seconds between two kernels of a graph: drain, launch, first instructions."""
BLOCK_START = 700.0
"""Cycles until a block's first loads are there."""

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


def predict(launch: LaunchWork, machine: GpuMachine) -> Prediction:
    """The predicted time of one launch."""
    clock = machine.clock_hz * CLOCK
    work, sms = launch.work, launch.sms or machine.sms
    per_sm: float = -(-launch.blocks // sms)
    if launch.imbalance:
        per_sm = launch.blocks / sms * launch.imbalance
    busy = min(sms, launch.blocks)
    resident = max(1, min(launch.resident, int(per_sm)))
    share = machine.l2_per_clock / busy
    single = {
        "tensor": work.tensor,
        "fma": work.fma * 32 / machine.f32_per_clock,
        "issue": work.issue / machine.partitions,
        "special": work.special * 32 / machine.special_per_clock,
        "shared memory": work.shared_bytes / machine.shared_per_clock,
        "L2": work.l2_bytes / share,
    }
    rate = _together(*single.values())
    cycles = {name: per_sm * c for name, c in single.items()}
    whole, left = (per_sm / resident, 0) if launch.imbalance else divmod(int(per_sm), resident)
    latency = whole * _chain(work, share / resident)
    if left:
        latency += _chain(launch.rest or work, share / left)
    latency = latency * launch.waiting + work.ends
    seconds = {name: c / clock for name, c in cycles.items()}
    seconds["HBM"] = launch.hbm_bytes / (machine.memory_bandwidth * HBM_EFFICIENCY)
    seconds["latency"] = latency / clock
    on_chip = max(per_sm * rate * launch.waiting + work.ends, latency) / clock
    total = _together(on_chip, seconds["HBM"]) + LAUNCH
    seconds["launch"] = LAUNCH
    return Prediction(launch.name, total, _binding(seconds), seconds, launch.flops, launch.hbm_bytes, launch.notes)


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
    tensor = r.tensor * (SERIALISED if r.serialised else 1.0)
    copy = r.bytes / share
    drain = DRAIN * r.drains / r.consumers if r.tensor else 0.0
    waits = drain + (HANDOVER if r.arrivals else 0.0) + ARRIVAL * r.arrivals
    if r.stages <= 1:
        return r.turns * (COPY_LATENCY + copy + _together(tensor, r.other) + waits)
    arrival = (COPY_LATENCY + copy) / (r.stages - 1)
    return r.turns * (_together(tensor, r.other, copy, arrival) + waits) + r.lead


def _together(*times: float) -> float:
    most = max(times, default=0.0)
    if most <= 0:
        return 0.0
    return float(most * sum((max(t, 0.0) / most) ** SHARPNESS for t in times) ** (1 / SHARPNESS))


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
