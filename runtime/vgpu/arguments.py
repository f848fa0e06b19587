"""The arguments of a compiled kernel's launches on a `Device`: pointers, then tensor maps encoded for them."""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.codegen.nvptx.launch import LaunchShape
from tcomp.dsl.ast import DType
from tcomp.ir.tensor_map import TensorMap
from tcomp.runtime.vgpu.tensor_map import SWIZZLE_BYTES, TYPES, encode_tiled

_TYPES = {DType.I32: "s32", DType.E4M3: "u8", DType.E5M2: "u8"}


def tensor_maps(launch: LaunchShape, addresses: Mapping[str, int]) -> list[bytes]:
    """The maps that a launch takes, of operands at these addresses."""
    return [encoded(m.map, addresses[m.operand]) for m in launch.maps]


def encoded(m: TensorMap, address: int) -> bytes:
    """The map of a tensor at that address, in the virtual GPU's own form."""
    kind = TYPES.index("tf32" if m.tf32 else _TYPES.get(m.dtype, m.dtype.value))
    steps = m.steps or (1,) * len(m.shape)
    promotion = (0, 64, 128, 256).index(m.promotion)
    return encode_tiled(kind, len(m.shape), address, m.shape, m.strides, m.box, steps, 0,
                        SWIZZLE_BYTES.index(m.swizzle), promotion, int(m.nan_outside))  # fmt: skip
