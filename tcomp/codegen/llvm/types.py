"""IR types of element types and of computed values.

Storage types (`DType`) and the kinds that values are computed in differ: 16-bit and 8-bit floats are stored narrow and
computed in f32; integers are i64 as scalars (addresses need it) and i32 along vector lanes.
"""

from __future__ import annotations

from functools import lru_cache
from math import copysign
from typing import Any, TypeAlias

from llvmlite import ir

from tcomp.dsl.ast import DType

POINTER = ir.PointerType()
I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
VOID = ir.VoidType()


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, for instructions that take or give it: bf16 values are handled as their bits."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


Type: TypeAlias = Any
IrValue: TypeAlias = Any
"""llvmlite has no type information: these names only say what is meant."""

_STORED = {"f64": F64, "f32": F32, "bf16": I16, "f16": F16, "e4m3": I8, "e5m2": I8, "i32": I32}
_KINDS = {"f64": "f64", "f32": "f32", "bf16": "f32", "f16": "f32", "e4m3": "f32", "e5m2": "f32", "i32": "int"}


def stored_type(dtype: DType) -> Type:
    """The IR type of one stored element (bf16 and 8-bit floats as their bits)."""
    return _STORED[dtype.value]


def kind_of(dtype: DType) -> str:
    """The kind ("f32", "f64" or "int") that elements of this type are computed in."""
    return _KINDS[dtype.value]


def kind_type(kind: str, lanes: int) -> Type:
    """The IR type of a value: `lanes` = 0 for a scalar."""
    if kind == "int":
        return ir.VectorType(I32, lanes) if lanes else I64
    scalar = {"f32": F32, "f64": F64, "bool": I1}[kind]
    return ir.VectorType(scalar, lanes) if lanes else scalar


def lanes_of(t: Type) -> int:
    return t.count if isinstance(t, ir.VectorType) else 0


def like(t: Type, element: Type) -> Type:
    """`element` in the shape of `t`: a vector of as many lanes, or the scalar."""
    return ir.VectorType(element, t.count) if isinstance(t, ir.VectorType) else element


def constant(t: Type, value: float | int) -> ir.Constant:
    """A constant, the same in every lane."""
    if isinstance(t, ir.VectorType):
        return _in_each_lane(t.element, t.count, value, copysign(1.0, value))
    return ir.Constant(t, value)


@lru_cache(maxsize=1024)
def _in_each_lane(element: Type, lanes: int, value: float | int, sign: float) -> ir.Constant:
    """`sign` tells 0.0 from -0.0. (Constants belong to no module, and keep their text.)"""
    return ir.Constant(ir.VectorType(element, lanes), [ir.Constant(element, value)] * lanes)


@lru_cache(maxsize=1024)
def i32_lanes(*numbers: int) -> ir.Constant:
    """A vector of i32, such as the lanes that a shuffle takes."""
    return ir.Constant(ir.VectorType(I32, len(numbers)), [ir.Constant(I32, n) for n in numbers])


def mangle(t: Type) -> str:
    """The suffix of an overloaded intrinsic's name: v16f32."""
    if isinstance(t, ir.VectorType):
        return f"v{t.count}{mangle(t.element)}"
    if isinstance(t, ir.IntType):
        return f"i{t.width}"
    if isinstance(t, ir.PointerType):
        return "p0"
    return {"float": "f32", "double": "f64", "half": "f16"}[str(t)]
