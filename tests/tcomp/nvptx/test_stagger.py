"""Warpgroups a turn apart: the same sums, in an order that barriers keep, with no more in the loop than they take."""

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
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: bf16[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid.y({rows}) / warpgroup(64) / mma
  n -> grid.x(128) / mma
  k -> pipe(64, {stages}) / mma
  stage X, W in shared at k by tma
  stage Y in shared at n by tma
  use wgmma for Y
  {more}
  stagger{when}
"""
APART = "warpgroups a turn apart"
TWO_SMS = replace(H100, sms=2)


def text(rows: int = 128, stages: int = 3, more: str = "producer warp\n  persistent", when: str = "") -> str:
    return TEXT.format(rows=rows, stages=stages, more=more, when=when)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "stages", "more", "m", "k"),
    [
        (128, 3, "producer warp\n  persistent", 384, 384),  # whole rounds of the ring, several tiles a block
        (128, 4, "producer warp\n  persistent", 300, 72),  # fewer turns than copies
        (128, 2, "producer warpgroup(24)", 128, 200),  # two copies, a part of a turn
        (192, 2, "producer warpgroup(24)", 192, 200),  # three warpgroups
    ],
)
def test_sums_are_the_same(rows: int, stages: int, more: str, m: int, k: int) -> None:
    found = lowered(text(rows, stages, more), {"M": m, "N": 256, "K": k})
    assert APART in print_kernel(found)
    inputs = given(found, RNG)
    ptx, _ = run(found, inputs, TWO_SMS)
    assert ptx.count("barrier.cta.arrive") == 2, "the first turn's, and that of the loop's code"
    alone = compile_kernel(replace(found, blocks=replace(found.gpu, staggered=False)), TWO_SMS)
    assert "arrive.aligned" not in alone.ptx
    results = [launch(found, gpu, inputs)[0]["Y"] for gpu in (compile_kernel(found, TWO_SMS), alone)]
    np.testing.assert_array_equal(*results)


def test_a_turn_that_is_not_passed_on_is_found() -> None:
    found = lowered(text(), {"M": 128, "N": 128, "K": 384})
    gpu = compile_kernel(found, TWO_SMS)
    first, _ = re.finditer(r"barrier\.cta\.arrive\.aligned [^;]*;", gpu.ptx)
    broken = replace(gpu, ptx=gpu.ptx[: first.start()] + gpu.ptx[first.end() :])
    with pytest.raises(KernelFault, match="deadlock"):
        launch(found, broken, given(found, RNG))


def test_a_condition_decides() -> None:
    for when, apart in (("(K <= 256)", True), ("(K <= 255)", False)):
        found = lowered(text(when=when), {"M": 128, "N": 128, "K": 256})
        assert found.gpu.staggered == apart and (APART in print_kernel(found)) == apart


def test_a_loop_of_one_turn_has_no_turns_to_pass() -> None:
    found = lowered(text(), {"M": 128, "N": 128, "K": 64})
    run(found, given(found, RNG), TWO_SMS)


def test_one_warpgroup_has_none_to_follow() -> None:
    assert not lowered(text(), {"M": 64, "N": 128, "K": 128}).gpu.staggered


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (text(more="persistent"), "without a producer"),
        (text().replace("wgmma", "mma.sync").replace("warpgroup(64)", "warp.y(16)"), "no such product"),
    ],
)
def test_refused(changed: str, message: str) -> None:
    with pytest.raises(TcError) as e:
        lowered(changed, {"M": 192, "N": 128, "K": 128})
    assert message in e.value.message and e.value.hint and "stagger" in changed.splitlines()[e.value.span.line - 1]
