"""Two sides of a block that take its tiles in turn: the same sums, one side's results beside the other's products."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.errors import TcError
from tcomp.ir.print import print_kernel
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu.report import KernelFault
from tests.tcomp.nvptx.support import given, launch, lowered, run

RNG = np.random.default_rng(5)
TEXT = """
op f(X: bf16[M, K], W: bf16[N, K], b: bf16[N]) -> P: bf16[M, N], Y: bf16[M, N]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  P[m, n] = acc[m, n] + b[n]
  Y[m, n] = max(P[m, n], 0.0)

schedule f on sm_90a:
  m -> grid.y({grid}) / warpgroup(64, {groups}) / mma
  n -> grid.x({columns}) / mma
  k -> pipe(64, {stages}) / mma
  stage X, W in shared at k by tma
  stage b in shared at n by tma
  stage Y, P in shared at n by tma
  inline P
  use wgmma for acc
  {more}
  pingpong{when}
"""
MORE = "producer warpgroup(40)\n  persistent"
SIDES = "2 sides"
TWO_SMS = replace(H100, sms=2)


def text(
    grid: str = "128", columns: int = 128, stages: int = 3, more: str = MORE, when: str = "", groups: int = 1
) -> str:
    return TEXT.format(grid=grid, columns=columns, stages=stages, more=more, when=when, groups=groups)


MMA_SYNC = (
    text(columns=64, more="producer warp\n  persistent")
    .replace("wgmma", "mma.sync")
    .replace("warpgroup(64, 1)", "warp.y(64)")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "columns", "stages", "m", "k"),
    [
        ("128", 128, 3, 640, 384),  # whole rounds of the ring, an odd number of tiles for a block
        ("64", 256, 4, 300, 72),  # fewer turns than copies, ragged
        ("256) / cluster(128", 128, 3, 600, 200),  # clusters that share a tile, ragged
        ("128", 64, 1, 384, 136),  # a ring of one copy
        ("128", 192, 2, 128, 200),  # one tile a block: the second side has none
    ],
)
def test_sums_are_the_same(grid: str, columns: int, stages: int, m: int, k: int) -> None:
    found = lowered(text(grid, columns, stages), {"M": m, "N": 384, "K": k})
    assert SIDES in print_kernel(found)
    inputs = given(found, RNG)
    run(found, inputs, TWO_SMS)
    alone = replace(found, blocks=replace(found.gpu, sides=1))
    results = [launch(k, compile_kernel(k, TWO_SMS), inputs)[0] for k in (found, alone)]
    for name in ("P", "Y"):
        np.testing.assert_array_equal(results[0][name], results[1][name])


def test_warpgroups_of_both_sides_have_barriers_of_their_own() -> None:
    """Each delivers its rows; those of one side do so beside those of the other."""
    both = text(groups=2).replace("warpgroup(64, 2)", "warpgroup(64)")
    found = lowered(both, {"M": 512, "N": 128, "K": 72})
    assert found.gpu.shape.warps == 8 and SIDES in print_kernel(found)
    run(found, given(found, RNG), TWO_SMS)


def test_two_sides_share_a_ring_and_have_their_own_results() -> None:
    found = lowered(text(), {"M": 512, "N": 128, "K": 128})
    gpu = compile_kernel(found, TWO_SMS)
    (shape,) = gpu.launches
    assert shape.threads == (2 + 1) * 128
    (alone,) = compile_kernel(replace(found, blocks=replace(found.gpu, sides=1)), TWO_SMS).launches
    panels = sum(t.bytes * t.ring for t in found.tiles if ".out" in t.name)
    assert panels <= shape.shared_bytes - alone.shared_bytes < panels + 1024, "and a bias, and its mbarriers"
    run(found, given(found, RNG), TWO_SMS)


def test_a_side_that_does_not_wait_for_its_turn_is_found() -> None:
    """It would go past more copies than the ring has, and take an earlier round's for its own."""
    found = lowered(text(stages=2), {"M": 512, "N": 128, "K": 320})
    gpu = compile_kernel(found, TWO_SMS)
    sync = re.search(r"barrier\.cta\.sync\.aligned [^;]*, 256;", gpu.ptx)
    assert sync is not None
    broken = replace(gpu, ptx=gpu.ptx[: sync.start()] + gpu.ptx[sync.end() :])
    with pytest.raises(KernelFault):
        launch(found, broken, given(found, RNG))


def test_a_condition_decides() -> None:
    for when, sides in (("(K <= 256)", 2), ("(K <= 255)", 1)):
        assert lowered(text(when=when), {"M": 128, "N": 128, "K": 256}).gpu.sides == sides


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (text(more="persistent"), "without a producer"),
        (text(more="producer warpgroup(40)"), "without `persistent`"),
        (text(more=MORE + "\n  stagger", groups=2), "`stagger` orders"),
        (MMA_SYNC, "no whole warpgroups"),
        (text().replace("pipe(64, 3)", "seq(64)"), "no outermost `pipe`"),
    ],
)
def test_refused(changed: str, message: str) -> None:
    with pytest.raises(TcError) as e:
        lowered(changed, {"M": 192, "N": 128, "K": 128})
    assert message in e.value.message and e.value.hint and "pingpong" in changed.splitlines()[e.value.span.line - 1]
