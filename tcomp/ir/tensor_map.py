"""Tensor maps: what a GPU's copy engine (TMA) needs to know of a tensor to move tiles of it.

`TensorMap` is the record that the compiler makes; the 128 bytes that a kernel takes are encoded from it once the tensor
has its address. Rules are those of cuTensorMapEncodeTiled (CUDA driver API, tensor map object).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tcomp.dsl.ast import Binary, Call, DType, Expr, Name, Num, accesses_in, names_in
from tcomp.ir.tile import Axis, Buffer, Pack, RowMajor, Shifted, Swizzled, Unpack

SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}
"""Bytes of a swizzled row, and the driver's name for the mode."""
MAX_BOX = 256
"""the most elements of a box along a dimension"""
PROMOTIONS = {0: "NONE", 64: "L2_64B", 128: "L2_128B", 256: "L2_256B"}
ALIGNED = 16
"""Bytes of which the place in memory where a box begins must be a multiple: Hopper takes any other coordinate along the
innermost dimension for an illegal instruction, which the PTX ISA does not say."""


@dataclass(frozen=True)
class TensorMap:
    """A tensor in device memory and the tile that one copy moves.

    Dimensions are innermost first: `shape` and `box` in elements, `strides` in bytes for every dimension but the
    innermost, whose elements are adjacent. `steps` takes every so many-th element. `swizzle` is 0, 32, 64 or 128 bytes;
    `promotion` is how much one request brings into L2. What lies outside of the tensor reads as zero, or as NaN with
    `nan_outside`. With `tf32`, f32 values are rounded to it as they are read.
    """

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0
    promotion: int = 128
    steps: tuple[int, ...] = ()
    nan_outside: bool = False
    tf32: bool = False

    def problem(self) -> str:
        """Why the driver would refuse this map; "" when it would not."""
        rank, size = len(self.shape), self.dtype.bytes
        if not 1 <= rank <= 5:
            return f"a tensor map has 1 to 5 dimensions, this one {rank}"
        if len(self.strides) != rank - 1 or len(self.box) != rank or len(self.steps) not in (0, rank):
            return "shape, strides (one fewer), box and steps must be of one rank"
        if self.swizzle not in SWIZZLES or self.promotion not in PROMOTIONS:
            return f"no swizzle of {self.swizzle} or L2 promotion of {self.promotion} bytes"
        for d, extent in enumerate(self.shape):
            if not 1 <= extent <= 1 << 32:
                return f"dimension {d} has {extent} elements, 1 to 2**32 are possible"
        for d, stride in enumerate(self.strides, 1):
            if stride % 16 or not 0 < stride < 1 << 40:
                return f"the stride of dimension {d} is {stride} bytes; it must be a multiple of 16 below 2**40"
        for d, extent in enumerate(self.box):
            if not 1 <= extent <= MAX_BOX:
                return f"the box has {extent} elements along dimension {d}, 1 to {MAX_BOX} are possible"
        for d, step in enumerate(self.steps):
            if not 1 <= step <= 8:
                return f"the step along dimension {d} is {step}, 1 to 8 are possible"
        row = self.box[0] * size
        if row % 16:
            return f"a row of the box has {row} bytes; it must be a multiple of 16"
        if self.swizzle and row > self.swizzle:
            return f"a row of the box has {row} bytes, more than the {self.swizzle} of the swizzle"
        if self.nan_outside and self.dtype in (DType.I32, DType.E4M3, DType.E5M2):
            return f"{self.dtype} has no NaN to read outside of the tensor"
        if self.tf32 and self.dtype is not DType.F32:
            return f"{self.dtype} values cannot be rounded to tf32"
        return ""


def row_major(dtype: DType, shape: tuple[int, ...], box: tuple[int, ...], swizzle: int = 0) -> TensorMap:
    """The map of a contiguous row-major tensor; `shape` and `box` outermost first, as a slot's shape is."""
    strides, size = [], dtype.bytes
    for extent in reversed(shape[1:]):
        size *= extent
        strides.append(size)
    return TensorMap(dtype, shape[::-1], tuple(strides), box[::-1], swizzle)


def tile_map(pack: Pack, tile: Buffer, operand: Buffer, parts: int = 1) -> TensorMap:
    """The map by which a `Pack` by tma fills its tile, one box (of a swizzled tile: one box for each panel); with
    `parts`, boxes of one part of so many along the tile's first dimension.

    A vector whose tensor has rows at unaligned places (`Shifted`) is read through a map of one dimension, by the number
    of its first element: `L[b, h, q]` of an odd number of queries is L at (b H + h) T + q. The box begins at the
    multiple of 16 bytes before it, and is that much larger. What lies past the row's end is then the next row's, not
    zero: for readers that leave out such places, as all but matrix instructions do.

    ValueError with the reason where the copy engine cannot do it: subscripts that are no plain index, another order or
    type of elements than the operand's, or a rule of tensor maps that the tile or the operand's shape breaks.
    """
    found = _map(pack, tile, operand, parts)
    if isinstance(tile.layout, Shifted):
        if math.prod(found.box[1:]) > 1 or parts > 1 or operand.elements >= 1 << 31:
            raise ValueError("it is no whole vector of a tensor of less than 2**31 elements")
        found = TensorMap(found.dtype, (operand.elements,), (), (tile.elements,))
    if problem := found.problem():
        raise ValueError(problem)
    return found


def result_map(unpack: Unpack, tile: Buffer, operand: Buffer) -> TensorMap:
    """The map by which an `Unpack` writes its tile, all of it or the rows of one group; nothing is written past a
    row's end. ValueError as of `tile_map`."""
    found = _map(unpack.reversed, tile, operand, unpack.groups)
    if problem := found.problem():
        raise ValueError(problem)
    return found


def _map(pack: Pack, tile: Buffer, operand: Buffer, parts: int) -> TensorMap:
    if tile.dtype is not operand.dtype:
        raise ValueError(f"its tile is {tile.dtype.value}, and a tensor copy converts nothing")
    blocks = {a.name: a.block for a in pack.axes}
    stops = {a.name: a for a in pack.axes}
    box, extents, walked = [], [], []
    for d, s in enumerate(pack.source.subscripts):
        if isinstance(s, Name) and s.id in blocks:
            walked.append(s.id)
            box.append(blocks[s.id] // (parts if len(walked) == 1 else 1))
            extents.append(min(operand.shape[d], _bound(stops[s.id])))
        elif names_in(s) & set(blocks) or accesses_in(s):
            raise ValueError(f"subscript {d} is no plain index")
        else:
            box.append(1)
            extents.append(operand.shape[d])
    if walked != [a.name for a in pack.axes]:
        raise ValueError("its tile has the indices in another order, and a tensor copy transposes nothing")
    if not box:
        raise ValueError("it is a scalar")
    swizzle = 0
    if isinstance(tile.layout, Swizzled):
        swizzle = tile.layout.width
        box[-1] = min(box[-1], swizzle // tile.dtype.bytes)
    elif not isinstance(tile.layout, RowMajor | Shifted):
        raise ValueError("rows of its tile are padded, and a tensor copy writes none")
    strides, size = [], operand.dtype.bytes
    for extent in reversed(operand.shape[1:]):
        size *= extent
        strides.append(size)
    return TensorMap(operand.dtype, tuple(reversed(extents)), tuple(strides), tuple(reversed(box)), swizzle)


def _bound(axis: Axis) -> int:
    """Where the axis's last tile ends. ValueError where a tile in the middle may end early."""
    least = 1 << 62
    for e in _smaller_of(axis.stop):
        match e:
            case Num(int(n)):
                least = min(least, n)
            case Binary("+", Name(), Num(int(n))) if n % axis.block == 0:
                pass  # its own end, or that of an outer tile of whole tiles
            case _:
                raise ValueError(f"tiles of '{axis.name}' end inside other tiles")
    return least


def _smaller_of(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Call("min", (a, b)):
            return _smaller_of(a) + _smaller_of(b)
    return (e,)
