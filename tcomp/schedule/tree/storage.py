"""Where each temporary lives: as a tile of the loops that all its uses share, or whole when they share none.

loops m(512), n(192) around acc[m, n] and its only reader  -->  acc: a 512 x 192 tile, at [m - m.0, n - n.0]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import DType, Expr, Name, Num
from tcomp.ir.tile import Buffer, Scope
from tcomp.schedule.tree.nest import Leaf, LoopNode, ancestors


@dataclass(frozen=True)
class Storage:
    """A temporary's buffer; `origins[d]` is what to subtract from subscript d, None when the axis is dropped
    (a single element)."""

    buffer: Buffer
    origins: tuple[Expr | None, ...]


def reduction_loops(leaf: Leaf) -> list[LoopNode]:
    """The loops around an equation in which it accumulates, outermost first."""
    return [
        n
        for n in ancestors(leaf)
        if n.level.index in leaf.reduced
        and not n.trivial
        and not (leaf.partial_over == n.level.index and n.level.parallel)
    ]


def definition_path(leaf: Leaf) -> list[LoopNode]:
    """The loops in one turn of which the equation's result becomes complete."""
    path = ancestors(leaf)
    inner = reduction_loops(leaf)
    return path[: path.index(inner[0])] if inner else path


def common_path(paths: list[list[LoopNode]]) -> list[LoopNode]:
    """The longest shared beginning of loop paths."""
    shared: list[LoopNode] = []
    for nodes in zip(*paths, strict=False):
        if any(n is not nodes[0] for n in nodes):
            break
        shared.append(nodes[0])
    return shared


def blocks(path: list[LoopNode], extents: Mapping[str, int], chunk: dict[str, int]) -> dict[str, tuple[Expr, int]]:
    """Innermost tile start and size per index along a path; whole indices are absent."""
    out: dict[str, tuple[Expr, int]] = {}
    for node in path:
        if node.trivial:
            continue
        index = node.level.index
        size = node.level.block if node.level.block is not None else chunk[index]
        out[index] = (Name(node.level.variable), min(size, extents[index]))
    return out


def place(
    name: str,
    dtype: DType,
    axes: tuple[Expr, ...],
    shape: tuple[int, ...],
    uses: list[list[LoopNode]],
    room: Mapping[str, int],
    chunk: dict[str, int],
) -> Storage:
    """The buffer of one temporary, given the loop path of each of its uses. `room` are the extents that tiles of each
    index have room for."""
    path = common_path(uses)
    inside = blocks(path, room, chunk)
    dims: list[int] = []
    origins: list[Expr | None] = []
    for axis, full in zip(axes, shape, strict=True):
        if isinstance(axis, Name) and axis.id in inside:
            start, size = inside[axis.id]
            if size == 1:
                origins.append(None)
                continue
            origins.append(start)
            dims.append(size)
        elif isinstance(axis, Name) and full == 1 and room.get(axis.id, 1) == 1:
            origins.append(None)
        else:
            origins.append(Num(0))
            dims.append(max(full, room.get(axis.id, 0)) if isinstance(axis, Name) else full)
    scope = Scope.SCRATCH if any(n.level.parallel for n in path) else Scope.TEAM
    return Storage(Buffer(name, dtype, tuple(dims), scope), tuple(origins))
