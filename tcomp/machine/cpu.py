"""What a CPU offers a kernel: vector features, lanes, registers, caches, cores.

`detect()` asks LLVM for the host's features and /sys for its caches, and narrows both to a level that code is
generated for (AVX-512 with bf16 dot products, AVX-512, AVX2, SSE2, Arm NEON, or no vectors at all). A virtual machine
may report a processor name that its features contradict, so only the features count. `avx2+avx512bf16` is a level that
has a feature's instructions by their meaning (`EMULATED`): their schedules run, slower, on a host without them.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import llvmlite.binding as llvm

from tcomp.errors import UserError

LEVELS = ("avx512bf16", "avx512", "avx2", "sse2", "neon", "generic")
_AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2")
_AVX512 = ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_EXTRA = ("avx512fp16", "avx512vnni")
BF16_DOT = "avx512bf16"
"""LLVM's name of the feature whose instructions multiply pairs of bf16 values, and round to bf16."""
EMULATED = (BF16_DOT,)
"""features whose instructions have code for hosts without them"""
_LINE = 64


@dataclass(frozen=True)
class CpuMachine:
    """`name` is the level ("avx512"), `features` LLVM's feature names that code may use, sorted. Instructions of
    `emulated` features are written out by their meaning.

    `lanes_f32` f32 elements fill one vector register; `vector_registers` is how many there are. Cache sizes
    are in bytes and belong to one core (L3: to all of them). `cores` counts the CPUs this process may use.
    """

    name: str
    features: tuple[str, ...]
    lanes_f32: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int
    emulated: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The schedule targets that apply, most specific first."""
        wider = ("cpu.avx512",) if self.name == BF16_DOT else ()
        return (*(f"cpu.{f}" for f in self.emulated), f"cpu.{self.name}", *wider, "cpu")

    @property
    def has_fma(self) -> bool:
        return "fma" in self.features or "neon" in self.features

    @property
    def llvm_cpu(self) -> str:
        """LLVM's processor name for this level: it sets the scheduling model, and is the same on all hosts."""
        levels = {BF16_DOT: "x86-64-v4", "avx512": "x86-64-v4", "avx2": "x86-64-v3", "sse2": "x86-64"}
        return levels.get(self.name, "generic")

    @property
    def llvm_features(self) -> str:
        """The feature string of the target machine; whole 512-bit registers are used where there are any."""
        flags = [f"+{f}" for f in self.features]
        if self.lanes_f32 == 16:
            flags.append("-prefer-256-bit")
        return ",".join(flags)

    @property
    def triple(self) -> str:
        return str(llvm.get_process_triple())


def detect(limit: str | None = None) -> CpuMachine:
    """The host, or the host held to a lower level by `limit` or the environment variable TCOMP_CPU: `avx2`, or with
    features that are emulated `avx2+avx512bf16`.

    Raises UserError for an unknown level or feature, or a level that the host does not have.
    """
    wanted = limit or os.environ.get("TCOMP_CPU") or None
    return _detect(wanted)


@lru_cache(maxsize=8)
def _detect(wanted: str | None) -> CpuMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    host = _host_features()
    best = _best_level(host)
    level = best
    emulated: list[str] = []
    if wanted is not None:
        wanted, *emulated = wanted.split("+")
    for feature in emulated:
        if feature not in EMULATED:
            raise UserError(f"the CPU feature {feature!r} cannot be emulated", f"use one of {', '.join(EMULATED)}")
    if wanted is not None:
        if wanted not in LEVELS:
            raise UserError(f"unknown CPU level {wanted!r}", f"use one of {', '.join(LEVELS)}")
        if family_of(wanted) != family_of(best) or LEVELS.index(wanted) < LEVELS.index(best):
            raise UserError(f"this machine has no {wanted} (its level is {best})", "unset TCOMP_CPU")
        level = wanted
    l1, l2, l3 = _cache_bytes()
    return CpuMachine(
        name=level,
        features=_level_features(level, host),
        lanes_f32={BF16_DOT: 16, "avx512": 16, "avx2": 8}.get(level, 4),
        vector_registers={BF16_DOT: 32, "avx512": 32, "neon": 32}.get(level, 16),
        l1_bytes=l1,
        l2_bytes=l2,
        l3_bytes=l3,
        cores=_cores(),
        emulated=tuple(dict.fromkeys(f for f in emulated if f != level)),
    )


def _host_features() -> frozenset[str]:
    try:
        return frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)
    except RuntimeError:
        return frozenset()


def helpers_of(threads: int) -> int:
    """How many of a team's threads may be at other work while the rest run a kernel: work that memory binds, for which
    few threads do. So a kernel of a program on so many threads is run by these fewer, too."""
    return max(1, threads // 4) if threads > 1 else 0


def family_of(level: str) -> str:
    """x86, arm or generic."""
    return {"neon": "arm", "generic": "generic"}.get(level, "x86")


def _best_level(host: frozenset[str]) -> str:
    arch = platform.machine().lower()
    if arch in ("x86_64", "amd64"):
        if not host.issuperset(_AVX2):
            return "sse2"
        if not host.issuperset(_AVX512):
            return "avx2"
        return BF16_DOT if BF16_DOT in host else "avx512"
    return "neon" if arch in ("aarch64", "arm64") else "generic"


def _level_features(level: str, host: frozenset[str]) -> tuple[str, ...]:
    match level:
        case "avx512" | "avx512bf16":
            own = (BF16_DOT,) if level == BF16_DOT else ()
            names = _AVX2 + _AVX512 + own + tuple(f for f in _EXTRA if f in host)
        case "avx2":
            names = _AVX2
        case "sse2":
            names = ("sse2",)
        case "neon":
            names = ("neon",)
        case _:
            names = ()
    return tuple(sorted(names))


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cache_bytes() -> tuple[int, int, int]:
    """L1 data, L2 and L3 bytes from /sys; a modest guess for what is not told there."""
    sizes = {1: 32 << 10, 2: 512 << 10, 3: 8 << 20}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
            size = int(text.rstrip("KMG")) * unit
        except (OSError, ValueError):
            continue
        if level in sizes and size > 0:
            sizes[level] = size
    return sizes[1], sizes[2], sizes[3]
