"""Entries about tensor maps: the rules are those of tcomp.runtime.vgpu.tensor_map."""

from __future__ import annotations

import ctypes

from tcomp.errors import UserError
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.entries import entry, pointers


def _words(address: int, count: int) -> list[int]:
    if not address and count:
        raise fail("INVALID_VALUE")
    return list((ctypes.c_uint32 * count).from_address(address)) if count else []


@entry("cuTensorMapEncodeTiled", "piupppppiiii", 12000)
def cu_tensor_map_encode_tiled(
    context: Context, out: int, dtype: int, rank: int, address: int, sizes: int, strides: int, box: int,
    steps: int, interleave: int, swizzle: int, promotion: int, fill: int,
) -> None:  # fmt: skip
    """The 128-byte map of a tensor in global memory. INVALID_VALUE, with the rule in the log, for what TMA cannot
    address; NOT_SUPPORTED before compute capability 9.0. The 64-byte alignment that cuda.h gives the type is not
    asked of `out`: cuda-bindings keeps maps at any address, and passes them by value."""
    from tcomp.runtime.vgpu.tensor_map import encode_tiled

    if context.device.model.sm < 90:
        raise fail("NOT_SUPPORTED", "tensor maps need compute capability 9.0")
    if not out or not 1 <= rank <= 5 or not sizes or (rank > 1 and not strides):
        raise fail("INVALID_VALUE", f"a tensor map of rank {rank} at {out:#x}")
    try:
        encoded = encode_tiled(
            dtype, rank, address, pointers(sizes, rank), pointers(strides, rank - 1), _words(box, rank),
            _words(steps, rank), interleave, swizzle, promotion, fill,
        )  # fmt: skip
    except (UserError, ValueError) as e:
        raise fail("INVALID_VALUE", str(e)) from e
    ctypes.memmove(out, bytes(encoded), 128)
