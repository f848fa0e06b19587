"""Importing this registers every instruction the virtual GPU executes."""

from tcomp.runtime.vgpu import (
    op_async,
    op_atomic,
    op_bits,
    op_carry,
    op_compare,
    op_convert,
    op_float,
    op_integer,
    op_matrix,
    op_memory,
    op_warp,
)

__all__ = [
    "op_async",
    "op_atomic",
    "op_bits",
    "op_carry",
    "op_compare",
    "op_convert",
    "op_float",
    "op_integer",
    "op_matrix",
    "op_memory",
    "op_warp",
]
