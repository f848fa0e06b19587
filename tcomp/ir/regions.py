"""Where tiles lie beside the arena: in a core's scratch, and in what all cores or blocks share. Code generators address
tiles in these regions, and plans count their bytes."""

from __future__ import annotations

from collections.abc import Iterable

from tcomp.ir.tile import Buffer, Kernel, Scope

CORE_ALIGNMENT = 64
BLOCK_ALIGNMENT = 256
SHARED = (Scope.TEAM, Scope.WORDS)
"""Scopes of the regions that all cores or blocks of a kernel share."""


def tile_offsets(kernel: Kernel, scope: Scope) -> tuple[dict[str, int], int]:
    """Byte offsets of the kernel's tiles in a scope's region, and the region's bytes."""
    offsets: dict[str, int] = {}
    end = 0
    for t in kernel.tiles:
        if t.scope is scope:
            offsets[t.name] = end
            end += _up(t.bytes, BLOCK_ALIGNMENT) if kernel.blocks is not None else t.ring * copy_bytes(t)
    return offsets, end


def copy_bytes(tile: Buffer) -> int:
    """From one copy of a core's tile to what follows it: a power of two would put both on the same cache sets."""
    return _up(tile.bytes, CORE_ALIGNMENT) + CORE_ALIGNMENT


def region_bytes(kernels: Iterable[Kernel], *scopes: Scope) -> int:
    """Bytes of regions that serve each of the kernels."""
    each = [[tile_offsets(k, scope)[1] for scope in scopes] for k in kernels]
    return sum(max(sizes) for sizes in zip(*each, strict=True))


def largest_region(kernels: Iterable[Kernel], *scopes: Scope) -> str:
    """The name of the kernel that takes most of these regions, "" where none takes anything."""
    each = [(sum(tile_offsets(k, scope)[1] for scope in scopes), k.name) for k in kernels]
    most, name = max(each, key=lambda taken: taken[0], default=(0, ""))
    return name if most else ""


def _up(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
