"""Tensor maps: the rules are known before the driver is asked, and the driver agrees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tcomp.dsl.ast import DType
from tcomp.ir.tensor_map import TensorMap, row_major
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.gpus import gpus
from tcomp.runtime.cuda.tensor_map import encode

GOOD = row_major(DType.BF16, (1024, 768), (128, 64), swizzle=128)
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"shape": (8,) * 6, "strides": (16,) * 5, "box": (8,) * 6}, "1 to 5 dimensions"),
    "ranks differ": ({"box": (64,)}, "of one rank"),
    "empty": ({"shape": (0, 1024)}, "dimension 0 has 0 elements"),
    "stride": ({"strides": (1538,)}, "multiple of 16"),
    "large box": ({"box": (8, 257)}, "257 elements along dimension 1"),
    "narrow box": ({"box": (4, 8), "swizzle": 0}, "8 bytes; it must be a multiple of 16"),
    "wide box": ({"box": (128, 8)}, "256 bytes, more than the 128 of the swizzle"),
    "step": ({"steps": (1, 9)}, "step along dimension 1 is 9"),
    "swizzle": ({"swizzle": 48}, "no swizzle of 48"),
    "tf32": ({"tf32": True}, "cannot be rounded to tf32"),
    "nan": ({"dtype": DType.I32, "box": (32, 8), "nan_outside": True}, "no NaN"),
}


def test_a_row_major_tensor() -> None:
    assert TensorMap(DType.BF16, (768, 1024), (1536,), (64, 128), 128) == GOOD
    assert row_major(DType.F32, (3, 5, 8), (1, 5, 4)).strides == (32, 160)
    assert not GOOD.problem()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_named(name: str) -> None:
    changes, message = BROKEN[name]
    broken = replace(GOOD, **changes)
    assert message in broken.problem()
    with pytest.raises(ValueError, match=r"dimension|rank|multiple|elements|bytes|step|swizzle|NaN|tf32"):
        encode(broken, 1 << 20)


def test_an_address_must_be_aligned() -> None:
    with pytest.raises(ValueError, match="not a multiple of 16"):
        encode(GOOD, 8)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16, DType.E4M3, DType.I32])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_the_driver_takes_sound_maps(virtual: Any, dtype: DType, swizzle: int) -> None:
    context = Context(gpus()[0])
    address = context.memory(1 << 18)
    row = swizzle or 128
    m = row_major(dtype, (64, 1024 // dtype.bytes), (16, row // dtype.bytes), swizzle)
    raw = encode(m, address)
    assert len(raw) == 128 and any(raw)
    assert encode(m, address) == raw != encode(m, address + 4096)
    context.close()
