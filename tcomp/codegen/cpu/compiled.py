"""Compiled kernels and what they are known by: keys, symbols, memory needs.

A start that finds all of its kernels in the cache needs this and not the generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

import tcomp
import tcomp.instructions as declarations
from tcomp.ir.content import content_text
from tcomp.ir.tile import Buffer, Kernel, Scope
from tcomp.machine.cpu import CpuMachine

ALIGNMENT = 64


@lru_cache(maxsize=1)
def generator_digest() -> str:
    """A hash of the generator's own source files, declarations of instructions included: a changed generator finds none
    of the old one's objects."""
    digest = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), *Path(declarations.__file__).parent.glob("vector*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


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
    tools = (version, generator_digest(), llvmlite.__version__, llvm.llvm_version_info)
    text = content_text((kernel.name, kernel.operands, kernel.tiles, kernel.phases, target, tools))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def symbols_of(kernel: Kernel, key: str) -> tuple[str, ...]:
    return tuple(f"tc_{key}_{i}" for i in range(len(kernel.phases)))


def memory_needs(kernel: Kernel) -> tuple[int, int]:
    """Bytes of scratch per thread, and of the team region."""
    return tile_offsets(kernel.tiles, Scope.SCRATCH)[1], tile_offsets(kernel.tiles, Scope.TEAM)[1]


def tile_offsets(tiles: Sequence[Buffer], where: Scope) -> tuple[dict[str, int], int]:
    """Byte offsets of the tiles in one scope, 64-byte aligned, and the bytes they need together."""
    offsets: dict[str, int] = {}
    end = 0
    for t in tiles:
        if t.scope is where:
            offsets[t.name] = end
            end += t.ring * copy_bytes(t)
    return offsets, end


def copy_bytes(tile: Buffer) -> int:
    """From one copy of a tile to what follows it: a power of two would put both on the same cache sets."""
    return -(-tile.bytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT
