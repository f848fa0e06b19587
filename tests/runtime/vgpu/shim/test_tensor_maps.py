"""cuTensorMapEncodeTiled: what it accepts and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import code, ok


def encode(cuda: Any, address: int, **changes: Any) -> tuple[Any, ...]:
    """A map of a 256 x 128 f32 matrix in boxes of 32 x 16, with changes."""
    a = {"rank": 2, "sizes": (128, 256), "strides": (512,), "box": (32, 16), "steps": (1, 1), "swizzle": 0, **changes}
    u32, u64 = cuda.cuuint32_t, cuda.cuuint64_t
    result: tuple[Any, ...] = cuda.cuTensorMapEncodeTiled(
        cuda.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT32, a["rank"], address,
        [u64(n) for n in a["sizes"]], [u64(n) for n in a["strides"]], [u32(n) for n in a["box"]],
        [u32(n) for n in a["steps"]], cuda.CUtensorMapInterleave(0), cuda.CUtensorMapSwizzle(a["swizzle"]),
        cuda.CUtensorMapL2promotion(0), cuda.CUtensorMapFloatOOBfill(0),
    )  # fmt: skip
    return result


def test_a_map_is_encoded(cuda: Any) -> None:
    a = ok(cuda.cuMemAlloc(256 * 512))
    assert ok(encode(cuda, int(a))) is not None
    assert ok(encode(cuda, int(a), swizzle=3)) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"box": (257, 16)}, {"box": (32, 0)}, {"strides": (500,)}, {"sizes": (0, 256)},
        {"steps": (1, 9)}, {"swizzle": 3, "box": (64, 16)}, {"box": (3, 16)},
    ],
)  # fmt: skip
def test_rules(cuda: Any, changes: dict[str, Any]) -> None:
    a = ok(cuda.cuMemAlloc(256 * 512))
    assert code(encode(cuda, int(a), **changes)) == "INVALID_VALUE"


def test_the_address_is_aligned(cuda: Any) -> None:
    a = ok(cuda.cuMemAlloc(256 * 512))
    assert code(encode(cuda, int(a) + 8)) == "INVALID_VALUE"


def test_before_hopper(virtual: Callable[..., VirtualDriver]) -> None:
    virtual("a100")
    from cuda.bindings import driver as cuda

    assert code(encode(cuda, int(ok(cuda.cuMemAlloc(256 * 512))))) == "NOT_SUPPORTED"
