"""Matrix products on the CPU: packed operands at awkward sizes, and the inner loop that comes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import Expr, Name, Num
from tcomp.ir.tile import Axis, Compute, Kernel, Loop, Pack, Panels, Statement
from tcomp.machine.cpu import CpuMachine
from tests.reference.tile_ir import at, fn, op, operand
from tests.tcomp.cpu.support import F32_MACHINES, MACHINES, axis, kernel, normal, run, scratch, tile_axis

ON = F32_MACHINES


def packed_matmul(
    m: int, n: int, k: int, lanes: int, mr: int, nv: int, mc: int, nc: int, kc: int, core: bool = True
) -> Kernel:
    """Y = X W^T as models/ops/linear.tc schedules it: n core / seq / unroll / vec, W packed at k."""
    n_stop: Expr = Name("n.c.stop") if core else Num(n)
    n_tile = Axis("n", Name("n.0"), fn("min", op("+", "n.0", nc), n_stop), nc, nv, lanes)
    m_tile, k_tile = tile_axis("m", mc, m, mr), tile_axis("k", kc, k)
    plain_n = Axis("n", n_tile.start, n_tile.stop, nc)
    product = op("*", at("X", "m", "k"), at("Wp", op("-", "n", "n.0"), op("-", "k", "k.0")))
    zero = Compute(at("Y", "m", "n"), Num(0.0), (m_tile, n_tile))
    add = Compute(at("Y", "m", "n"), product, (m_tile, n_tile, k_tile), frozenset("k"), "sum", accumulate=True)
    over_m = Loop("m.0", Num(0), Num(m), mc, "seq", (add,))
    over_k = Loop("k.0", Num(0), Num(k), kc, "seq", (Pack("Wp", (plain_n, k_tile), at("W", "n", "k")), over_m))
    clear = Loop("m.0", Num(0), Num(m), mc, "seq", (zero,))
    start: Expr = Name("n.c") if core else Num(0)
    body: Loop = Loop("n.0", start, n_stop, nc, "seq", (clear, over_k))
    if core:
        body = Loop("n.c", Num(0), Num(n), nv * lanes, "core", (body,), chunked=True)
    tile = scratch("Wp", nc, kc, layout=Panels(0, nv * lanes))
    return kernel([operand("X", m, k), operand("W", n, k), operand("Y", m, n)], [body], (tile,))


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (5, 7, 3), (8, 48, 16), (13, 53, 29), (17, 96, 40), (40, 130, 67), (3, 200, 129)]
)
def test_a_packed_matmul_at_awkward_sizes(m: int, n: int, k: int, machine: CpuMachine, objects: Path) -> None:
    built = packed_matmul(m, n, k, machine.lanes_f32, mr=4, nv=2, mc=16, nc=4 * machine.lanes_f32, kc=24)
    x, w = normal(m, k), normal(n, k, seed=1)
    for threads in (1, 3):
        out = run(built, machine, objects, {"X": x, "W": w, "Y": np.full((m, n), 3.0)}, threads)
        np.testing.assert_allclose(out["Y"], x.astype(np.float64) @ w.T.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_both_operands_packed_for_a_weight_gradient(machine: CpuMachine, objects: Path) -> None:
    rows, n, k = 37, 45, 70  # dW[n, k] = sum rows dY[rows, n] X[rows, k]
    lanes = machine.lanes_f32
    n_tile, k_tile, r = axis("n", n, 4), axis("k", k, 2, lanes), axis("r", rows)
    body: list[Statement] = [
        Pack("P", (axis("n", n), r), at("dY", "r", "n")),
        Pack("Q", (axis("k", k), r), at("X", "r", "k")),
        Compute(
            at("dW", "n", "k"), op("*", at("P", "n", "r"), at("Q", "k", "r")), (n_tile, k_tile, r), frozenset("r"),
            "sum",
        ),
    ]  # fmt: skip
    tiles = (
        scratch("P", n, rows, layout=Panels(0, 4)),
        scratch("Q", k, rows, layout=Panels(0, 2 * lanes)),
    )
    built = kernel([operand("dY", rows, n), operand("X", rows, k), operand("dW", n, k)], body, tiles)
    dy, x = normal(rows, n), normal(rows, k, seed=1)
    out = run(built, machine, objects, {"dY": dy, "X": x})
    np.testing.assert_allclose(out["dW"], dy.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [4, 8, 24, 48, 6])
def test_a_panel_is_read_right_by_tiles_of_any_other_width(width: int, machine: CpuMachine, objects: Path) -> None:
    n, k = 61, 9
    body: list[Statement] = [
        Pack("P", (axis("n", n), axis("k", k)), at("W", "n", "k")),
        Compute(at("Y", "k", "n"), at("P", "n", "k"), (axis("k", k, 2), axis("n", n, 3, machine.lanes_f32))),
        Compute(at("Z", "n", "k"), at("P", "n", "k"), (axis("n", n, 5), axis("k", k, 1, machine.lanes_f32))),
        Compute(at("R", "n"), at("P", op("-", n - 1, "n"), 0), (axis("n", n, 1, machine.lanes_f32),)),
    ]
    operands = [operand("W", n, k), operand("Y", k, n), operand("Z", n, k), operand("R", n)]
    built = kernel(operands, body, (scratch("P", n, k, layout=Panels(0, width)),))
    w = normal(n, k)
    out = run(built, machine, objects, {"W": w})
    np.testing.assert_array_equal(out["Y"], w.T)
    np.testing.assert_array_equal(out["Z"], w)
    np.testing.assert_array_equal(out["R"], w[::-1, 0])


def inner_loop(text: str) -> list[str]:
    """The instructions of the loop with the most fused multiply-adds."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith(".LBB"):
            blocks.append([])
        elif line.startswith("\t") and not line.strip().startswith("."):
            blocks[-1].append(line.strip())
            if blocks[-1][-1].startswith("j"):
                blocks.append([])
    return max(blocks, key=lambda b: sum("vfmadd" in i for i in b))


@pytest.mark.skipif(not any(m.has_fma and m.name.startswith("avx") for m in MACHINES), reason="reads x86 assembly")
@pytest.mark.parametrize(("level", "mr", "nv"), [("avx512", 8, 3), ("avx512", 14, 2), ("avx2", 6, 2)])
def test_the_matmul_inner_loop_is_loads_and_fused_multiply_adds(level: str, mr: int, nv: int) -> None:
    found = [m for m in MACHINES if m.name == level]
    if not found:
        pytest.skip(f"no {level} here")
    built = packed_matmul(16 * mr, 768, 256, found[0].lanes_f32, mr, nv, mc=16 * mr, nc=192, kc=256)
    loop = inner_loop(kernel_assembly(built, found[0]))
    multiplications = sum("vfmadd" in i for i in loop)
    assert multiplications % (mr * nv) == 0
    moves = [i for i in loop if i.startswith(("vbroadcastss", "vmovups"))]
    assert not any("(%rsp" in i for i in loop), "a spill in the inner loop"
    assert len(moves) == multiplications // (mr * nv) * (mr + nv)
    assert len(loop) <= multiplications + len(moves) + 6
