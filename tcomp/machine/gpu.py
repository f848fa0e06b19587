"""What is known about NVIDIA GPUs: limits that code and launches must keep, and rates for predictions.

Figures are per device. Sources: NVIDIA's data sheets for rates, clocks and memory, the CUDA programming guide's table
of technical specifications per compute capability for limits. Rates are peaks on paper; predictions made from them are
labelled so wherever they are shown.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from tcomp.dsl.targets import GPU_TARGETS
from tcomp.errors import UserError

LIKE = {"sm_103a": ("sm_100a",), "sm_110a": ("sm_100a",)}
"""Targets that have all instructions of other ones that schedules can name: tcgen05, tensor copies, clusters. (What is
generated for one runs on that alone all the same.)"""


MOST_REGISTERS = 240
"""registers that a thread may be given by another warpgroup"""


@dataclass(frozen=True)
class GpuMachine:
    """One GPU model. `target` is what code is generated for (sm_90a); bytes and hertz unless said otherwise."""

    name: str
    target: str
    sms: int
    clock_hz: float
    """the clock that the peak rates are given for"""
    shared_per_block: int
    """static and dynamic shared memory together; more than 48 KB of it must be dynamic"""
    shared_per_sm: int
    registers_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    l2_bytes: int
    memory_bytes: int
    """what the driver offers of the memory on the board, rounded down to whole GiB"""
    memory_bandwidth: float
    """bytes per second"""
    label: str = ""
    """the product's name"""
    f32_per_clock: int = 128
    """fused multiply-adds per clock and SM"""
    tensor_flops: tuple[tuple[str, float], ...] = ()
    """dense FLOP/s of the matrix units by element type, accumulating in f32; a type that is missing has no unit"""
    matrix_path: str = "mma.sync"
    """the instructions that reach those rates: mma.sync | wgmma | tcgen05"""
    special_per_clock: int = 16
    """ex2, rsqrt, sin and the like per clock and SM"""
    shared_per_clock: int = 128
    """shared-memory bytes per clock and SM"""
    l2_per_clock: int = 5120
    """bytes per clock from L2 to all SMs together: published measurements; A100's figure where there is none"""
    shared_reserved: int = 1024
    """shared memory that every block takes beside its own"""
    shared_granularity: int = 128
    static_shared: int = 48 << 10
    register_granularity: int = 256
    """registers are given to a warp in multiples of this"""
    registers_per_thread: int = 255
    registers_per_block: int = 65536
    threads_per_block: int = 1024
    gpc_sms: tuple[int, ...] = ()
    """SMs of each processing cluster (GPC), one of which a cluster of blocks lies in; empty: not known"""
    max_clock_hz: float = 0.0
    """the clock without load of its matrix units; 0: not known"""
    tensor_columns: int = 0
    """columns of tensor memory in an SM; 0: it has none"""
    partitions: int = 4
    """sub-cores of an SM: each has its share of the registers, and a block's warps are dealt over them"""

    @property
    def without_memory(self) -> GpuMachine:
        """What code is generated from: GPUs that differ in their names and their memory alone run the same."""
        return replace(self, name="", label="", memory_bytes=0, memory_bandwidth=0.0)

    @property
    def sm(self) -> int:
        """90 for sm_90a."""
        return int("".join(c for c in self.target if c.isdigit()))

    @property
    def targets(self) -> tuple[str, ...]:
        """The schedule targets that apply, most specific first: its own, those whose instructions it has all of, its
        family's, those of older GPUs (whose instructions newer ones keep, unless the name ends in a letter), then
        `gpu`."""
        own = self.target.rstrip("af")
        older = sorted((int(t[3:]) for t in GPU_TARGETS if t[3:].isdigit() and int(t[3:]) < self.sm), reverse=True)
        return tuple(dict.fromkeys((self.target, *LIKE.get(self.target, ()), own, *(f"sm_{n}" for n in older), "gpu")))

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability: (9, 0) for sm_90a."""
        return divmod(self.sm, 10)

    @property
    def warps_per_sm(self) -> int:
        return self.threads_per_sm // 32

    def registers_at_entry(self, warps: int) -> int:
        """Registers a thread of a block of so many warps, where all of the block's are shared out."""
        return min(self.registers_per_thread, self.registers_per_block // (32 * warps)) // 8 * 8

    def registers_moved(self, warps: int, givers: int, kept: int, blocks: int = 1) -> int:
        """Registers a thread of `warps` once those of as many more, `givers`, have given up all but `kept`; 0 where
        none move. So many `blocks` share a multiprocessor."""
        entry = self.registers_at_entry((warps + givers) * blocks)
        if not kept or entry >= MOST_REGISTERS:
            return 0
        left = (entry * (warps + givers) - kept * givers) // warps
        return max(0, min(MOST_REGISTERS, left // 8 * 8))

    def clusters(self, blocks: int) -> int:
        """Clusters of so many blocks, one on an SM, that run at the same time: GPCs may leave SMs over. Never none."""
        gpcs = self.gpc_sms if sum(self.gpc_sms) == self.sms else (self.sms,)
        return max(1, sum(sms // blocks for sms in gpcs))

    @property
    def f32_flops(self) -> float:
        """FLOP/s of f32 fused multiply-adds on the ordinary cores."""
        return 2.0 * self.f32_per_clock * self.sms * self.clock_hz

    @property
    def l2_bandwidth(self) -> float:
        """Bytes per second from L2."""
        return self.l2_per_clock * self.clock_hz

    def tensor_rate(self, dtype: str) -> float | None:
        """Dense FLOP/s of the matrix units on bf16, f16, tf32, e4m3 or e5m2 operands; None without such a unit."""
        return dict(self.tensor_flops).get(dtype)


def _tensor(tf32: float, bf16: float, fp8: float = 0.0) -> tuple[tuple[str, float], ...]:
    """Rates in TFLOP/s."""
    rates = {"tf32": tf32, "bf16": bf16, "f16": bf16, "e4m3": fp8, "e5m2": fp8}
    return tuple((name, rate * 1e12) for name, rate in rates.items() if rate)


_KB, _MB, _GB = 1 << 10, 1 << 20, 1 << 30

H100 = GpuMachine(
    "h100", "sm_90a", 132, 1.83e9, 227 * _KB, 228 * _KB, 65536, 2048, 32, 50 * _MB, 79 * _GB, 3.35e12,
    label="NVIDIA H100 SXM 80 GB", tensor_flops=_tensor(494.7, 989.4, 1978.9), matrix_path="wgmma", l2_per_clock=6154,
    gpc_sms=(16, 16, 16, 16, 16, 16, 18, 18), max_clock_hz=1.98e9,
)  # fmt: skip
H200 = GpuMachine(
    "h200", "sm_90a", 132, 1.83e9, 227 * _KB, 228 * _KB, 65536, 2048, 32, 50 * _MB, 140 * _GB, 4.8e12,
    label="NVIDIA H200 SXM 141 GB", tensor_flops=_tensor(494.7, 989.4, 1978.9), matrix_path="wgmma", l2_per_clock=6154,
    gpc_sms=(16, 16, 16, 16, 16, 16, 18, 18), max_clock_hz=1.98e9,
)  # fmt: skip
A100 = GpuMachine(
    "a100", "sm_80", 108, 1.41e9, 163 * _KB, 164 * _KB, 65536, 2048, 32, 40 * _MB, 79 * _GB, 2.039e12,
    label="NVIDIA A100 SXM 80 GB", f32_per_clock=64, tensor_flops=_tensor(156, 312),
)  # fmt: skip
L40S = GpuMachine(
    "l40s", "sm_89", 142, 2.52e9, 99 * _KB, 100 * _KB, 65536, 1536, 24, 96 * _MB, 44 * _GB, 0.864e12,
    label="NVIDIA L40S 48 GB", tensor_flops=_tensor(183, 362, 733),
)  # fmt: skip
RTX4090 = GpuMachine(
    "rtx4090", "sm_89", 128, 2.52e9, 99 * _KB, 100 * _KB, 65536, 1536, 24, 72 * _MB, 23 * _GB, 1.008e12,
    label="NVIDIA GeForce RTX 4090", tensor_flops=_tensor(82.6, 165.2, 330.3),
)  # fmt: skip
RTX5090 = GpuMachine(
    "rtx5090", "sm_120a", 170, 2.407e9, 99 * _KB, 100 * _KB, 65536, 1536, 24, 96 * _MB, 31 * _GB, 1.792e12,
    label="NVIDIA GeForce RTX 5090", tensor_flops=_tensor(104.8, 209.5, 419),
)  # fmt: skip
B200 = GpuMachine(
    "b200", "sm_100a", 148, 1.86e9, 227 * _KB, 228 * _KB, 65536, 2048, 32, 126 * _MB, 179 * _GB, 7.7e12,
    label="NVIDIA B200", tensor_flops=_tensor(1125, 2250, 4500), matrix_path="tcgen05", l2_per_clock=11264,
    tensor_columns=512,
)  # fmt: skip
# (Published: memory, and rates, by HGX tables a B200's in these types. SMs, clock and L2 are taken to be a B200's.)
B300 = GpuMachine(
    "b300", "sm_103a", 148, 1.86e9, 227 * _KB, 228 * _KB, 65536, 2048, 32, 126 * _MB, 268 * _GB, 8e12,
    label="NVIDIA B300", tensor_flops=_tensor(1125, 2250, 4500), matrix_path="tcgen05", l2_per_clock=11264,
    tensor_columns=512,
)  # fmt: skip
# (SMs, L2 and shared memory as a driver reported them; rates from 2070 TFLOP/s of sparse FP4; memory is the CPU's,
# too. Threads and blocks are taken to be those of sm_120, L2's rate an A100's for each SM.)
THOR = GpuMachine(
    "thor", "sm_110a", 20, 1.575e9, 227 * _KB, 228 * _KB, 65536, 1536, 24, 32 * _MB, 119 * _GB, 0.273e12,
    label="NVIDIA Thor (T5000)", tensor_flops=_tensor(129.4, 258.8, 517.5), matrix_path="tcgen05", l2_per_clock=948,
    tensor_columns=512,
)  # fmt: skip

MACHINES = {m.name: m for m in (H100, H200, A100, RTX4090, L40S, RTX5090, B200, B300, THOR)}
"""All known machines by name; of several with the same target, the first is the target's default."""


def machine_named(name: str) -> GpuMachine:
    """The machine `h100` (in any case, and with or without spaces and dashes). UserError with the list otherwise."""
    plain = "".join(c for c in name.lower() if c.isalnum()).removeprefix("nvidia")
    if plain in MACHINES:
        return MACHINES[plain]
    near = difflib.get_close_matches(plain, MACHINES, n=1, cutoff=0.7)
    listing = f"known GPUs: {', '.join(MACHINES)}"
    raise UserError(
        f"there is no description of a GPU {name!r}", f"did you mean {near[0]!r}? {listing}" if near else listing
    )


def machine_for_target(target: str) -> GpuMachine:
    """The machine that code for `sm_90a` is planned for when none is named. UserError with the list otherwise."""
    defaults: dict[str, GpuMachine] = {}
    for m in MACHINES.values():
        defaults.setdefault(m.target, m)
    if target in defaults:
        return defaults[target]
    near = difflib.get_close_matches(target, defaults, n=1, cutoff=0.75)
    listing = f"GPU targets: {', '.join(sorted(defaults, key=lambda t: defaults[t].sm))}"
    raise UserError(f"there is no GPU target {target!r}", f"did you mean {near[0]!r}? {listing}" if near else listing)
