"""Tensor maps: what the GPU's copy engine (TMA) needs to know of a tensor to move tiles of it.

`TensorMap` is the record, made when a step is built; `encode` gives the 128 bytes that a kernel takes as an argument,
once the tensor has its address. Rules are those of cuTensorMapEncodeTiled (CUDA driver API, tensor map object).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from cuda.bindings import driver as cu

from tcomp.dsl.ast import DType
from tcomp.runtime.cuda.driver import call, error_of

BYTES = 128
_ALIGNMENT = 64
SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}
"""Bytes of a swizzled row, and the driver's name for the mode."""
PROMOTIONS = {0: "NONE", 64: "L2_64B", 128: "L2_128B", 256: "L2_256B"}

_TYPES = {
    DType.F64: "FLOAT64", DType.F32: "FLOAT32", DType.F16: "FLOAT16", DType.BF16: "BFLOAT16", DType.I32: "INT32",
    DType.E4M3: "UINT8", DType.E5M2: "UINT8",
}  # fmt: skip


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
            if not 1 <= extent <= 256:
                return f"the box has {extent} elements along dimension {d}, 1 to 256 are possible"
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


def encode(m: TensorMap, address: int) -> bytes:
    """The map of the tensor at a device address (a multiple of 16), as the 128 bytes that a kernel is given.

    ValueError for a map that breaks a rule, before the driver sees it; UserError where the driver refuses it (it has
    no tensor maps, say).
    """
    problem = m.problem() or ("" if address % 16 == 0 else f"the address {address:#x} is not a multiple of 16")
    if problem:
        raise ValueError(problem)
    kind = "TFLOAT32" if m.tf32 else _TYPES[m.dtype]
    fill = "NAN_REQUEST_ZERO_FMA" if m.nan_outside else "NONE"
    rank = len(m.shape)
    raw = (ctypes.c_uint8 * (BYTES + _ALIGNMENT))()
    start = -(-ctypes.addressof(raw) // _ALIGNMENT) * _ALIGNMENT
    status = _encoder()(
        start,
        int(getattr(cu.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{kind}")),
        rank,
        address,
        (ctypes.c_uint64 * rank)(*m.shape),
        (ctypes.c_uint64 * rank)(*m.strides),
        (ctypes.c_uint32 * rank)(*m.box),
        (ctypes.c_uint32 * rank)(*(m.steps or (1,) * rank)),
        int(cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(getattr(cu.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{SWIZZLES[m.swizzle]}")),
        int(getattr(cu.CUtensorMapL2promotion, f"CU_TENSOR_MAP_L2_PROMOTION_{PROMOTIONS[m.promotion]}")),
        int(getattr(cu.CUtensorMapFloatOOBfill, f"CU_TENSOR_MAP_FLOAT_OOB_FILL_{fill}")),
    )
    if status:
        raise error_of(cu.CUresult(status), "cuTensorMapEncodeTiled")
    return ctypes.string_at(start, BYTES)


@cache
def _encoder() -> Callable[..., int]:
    """The driver's function itself: it wants the map 64-byte aligned, and the object that cuda-python's own wrapper
    hands it is not."""
    found = call(cu.cuGetProcAddress, b"cuTensorMapEncodeTiled", 12000, 0)
    address = int(found[0] if isinstance(found, tuple) else found)
    i, p = ctypes.c_int32, ctypes.c_void_p
    kinds = (p, i, ctypes.c_uint32, ctypes.c_uint64, p, p, p, p, i, i, i, i)
    return ctypes.CFUNCTYPE(i, *kinds)(address)
