"""Compiled kernels and what they are known by: keys, symbols, memory needs.

A start that finds all of its kernels in the cache needs this and not the generator.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import llvmlite
import llvmlite.binding as llvm

import tcomp
from tcomp.codegen.cache import SHARED_SOURCES, sources_digest
from tcomp.ir.content import content_text
from tcomp.ir.regions import tile_offsets
from tcomp.ir.tile import Kernel, Scope
from tcomp.machine.cpu import CpuMachine

SOURCES = (*SHARED_SOURCES, "codegen/cpu/*.py")
"""Files of what object code depends on."""


@dataclass(frozen=True)
class CompiledKernel:
    """`symbols[i]` is phase i's function in `object`. Bytes of scratch are per thread, of team for all."""

    symbols: tuple[str, ...]
    object: bytes
    scratch_bytes: int
    team_bytes: int


def kernel_key(kernel: Kernel, machine: CpuMachine) -> str:
    """A hash of all that the object code depends on."""
    version = getattr(tcomp, "__version__", "0")
    target = (machine.name, machine.features, machine.lanes_f32, machine.vector_registers, machine.triple)
    tools = (version, sources_digest(*SOURCES), llvmlite.__version__, llvm.llvm_version_info)
    text = content_text((kernel.name, kernel.operands, kernel.tiles, kernel.phases, target, tools))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def symbols_of(kernel: Kernel, key: str) -> tuple[str, ...]:
    return tuple(f"tc_{key}_{i}" for i in range(len(kernel.phases)))


def memory_needs(kernel: Kernel) -> tuple[int, int]:
    """Bytes of scratch per thread, and of the team region."""
    return tile_offsets(kernel, Scope.SCRATCH)[1], tile_offsets(kernel, Scope.TEAM)[1]
