"""Tiles filled by packing on the CPU; rows gathered and scattered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import DType, Num
from tcomp.ir.tile import Compute, Loop, Pack, Panels, RowMajor, Statement
from tcomp.machine.cpu import CpuMachine
from tests.reference.tile_ir import at, op, operand
from tests.tcomp.cpu.support import F32_MACHINES, axis, dealt, kernel, normal, run, scratch, shown, tile_axis

ON = F32_MACHINES


SHAPES = [(16, 16), (1, 1), (48, 40), (50, 33), (17, 100), (100, 17)]
PACKED = [
    (layout, source, shape) for layout in ("panels", "rows") for source in ("rows", "columns") for shape in SHAPES
]
PACKED += [("panels" if i % 2 else "rows", "planes", shape) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize(("packed", "machine"), dealt(PACKED, ON, 2), ids=shown)
def test_packing_fills_the_whole_tile(
    packed: tuple[str, str, tuple[int, int]], machine: CpuMachine, objects: Path
) -> None:
    """Zeros stand behind what there is; panels that begin behind it keep what was there: nobody reads them."""
    layout, source, (n, k) = packed
    nc, kc = 50, 40  # the tile; its axes stop at the source's end
    width = 2 * machine.lanes_f32
    tile = scratch("P", nc, kc, layout=Panels(0, width) if layout == "panels" else RowMajor())
    axes = (tile_axis("n", nc, n), tile_axis("k", kc, k))
    shapes = {"rows": (n, k), "columns": (k, n), "planes": (n, k, 3)}
    access = {"rows": at("W", "n", "k"), "columns": at("W", "k", "n"), "planes": at("W", "n", "k", 1)}[source]
    whole = (axis("a", nc), axis("b", kc))
    copy = Compute(at("Y", op("+", "n.0", "a"), op("+", "k.0", "b")), at("P", "a", "b"), whole)
    inner = Loop(
        "k.0", Num(0), Num(k), kc, "seq", (Compute(at("P", "a", "b"), Num(9.0), whole), Pack("P", axes, access), copy)
    )
    body = Loop("n.0", Num(0), Num(n), nc, "seq", (inner,))
    rows, columns = -(-n // nc) * nc, -(-k // kc) * kc
    built = kernel([operand("W", *shapes[source]), operand("Y", rows, columns)], [body], (tile,))
    w = normal(*shapes[source])
    out = run(built, machine, objects, {"W": w})
    expected = np.zeros((rows, columns), np.float32)
    expected[:n, :k] = {"rows": w, "columns": w.T, "planes": w[..., 1] if w.ndim == 3 else w}[source]
    if layout == "panels":
        last = (n - 1) // nc * nc
        expected[last + -(-(n - last) // width) * width :] = 9.0
    np.testing.assert_array_equal(out["Y"], expected)


@pytest.mark.parametrize(("by", "asked"), [("copy", True), ("prefetch", False)])
def test_a_copy_asks_for_its_next_rows_where_nobody_has_before(by: str, asked: bool, machine: CpuMachine) -> None:
    width = 2 * machine.lanes_f32
    axes = (tile_axis("n", 3 * width, 3 * width), tile_axis("k", 40, 40))
    pack = Pack("P", axes, at("W", "k", "n"), by)
    body = Loop("n.0", Num(0), Num(3 * width), 3 * width, "seq", (Loop("k.0", Num(0), Num(40), 40, "seq", (pack,)),))
    tile = scratch("P", 3 * width, 40, layout=Panels(0, width))
    text = kernel_assembly(kernel([operand("W", 40, 3 * width)], [body], (tile,)), machine)
    assert ("prefetch" in text or "prfm" in text) == asked


def test_rows_are_gathered_and_scattered_in_order(machine: CpuMachine, objects: Path) -> None:
    t, v, c = 30, 7, 21
    lanes = machine.lanes_f32
    row = at("ids", "t")
    axes = (axis("t", t), axis("c", c, 1, lanes))
    body: list[Statement] = [
        Compute(at("x", "t", "c"), op("+", at("W", row, "c"), at("P", "t", "c")), axes),
        Compute(at("dW", row, "c"), at("g", "t", "c"), axes, accumulate=True, reducer="sum", distinct=False),
        Compute(
            at("n", row), Num(1), (axis("t", t, 2, lanes),), accumulate=True, reducer="sum", distinct=False,
        ),
        Compute(at("top", "t"), at("W", row, 0), (axis("t", t, 1, lanes),)),
    ]  # fmt: skip
    operands = [
        operand("ids", t, dtype=DType.I32), operand("W", v, c), operand("P", t, c), operand("g", t, c),
        operand("x", t, c), operand("dW", v, c), operand("n", v, dtype=DType.I32), operand("top", t),
    ]  # fmt: skip
    ids = np.random.default_rng(0).integers(0, v, t).astype(np.int32)
    w, p, g = normal(v, c), normal(t, c, seed=1), normal(t, c, seed=2)
    start = normal(v, c, seed=3)
    out = run(kernel(operands, body), machine, objects, {"ids": ids, "W": w, "P": p, "g": g, "dW": start, "n": 0})
    np.testing.assert_array_equal(out["x"], w[ids] + p)
    expected = start.copy()
    for i, one in enumerate(ids):
        expected[one] += g[i]
    np.testing.assert_array_equal(out["dW"], expected)
    np.testing.assert_array_equal(out["n"], np.bincount(ids, minlength=v))
    np.testing.assert_array_equal(out["top"], w[ids, 0])
