"""What a CPU offers a kernel: vector features, lanes, registers, caches, cores.

`detect()` asks LLVM for the host's features and /sys for its caches, and narrows both to a level that code is
generated for (AVX-512, AVX2, SSE2, Arm NEON, or no vectors at all). A virtual machine may report a processor
name that its features contradict, so only the features count.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import llvmlite.binding as llvm

from tcomp.errors import UserError

LEVELS = ("avx512", "avx2", "sse2", "neon", "generic")
_AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2")
_AVX512 = ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_EXTRA = ("avx512bf16", "avx512fp16", "avx512vnni")
_LINE = 64


@dataclass(frozen=True)
class CpuMachine:
    """`name` is the level ("avx512"), `features` LLVM's feature names that code may use, sorted.

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

    @property
    def has_fma(self) -> bool:
        return "fma" in self.features or "neon" in self.features

    @property
    def llvm_cpu(self) -> str:
        """LLVM's processor name for this level: it sets the scheduling model, and is the same on all hosts."""
        return {"avx512": "x86-64-v4", "avx2": "x86-64-v3", "sse2": "x86-64"}.get(self.name, "generic")

    @property
    def llvm_features(self) -> str:
        """The feature string of the target machine; whole 512-bit registers are used where there are any."""
        flags = [f"+{f}" for f in self.features]
        if self.name == "avx512":
            flags.append("-prefer-256-bit")
        return ",".join(flags)

    @property
    def triple(self) -> str:
        return str(llvm.get_process_triple())


def detect(limit: str | None = None) -> CpuMachine:
    """The host, or the host held to a lower level by `limit` or the environment variable TCOMP_CPU.

    Raises UserError for an unknown level or one that the host does not have.
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
    if wanted is not None:
        if wanted not in LEVELS:
            raise UserError(f"unknown CPU level {wanted!r}", f"use one of {', '.join(LEVELS)}")
        if _family(wanted) != _family(best) or LEVELS.index(wanted) < LEVELS.index(best):
            raise UserError(f"this machine has no {wanted} (its level is {best})", "unset TCOMP_CPU")
        level = wanted
    l1, l2, l3 = _cache_bytes()
    return CpuMachine(
        name=level,
        features=_level_features(level, host),
        lanes_f32={"avx512": 16, "avx2": 8, "sse2": 4, "neon": 4, "generic": 4}[level],
        vector_registers={"avx512": 32, "avx2": 16, "sse2": 16, "neon": 32, "generic": 16}[level],
        l1_bytes=l1,
        l2_bytes=l2,
        l3_bytes=l3,
        cores=_cores(),
    )


def _host_features() -> frozenset[str]:
    try:
        return frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)
    except RuntimeError:
        return frozenset()


def _family(level: str) -> str:
    return {"avx512": "x86", "avx2": "x86", "sse2": "x86", "neon": "arm"}.get(level, "generic")


def _best_level(host: frozenset[str]) -> str:
    arch = platform.machine().lower()
    if arch in ("x86_64", "amd64"):
        if host.issuperset(_AVX2):
            return "avx512" if host.issuperset(_AVX512) else "avx2"
        return "sse2"
    return "neon" if arch in ("aarch64", "arm64") else "generic"


def _level_features(level: str, host: frozenset[str]) -> tuple[str, ...]:
    match level:
        case "avx512":
            names = _AVX2 + _AVX512 + tuple(f for f in _EXTRA if f in host)
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
