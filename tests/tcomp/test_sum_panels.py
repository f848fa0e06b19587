"""Sums in tensor memory are read by panels of columns, where all that reads them goes element by element."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcomp.dsl.ast import DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Buffer, Compute, Fragment, Kernel, Loop, Scope
from tcomp.ir.walk import computes, statements_in
from tcomp.machine.gpu import machine_for_target
from tcomp.schedule.lower import lower

SOURCE = """
op f(X: bf16[M, K], W: bf16[N, K]) -> {results}:
  acc[m, n]: f32 = sum k: X[m, k] * W[n, k]
  {equations}

schedule f on sm_100a:
  m -> grid.y(128) / warpgroup(128) / mma
  n -> {columns} / mma
  k -> pipe(64, 2) / mma
  stage X, W in shared at k by tma
  use tcgen05 for acc
  producer warpgroup(40)
"""
TWO = {
    "results": "Y: bf16[M, N], Z: bf16[M, N]",
    "equations": "Y[m, n] = acc[m, n] * 0.5\n  Z[m, n] = acc[m, n] + 1.0",
}
ROWS = {"results": "s: f32[M]", "equations": "s[m] = sum n: acc[m, n]"}


def lowered(columns: str, of: dict[str, str] = TWO) -> Kernel:
    module = load_text(SOURCE.format(columns=columns, **of), "f.tc")
    return lower(module.ops["f"], module, {"M": 256, "N": 256, "K": 64}, machine_for_target("sm_100a")).kernels[0]


@pytest.mark.parametrize(("columns", "at_once"), [(256, 64), (240, 48), (208, 16), (128, 0)])
def test_panels_divide_the_columns_that_are_too_many(columns: int, at_once: int) -> None:
    kernel = lowered(f"grid.x({columns})")
    (tile,) = (t for t in kernel.tiles if t.name == "acc")
    loops = [s for s in statements_in(kernel.phases[0]) if isinstance(s, Loop) and s.level == "panel"]
    assert tile.columns == at_once
    assert [s.step for s in loops] == [at_once] * bool(at_once)
    size = f"{at_once or columns} elements per thread" + (f", {at_once} columns at a time" if at_once else "")
    assert size in print_kernel(kernel)


def test_a_register_tile_without_an_axis_is_printed() -> None:
    tile = Buffer("s", DType.F32, (), Scope.REGISTERS, Fragment(()))
    assert "registers s: f32[]  # 1 elements per thread" in print_kernel(replace(lowered("grid.x(256)"), tiles=(tile,)))


def test_what_reads_a_sum_shares_its_panels() -> None:
    """Each column is loaded once for both results."""
    kernel = lowered("grid.x(256)")
    (loop,) = (s for s in statements_in(kernel.phases[0]) if isinstance(s, Loop) and s.level == "panel")
    assert [s.target.tensor for s in loop.body if isinstance(s, Compute)] == ["Y", "Z"]
    assert {a.block for c in computes(loop.body) for a in c.axes if a.name == "n"} == {64}


def test_a_sum_whose_rows_are_summed_comes_whole() -> None:
    with pytest.raises(TcError, match="each thread would hold 256 values of 'acc'; 224 fit its registers") as e:
        lowered("seq(256)", ROWS)
    assert "a sum that is only read element by element comes from tensor memory by columns" in e.value.render()
