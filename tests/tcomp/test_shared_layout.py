"""Layouts of shared tiles that threads write along rows and read along columns: where warps meet no bank twice."""

from __future__ import annotations

import pytest

from tcomp.dsl.ast import DType
from tcomp.ir.tile import Buffer, Pitched, Scope, Spread
from tcomp.schedule.gpu.shared_layout import shared_layout

COLUMNS = Spread(8, "x", 8)


def tile(rows: int, dtype: DType) -> Buffer:
    return Buffer("T", dtype, (rows, 64), Scope.SCRATCH)


@pytest.mark.parametrize("grain", [8, 16])
def test_a_transposed_tile_of_bytes_has_gaps_after_the_rows_of_a_lane(grain: int) -> None:
    written = (Spread(1, "y", 4, "y", 8, grain), COLUMNS)
    read = (Spread(grain, "x", 8), Spread(1, "y", 4, "y", 8, 8))
    found = shared_layout(tile(8 * grain, DType.E4M3), [written, read])
    assert found == Pitched(64, grain, 8)
    assert Buffer("T", DType.E4M3, (8 * grain, 64), Scope.SHARED, found).bytes == 8 * grain * 64 + 8 * 8


@pytest.mark.parametrize("dtype, pitch", [(DType.F32, 68), (DType.E4M3, 80)])
def test_other_tiles_are_padded(dtype: DType, pitch: int) -> None:
    """Of whole words, or accessed by what no axis shares out."""
    written = (Spread(1, "y", 4, "y", 8, 8), COLUMNS)
    uses = [written, written if dtype is DType.F32 else None]
    assert shared_layout(tile(64, dtype), uses) == Pitched(pitch)


def test_rows_as_long_as_the_banks_end_half_way_round_them() -> None:
    """Four rows of 128 bytes, of which a warp writes 64 each, would begin in the same bank."""
    written = (Spread(1, "y", 4, "y", 8, 8), COLUMNS)
    read = (Spread(8, "x", 8), Spread(1, "y", 4, "y", 8, 8))
    assert shared_layout(Buffer("T", DType.E4M3, (64, 128), Scope.SCRATCH), [written, read]) == Pitched(192, 8, 8)


def test_a_vector_of_which_lanes_read_eight_words_has_gaps() -> None:
    """Eight lanes that read four words each, eight apart, meet in half of the banks; one word each, they do not."""
    vector = Buffer("T", DType.F32, (128,), Scope.SCRATCH)
    eight, one = (Spread(8, "x", 8),), (Spread(1, "x", 8, "y", 16, 8),)
    found = shared_layout(vector, [one, eight])
    assert found == Pitched(128, 32, 4)
    assert Buffer("T", DType.F32, (128,), Scope.SHARED, found).elements == 128 + 4 * 4
    assert shared_layout(vector, [one, (Spread(4, "x", 8),)]) == vector.layout
