"""Fragment layouts: each names every element once, and they are those of the PTX ISA, written out here by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tcomp.instructions import INSTRUCTIONS, FragmentLayout, Instruction, MatrixLoad
from tcomp.instructions.layout import accumulator, columns_operand, rows_operand, warpgroup
from tcomp.ir.tile import Spread

Place = Callable[[int, int], tuple[int, int]]


def quad(lane: int) -> tuple[int, int]:
    return lane >> 2, lane & 3


def a16(lane: int, i: int) -> tuple[int, int]:
    g, t = quad(lane)
    return g + 8 * (i >> 1 & 1), 2 * t + (i & 1) + 8 * (i >> 2)


def b16(lane: int, i: int) -> tuple[int, int]:
    g, t = quad(lane)
    return 2 * t + (i & 1) + 8 * (i >> 1), g


def a32(lane: int, i: int) -> tuple[int, int]:
    g, t = quad(lane)
    return g + 8 * (i & 1), t + 4 * (i >> 1)


def b32(lane: int, i: int) -> tuple[int, int]:
    g, t = quad(lane)
    return t + 4 * i, g


def a8(lane: int, i: int) -> tuple[int, int]:
    g, t = quad(lane)
    return g + 8 * (i >> 2 & 1), 4 * t + (i & 3) + 16 * (i >> 3)


def b8(lane: int, i: int) -> tuple[int, int]:
    g, t = quad(lane)
    return 4 * t + (i & 3) + 16 * (i >> 2), g


def d(lane: int, i: int) -> tuple[int, int]:
    g, t = quad(lane)
    return g + 8 * (i >> 1 & 1), 8 * (i >> 2) + 2 * t + (i & 1)


LAYOUTS = [
    (rows_operand(16), a16), (columns_operand(16), b16), (rows_operand(32), a32), (columns_operand(32), b32),
    (rows_operand(8), a8), (columns_operand(8), b8), (accumulator(8), d), (accumulator(64), d),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "by_hand"), LAYOUTS, ids=lambda x: getattr(x, "__name__", ""))
def test_layouts_are_those_of_the_isa(layout: FragmentLayout, by_hand: Place) -> None:
    threads, elements = 1 << len(layout.threads), 1 << len(layout.elements)
    for t in range(threads):
        for i in range(elements):
            assert layout.place(t, i) == by_hand(t, i)


def layouts_of(i: Instruction) -> list[FragmentLayout]:
    return [i.left.layout, i.right.layout, i.result]


@pytest.mark.parametrize("i", INSTRUCTIONS, ids=lambda i: i.name)
def test_every_element_has_one_place(i: Instruction) -> None:
    for layout in layouts_of(i):
        places = [layout.place(t, e) for t in range(1 << len(layout.threads)) for e in range(1 << len(layout.elements))]
        rows, columns = layout.shape
        assert len(set(places)) == len(places) == rows * columns
        assert {(r, c) for r in range(rows) for c in range(columns)} == set(places)


def test_a_warpgroup_is_four_warps_of_sixteen_rows() -> None:
    layout = warpgroup(accumulator(256))
    assert layout.shape == (64, 256)
    assert all(
        layout.place(t, e) == (16 * (t >> 5) + d(t & 31, e)[0], d(t & 31, e)[1]) for t in range(128) for e in range(128)
    )


def test_accumulators_are_fragments_of_the_tile_ir() -> None:
    """rows: one value, 8 lanes along y; columns: pairs, 4 lanes along x; lane = 4 y + x."""
    rows, columns = Spread(1, "y", 8), Spread(2, "x", 4)
    layout = accumulator(16)
    for lane in range(32):
        for row in range(rows.lane_turns(16)):
            for column in range(columns.per_thread(16)):
                turn, v = divmod(column, 2)
                place = (8 * row + lane // 4, 8 * turn + 2 * (lane % 4) + v)
                assert layout.place(lane, turn * 4 + row * 2 + v) == place


def received(form: MatrixLoad, lane: int, register: int) -> list[tuple[int, int]]:
    """The (row, column) of the two elements that ldmatrix.x4 hands a lane in a register."""

    def pointed(source: int) -> tuple[int, int]:
        bits = [(r, c) for b, (r, c) in enumerate(form.lanes) if source >> b & 1]
        return sum(r for r, _ in bits), sum(c for _, c in bits)

    g, t = quad(lane)
    return [pointed(8 * register + 2 * t + e) if form.transposed else pointed(8 * register + g) for e in (0, 1)]


@pytest.mark.parametrize("i", [i for i in INSTRUCTIONS if i.family == "mma.sync" and i.k == 16], ids=lambda i: i.name)
@pytest.mark.parametrize("along_k", [True, False])
def test_matrix_loads_hand_each_lane_its_fragment(i: Instruction, along_k: bool) -> None:
    left, right = (f.along_k if along_k else f.across_k for f in (i.left, i.right))
    assert isinstance(left, MatrixLoad) and isinstance(right, MatrixLoad)
    for lane in range(32):
        g, t = quad(lane)
        for register in range(4):
            row, column = received(left, lane, register)[0]
            inside = [(row, column + 2 * t + e) for e in (0, 1)] if along_k else [
                (received(left, lane, register)[e][0] + g, received(left, lane, register)[e][1]) for e in (0, 1)
            ]  # fmt: skip
            assert inside == [i.left.layout.place(lane, 2 * register + e) for e in (0, 1)]
            k, n = received(right, lane, register)[0]
            inside = [(k + 2 * t + e, n) for e in (0, 1)] if along_k else [
                (received(right, lane, register)[e][0], received(right, lane, register)[e][1] + g) for e in (0, 1)
            ]  # fmt: skip
            wanted = [i.right.layout.place(lane, 2 * (register % 2) + e) for e in (0, 1)]
            assert inside == [(k, n + 8 * (register // 2)) for k, n in wanted]
