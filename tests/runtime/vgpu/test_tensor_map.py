"""Tensor maps: the rules of cuTensorMapEncodeTiled, and that a map reads back as it was written."""

from __future__ import annotations

from typing import Any

import pytest

from tcomp.runtime.vgpu import tensor_map
from tcomp.runtime.vgpu.tensor_map import TensorMapError, decode, encode_tiled

GOOD: dict[str, Any] = {
    "data_type": 9, "rank": 2, "address": 0x7F0000000000, "dims": (768, 1000), "strides": (1536,), "box": (64, 128),
    "element_strides": (1, 1), "interleave": 0, "swizzle": 3, "l2_promotion": 2, "oob_fill": 0, "map_address": 64,
}  # fmt: skip


def test_a_map_reads_back() -> None:
    raw = encode_tiled(**GOOD)
    t = decode(raw)
    assert len(raw) == 128 and t is not None
    assert (t.type, t.rank, t.address, t.dims, t.strides) == (9, 2, GOOD["address"], (768, 1000), (1536,))
    assert (t.box, t.element_strides, t.swizzle, t.l2_promotion, t.oob_fill) == ((64, 128), (1, 1), 3, 2, 0)
    assert t.unmodelled() == ""


def test_the_largest_sizes_fit() -> None:
    raw = encode_tiled(0, 5, 16, (1 << 32,) * 5, ((1 << 40) - 16,) * 4, (256,) * 5, (1, 8, 8, 8, 8))
    t = decode(raw)
    assert t is not None and t.dims == (1 << 32,) * 5 and t.counts == (256, 32, 32, 32, 32)


@pytest.mark.parametrize(("change", "text"), [
    ({"map_address": 32}, "multiple of 64"),
    ({"data_type": 16}, "data type 16"),
    ({"rank": 0}, "rank 0"),
    ({"rank": 6}, "rank 6"),
    ({"interleave": 3}, "interleave 3"),
    ({"interleave": 1}, "needs rank 3"),
    ({"swizzle": 7}, "swizzle 7"),
    ({"l2_promotion": 4}, "L2 promotion 4"),
    ({"oob_fill": 2}, "fill 2"),
    ({"address": 0}, "global address"),
    ({"address": 0x7F0000000008}, "multiple of 16"),
    ({"dims": (0, 1000)}, "globalDim[0]"),
    ({"dims": (768, (1 << 32) + 1)}, "globalDim[1]"),
    ({"strides": (1528,)}, "multiple of 16"),
    ({"strides": (1 << 40,)}, "under 2^40"),
    ({"box": (64, 0)}, "boxDim[1]"),
    ({"box": (64, 257)}, "boxDim[1]"),
    ({"box": (4, 128)}, "multiple of 16"),
    ({"box": (128, 128)}, "more than the swizzle's 128"),
    ({"swizzle": 2}, "more than the swizzle's 64"),
    ({"element_strides": (1, 9)}, "elementStrides[1]"),
    ({"element_strides": (1, 0)}, "elementStrides[1]"),
    ({"data_type": 1, "oob_fill": 1}, "NaN fill"),
    ({"strides": ()}, "needs 2 dimensions"),
    ({"data_type": 14, "box": (64, 1)}, "globalDim[0]|boxDim[0]"),
])  # fmt: skip
def test_a_broken_rule_is_an_invalid_value(change: dict[str, Any], text: str) -> None:
    with pytest.raises(TensorMapError) as error:
        encode_tiled(**{**GOOD, **change})
    assert error.value.code == tensor_map.INVALID_VALUE == 1
    assert any(t in str(error.value) for t in text.split("|"))


def test_what_is_legal_but_not_modelled_says_so_when_used() -> None:
    t = decode(encode_tiled(**{**GOOD, "swizzle": 4}))
    assert t is not None and "another atom" in t.unmodelled()
    t = decode(encode_tiled(**{**GOOD, "box": (32, 8)}))
    assert t is not None and "narrower than its 128-byte swizzle" in t.unmodelled()


def test_the_element_stride_of_dimension_zero_is_ignored() -> None:
    t = decode(encode_tiled(**{**GOOD, "element_strides": (99, 2)}))
    assert t is not None and t.counts == (64, 64)


def test_other_bytes_are_no_map() -> None:
    assert decode(bytes(128)) is None
