"""Tensor maps: what cuTensorMapEncodeTiled accepts, and the 128 bytes that the virtual GPU stores it in.

The real object is opaque, so this layout is our own (`_LAYOUT`). The rules are those that cuda.h states for the
call; each broken one is a TensorMapError whose `code` is the CUresult that the driver gives. Dimension 0 is the
contiguous one. What is legal but not modelled here (interleaved layouts, packed types of less than a byte, the
128-byte swizzles of other atoms) is encoded, and refused when a kernel uses it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.errors import UserError

SIZE, ALIGN = 128, 64
INVALID_VALUE = 1  # CUDA_ERROR_INVALID_VALUE
TYPES = ("u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "f32_ftz", "tf32", "tf32_ftz",
         "16u4_align8b", "16u4_align16b", "16u6_align16b")  # fmt: skip
BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)
_FLOATS = range(6, 13)
_PACKED = range(13, 16)
SWIZZLE_BYTES = (0, 32, 64, 128, 128, 128, 128)
_MAGIC = 0x50414D54
_LAYOUT = struct.Struct("<I4B Q4Q 5I 5H 5B 2B")  # magic, type rank interleave swizzle, address, strides, dims - 1, ...


class TensorMapError(UserError):
    """An argument that the driver refuses; `code` is its CUresult."""

    code = INVALID_VALUE


@dataclass(frozen=True)
class TensorMap:
    """`strides` in bytes, of dimensions 1 and up; `dims`, `box` and `element_strides` in elements."""

    type: int
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    interleave: int = 0
    swizzle: int = 0
    l2_promotion: int = 0
    oob_fill: int = 0

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def element_bytes(self) -> int:
        return BYTES[self.type]

    @property
    def counts(self) -> tuple[int, ...]:
        """Elements along each dimension of the box in shared memory."""
        steps = (1, *self.element_strides[1:])
        return tuple(-(-b // s) for b, s in zip(self.box, steps, strict=True))

    def problem(self) -> str:
        """The rule that the fields break, "" when they go together (a kernel may have set them one by one)."""
        try:
            encode_tiled(self.type, self.rank, self.address, self.dims, self.strides, self.box, self.element_strides,
                         self.interleave, self.swizzle, self.l2_promotion, self.oob_fill)  # fmt: skip
        except TensorMapError as error:
            return error.message.removeprefix("cuTensorMapEncodeTiled: ")
        return ""

    def unmodelled(self) -> str:
        """Why the virtual GPU cannot copy with this map, "" when it can."""
        if self.type in _PACKED:
            return f"the packed type {TYPES[self.type]}"
        if self.interleave:
            return "an interleaved layout"
        if self.swizzle > 3:
            return "a 128-byte swizzle with another atom than 16 bytes"
        row = self.box[0] * self.element_bytes
        if self.swizzle and row != SWIZZLE_BYTES[self.swizzle]:
            return f"a box row of {row} bytes, narrower than its {SWIZZLE_BYTES[self.swizzle]}-byte swizzle"
        return ""


def encode_tiled(
    data_type: int, rank: int, address: int, dims: Sequence[int], strides: Sequence[int], box: Sequence[int],
    element_strides: Sequence[int], interleave: int = 0, swizzle: int = 0, l2_promotion: int = 0, oob_fill: int = 0,
    map_address: int = 0,
) -> bytes:  # fmt: skip
    """The 128 bytes of a map, from the arguments of cuTensorMapEncodeTiled in its order (enums as integers).

    `strides` has rank - 1 entries in bytes; `map_address` is where the caller will put the object. TensorMapError
    names the first rule that is broken."""
    _need(map_address % ALIGN == 0, f"the map's address {map_address:#x} is no multiple of {ALIGN}")
    _need(0 <= data_type < len(TYPES), f"data type {data_type} is not one of 0 to {len(TYPES) - 1}")
    _need(1 <= rank <= 5, f"rank {rank}: it must be 1 to 5")
    _need(0 <= interleave <= 2, f"interleave {interleave} is not one of 0, 1, 2")
    _need(0 <= swizzle < len(SWIZZLE_BYTES), f"swizzle {swizzle} is not one of 0 to {len(SWIZZLE_BYTES) - 1}")
    _need(0 <= l2_promotion <= 3, f"L2 promotion {l2_promotion} is not one of 0 to 3")
    _need(0 <= oob_fill <= 1, f"out-of-bounds fill {oob_fill} is not 0 or 1")
    _need(not interleave or rank >= 3, f"an interleaved layout needs rank 3 or more, not {rank}")
    _need(len(dims) >= rank and len(box) >= rank and len(element_strides) >= rank and len(strides) >= rank - 1,
          f"rank {rank} needs {rank} dimensions, boxes and element strides and {rank - 1} strides")  # fmt: skip
    dims, box, steps = tuple(dims[:rank]), tuple(box[:rank]), tuple(element_strides[:rank])
    strides = tuple(strides[: rank - 1])
    wide = data_type in (14, 15)
    align = 32 if interleave == 2 or wide else 16
    _need(address != 0 and address % align == 0, f"the global address {address:#x} is no multiple of {align}")
    for n, size in enumerate(dims):
        _need(1 <= size <= 1 << 32, f"globalDim[{n}] is {size}: it must be 1 to 2^32")
    for n, stride in enumerate(strides):
        _need(stride % align == 0 and 0 < stride < 1 << 40,
              f"globalStrides[{n}] is {stride} bytes: it must be a multiple of {align} under 2^40")  # fmt: skip
    for n, size in enumerate(box):
        _need(1 <= size <= 256, f"boxDim[{n}] is {size}: it must be 1 to 256")
    for n, step in enumerate(steps):
        _need(1 <= step <= 8 or (n == 0 and not interleave), f"elementStrides[{n}] is {step}: it must be 1 to 8")
    if data_type in _PACKED:
        _need(dims[0] % (128 if wide else 2) == 0, f"globalDim[0] is {dims[0]}: a packed type needs whole groups")
        _need(not wide or box[0] == 128, f"boxDim[0] is {box[0]}: this packed type needs 128")
        _need(data_type != 15 or not interleave, "this packed type cannot be interleaved")
        _need(data_type != 15 or swizzle in (0, 3, 4, 6), "this packed type does not have that swizzle")
        _need(data_type != 14 or swizzle in (0, 3, 4), "this packed type does not have that swizzle")
        row = {13: box[0] // 2, 14: box[0], 15: box[0]}[data_type]
    else:
        row = box[0] * BYTES[data_type]
    _need(interleave != 0 or row % 16 == 0, f"a box row has {row} bytes: it must be a multiple of 16")
    _need(interleave != 0 or not swizzle or row <= SWIZZLE_BYTES[swizzle],
          f"a box row has {row} bytes, more than the swizzle's {SWIZZLE_BYTES[swizzle]}")  # fmt: skip
    _need(interleave != 2 or swizzle == 1, "a 32-byte interleaved layout needs the 32-byte swizzle")
    _need(not oob_fill or data_type in _FLOATS, f"NaN fill needs a floating-point type, not {TYPES[data_type]}")
    steps = (1, *steps[1:]) if not interleave else steps
    return _pack(TensorMap(data_type, address, dims, strides, box, steps, interleave, swizzle, l2_promotion, oob_fill))


def _need(ok: bool, text: str) -> None:
    if not ok:
        raise TensorMapError(f"cuTensorMapEncodeTiled: {text}")


def _pack(t: TensorMap) -> bytes:
    def five(values: Sequence[int], less: int = 0) -> list[int]:
        return [v - less for v in values] + [0] * (5 - len(values))

    head = _LAYOUT.pack(
        _MAGIC, t.type, t.rank, t.interleave, t.swizzle, t.address, *five(t.strides)[:4], *five(t.dims, 1),
        *five(t.box), *five(t.element_strides), t.l2_promotion, t.oob_fill,
    )  # fmt: skip
    return head.ljust(SIZE, b"\0")


def decode(raw: bytes) -> TensorMap | None:
    """The map in these 128 bytes; None where they are not one."""
    magic, kind, rank, interleave, swizzle, address, *rest = _LAYOUT.unpack(raw[: _LAYOUT.size])
    if magic != _MAGIC or not 1 <= rank <= 5 or kind >= len(TYPES):
        return None
    return TensorMap(
        kind, address, tuple(d + 1 for d in rest[4 : 4 + rank]), tuple(rest[: rank - 1]), tuple(rest[9 : 9 + rank]),
        tuple(rest[14 : 14 + rank]), interleave, swizzle, rest[19], rest[20],
    )  # fmt: skip


@dataclass(frozen=True)
class Field:
    """Where tensormap.replace puts a field: `start`, then `count` numbers of `size` bytes."""

    start: int
    size: int
    count: int = 1


FIELDS = {
    "elemtype": Field(4, 1), "rank": Field(5, 1), "interleave_layout": Field(6, 1), "swizzle_mode": Field(7, 1),
    "global_address": Field(8, 8), "global_stride": Field(16, 8, 4), "global_dim": Field(48, 4, 5),
    "box_dim": Field(68, 2, 5), "element_stride": Field(78, 1, 5), "fill_mode": Field(84, 1),
}  # fmt: skip
_PTX_TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 10, 8, 9, 11, 12, 13, 14, 15)  # PTX's elemtype -> the driver's data type


def replaced(raw: bytes, name: str, ordinal: int, value: int) -> bytes:
    """tensormap.replace: these 128 bytes with one field changed. PTX counts ranks from 0."""
    f = FIELDS[name]
    if name == "elemtype":
        _need(0 <= value < len(_PTX_TYPES), f"element type {value} is not one of 0 to {len(_PTX_TYPES) - 1}")
        value = _PTX_TYPES[value]
    value = value + 1 if name == "rank" else value - 1 if name == "global_dim" else value
    _need(0 <= value < 1 << 8 * f.size, f"{name} {value} does not fit")
    out = bytearray(raw)
    out[0:4] = _MAGIC.to_bytes(4, "little")
    at = f.start + f.size * ordinal
    out[at : at + f.size] = value.to_bytes(f.size, "little")
    return bytes(out)
