"""The levels of a loop on a CPU: core / seq(...) / unroll(...) / vec."""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.dsl.ast import Span
from tcomp.dsl.errors import TcError
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.kernel_plan import LoopMap, TileLevel
from tcomp.schedule.resolve import ResolvedLevel

LEVELS = ("core", "seq", "unroll", "vec")


class CpuLevels:
    """Facts: lanes (f32 a vector), vector (how many of the op's narrowest elements, of `itemsize` bytes, are a vector),
    registers, l1, l2, l3 (bytes), cores."""

    def __init__(self, machine: CpuMachine, threads: int, itemsize: int = 4) -> None:
        self.facts: dict[str, int | float] = {
            "lanes": machine.lanes_f32,
            "vector": machine.lanes_f32 * 4 // itemsize,
            "registers": machine.vector_registers,
            "l1": machine.l1_bytes,
            "l2": machine.l2_bytes,
            "l3": machine.l3_bytes,
            "cores": threads,
        }

    def loop(self, name: str, levels: Sequence[ResolvedLevel], span: Span) -> LoopMap:
        tiles: list[TileLevel] = []
        unroll, vec, stage = 1, False, 0
        for level in levels:
            if level.kind not in LEVELS:
                raise TcError(
                    f"level '{level.kind}' does not exist on cpu",
                    level.span,
                    f"levels on cpu, outermost first: {', '.join(LEVELS)}",
                )
            rank = LEVELS.index(level.kind)
            if rank < stage or (rank == stage and level.kind != "seq" and stage > 0):
                raise TcError(
                    f"level '{level.kind}' of loop '{name}' comes too late",
                    level.span,
                    "write levels outermost first: core / seq(...) / unroll(...) / vec",
                )
            stage = rank
            block = _size(level)
            if level.kind in ("core", "seq"):
                if level.kind == "core" and tiles:
                    raise TcError(f"loop '{name}' is mapped to cores twice", level.span, "keep one core level")
                if level.kind == "seq" and block is None:
                    continue
                add_tile(tiles, TileLevel(name, len(tiles), level.kind, block, level.span))
            elif level.kind == "unroll":
                unroll = block or 1
            else:
                if block is not None:
                    hint = "write vec: the machine says how many lanes a vector has; unroll(2) / vec takes two vectors"
                    raise TcError("vec takes no number on cpu", level.span, hint)
                vec = True
        return LoopMap(name, tuple(tiles), unroll, vec, span=span)


def _size(level: ResolvedLevel) -> int | None:
    if not level.args:
        if level.kind == "unroll":
            raise TcError("unroll needs a factor", level.span, "write unroll(4)")
        return None
    if len(level.args) != 1:
        raise TcError(f"{level.kind} takes one number", level.span, f"write {level.kind}(64)")
    return level.args[0]


def add_tile(tiles: list[TileLevel], tile: TileLevel) -> None:
    """Append a tile level; tiles must not grow inward."""
    if tile.block is not None and tiles and (outer := tiles[-1].block) is not None and tile.block > outer:
        raise TcError(
            f"tile {tile.block} of loop '{tile.index}' is larger than the tile {outer} around it",
            tile.span,
            f"tiles must not grow inward: write {tile.kind}({outer}), or a larger tile around it",
        )
    tiles.append(tile)
