"""Layouts: where the elements of a tile lie in memory, or in the registers of a block's threads."""

from __future__ import annotations

import math
from dataclasses import dataclass

SWIZZLE_PERIOD = 1024
"""Bytes after which a swizzle pattern repeats, and what a swizzled tile's address is a multiple of"""


@dataclass(frozen=True, slots=True)
class RowMajor:
    """Elements in the order of the shape, last axis contiguous."""


@dataclass(frozen=True, slots=True)
class Panels:
    """`axis` cut in panels of `width`: [ceil(shape[axis] / width)][other axes in order][width].

    What a register-tiled contraction reads with unit stride; the rest of the last panel is zero. With `group` > 1 the
    axis `grouped` is cut in groups of so many, zeros behind its end, and a group lies side by side:
    [ceil(shape[axis] / width)][other axes in order, ceil(shape[grouped] / group) of that one][width][group].
    Vector instructions that sum over a group read it as one word.
    """

    axis: int
    width: int
    group: int = 1
    grouped: int = -1


@dataclass(frozen=True, slots=True)
class Pitched:
    """Row-major with rows (the last axis) `pitch` elements apart: padding against shared-memory bank conflicts. After
    every `group` rows (a power of two) lie `skew` more elements: no instruction of tensor cores reads such a tile. A
    vector has rows of one element."""

    pitch: int
    group: int = 1
    skew: int = 0


@dataclass(frozen=True, slots=True)
class Shifted:
    """A vector from anywhere in memory, as the copy engine brings it: a copy begins at a multiple of 16 bytes, so the
    vector begins less than `room` elements (16 bytes) behind the tile's beginning; how many, its place in memory tells.
    """

    room: int


@dataclass(frozen=True, slots=True)
class Swizzled:
    """What tensor cores and the copy engine read without bank conflicts: rows (the last axis) cut in panels of `width`
    bytes (32, 64 or 128), stored [panel][row][width bytes], 16-byte granules of neighbouring rows in different places.

    The byte at offset a of such a tile, whose copies begin at multiples of 1024, lies at
    a ^ (((a >> 7) & (width // 16 - 1)) << 4). The rows of a panel are as many as the outer axes have together, rounded
    up to whole 1024 bytes. Source: PTX ISA, section 5.5.7 (swizzling modes).
    """

    width: int

    @classmethod
    def of_row(cls, size: int) -> Swizzled | None:
        """The widest for rows of `size` bytes; None where they are no whole panels of any."""
        return next((cls(w) for w in (128, 64, 32) if size % w == 0), None)

    @property
    def rows(self) -> int:
        """Rows after which the pattern repeats."""
        return SWIZZLE_PERIOD // self.width

    def panel_rows(self, shape: tuple[int, ...]) -> int:
        """Stored rows of a panel of a tile of this shape."""
        return -(-math.prod(shape[:-1]) // self.rows) * self.rows

    def offset(self, shape: tuple[int, ...], itemsize: int, index: tuple[int, ...]) -> int:
        """Byte offset of an element in its tile."""
        row = 0
        for i, n in zip(index[:-1], shape[:-1], strict=True):
            row = row * n + i
        panel, column = divmod(index[-1] * itemsize, self.width)
        a = (panel * self.panel_rows(shape) + row) * self.width + column
        return a ^ (((a >> 7) & (self.width // 16 - 1)) << 4)


@dataclass(frozen=True, slots=True)
class Spread:
    """How the threads of a GPU block share the values of one axis (or tile dimension).

    `o` is a value's offset from the axis's start. Along warp dimension `warp` ("x" or "y"; "" when warps do not
    divide it) it belongs to warp `(o // warp_tile) % warps`; within that warp's tile, r = o % warp_tile, along lane
    dimension `lane` to lane `(r // grain) % lanes`. What a thread has left over it takes in turns:

        o = ((warp_turn * warps + warp) * warp_tile) + ((lane_turn * lanes + lane) * grain) + v,   0 <= v < grain

    so neighbouring lanes take neighbouring groups of `grain` values (coalesced), and a thread's `grain`
    consecutive values are one access of up to 128 bits. Without `warp`, warp_tile is 0 and the tile is the whole
    block. With neither, every thread takes all values, `grain` at a time. Threads along a dimension that no axis of
    a Compute uses do the same work as their neighbours; only the first of them writes memory.
    """

    grain: int = 1
    lane: str = ""
    lanes: int = 1
    warp: str = ""
    warps: int = 1
    warp_tile: int = 0

    def warp_turns(self, block: int) -> int:
        """Turns that a warp takes over a block of that many values."""
        return -(-block // (self.warps * self.warp_tile)) if self.warp else 1

    def present(self, block: int, turn: int) -> int:
        """Warps that have a tile in that turn; those of the others would lie past the block's end."""
        return min(self.warps, -(-block // self.warp_tile) - turn * self.warps) if self.warp else 1

    def lane_turns(self, block: int) -> int:
        """Turns that a lane takes within one warp tile."""
        return -(-(self.warp_tile if self.warp else block) // (self.lanes * self.grain))

    def per_thread(self, block: int) -> int:
        """Values one thread takes of a block, those past its end included."""
        return self.warp_turns(block) * self.lane_turns(block) * self.grain


SERIAL = Spread()


@dataclass(frozen=True, slots=True)
class Fragment:
    """A tile in registers: dimension i is shared out by `spreads[i]`, and threads along lane or warp dimensions
    that none of them uses hold copies. A thread's element along dimension i is numbered
    (warp_turn * lane_turns + lane_turn) * grain + v."""

    spreads: tuple[Spread, ...]


Layout = RowMajor | Panels | Pitched | Shifted | Swizzled | Fragment
