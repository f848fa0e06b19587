"""Tensor maps as the driver encodes them: the 128 bytes that a kernel takes as an argument, for the copy engine."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from cuda.bindings import driver as cu

from tcomp.dsl.ast import DType
from tcomp.ir.tensor_map import PROMOTIONS, SWIZZLES, TensorMap
from tcomp.runtime.cuda.driver import call, error_of

BYTES = 128
_ALIGNMENT = 64
_TYPES = {
    DType.F64: "FLOAT64", DType.F32: "FLOAT32", DType.F16: "FLOAT16", DType.BF16: "BFLOAT16", DType.I32: "INT32",
    DType.E4M3: "UINT8", DType.E5M2: "UINT8",
}  # fmt: skip


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
