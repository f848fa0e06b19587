"""`promote`: 8-bit sums that leave the matrix unit after each turn. What it gains in accuracy, that it changes nothing
else, and that it goes with turns in pairs and with sums divided among blocks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.load import load_text
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.schedule.lower import lower
from tests.reference.op_cases import Arrays
from tests.test_ops_gpu import execute

H100 = machine_for_target("sm_90a")
DIMS = {"M": 64, "N": 40, "K": 2048}
TEXT = """
op f(X: e4m3[M, K], W: e4m3[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid(64) / warpgroup(64) / mma
  n -> grid(64) / mma
  k -> {k}pipe(128, 3) / mma
  stage X, W in shared at k by tma
  use wgmma for Y
  {flags}
"""


def inputs() -> Arrays:
    rng = np.random.default_rng(1)
    module = load_text(TEXT.format(k="", flags=""), "f.tc")
    shapes = {"X": (DIMS["M"], DIMS["K"]), "W": (DIMS["N"], DIMS["K"])}
    given = {p.name: (p.dtype, 0.5 + rng.standard_normal(shapes[p.name], np.float32)) for p in module.ops["f"].params}
    return {n: values(stored(x, d), d) for n, (d, x) in given.items()}


@cache
def result(flags: str, k: str = "") -> np.ndarray:
    """On the virtual GPU, from code that neither spills nor is serialised."""
    module = load_text(TEXT.format(k=k, flags=flags), "f.tc")
    lowered = lower(module.ops["f"], module, DIMS, H100)
    assert not any(assemble(compile_kernel(x, H100).ptx, "sm_90a").findings for x in lowered.kernels)
    return execute(lowered, module.ops["f"], inputs(), H100)["Y"]


def error(found: np.ndarray) -> float:
    """Relative to the exact sums of the same values."""
    module = load_text(TEXT.format(k="", flags=""), "f.tc")
    wanted = evaluate(module.ops["f"], module, inputs(), DIMS)["Y"]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_what_sums_lose_does_not_grow_with_them() -> None:
    """16 turns of 4 instructions: unpromoted each cuts the whole sum to 14 bits, promoted its turn's."""
    assert error(result("promote Y(128)")) < 0.25 * error(result(""))


def test_turns_of_no_values_promote_nothing() -> None:
    assert result("promote Y(0)").tobytes() == result("").tobytes()


@pytest.mark.parametrize("flags", ["promote Y", "promote Y(128)\n  overlap Y", "promote Y(128)\n  producer warp"])
def test_results_do_not_depend_on_how_turns_follow_each_other(flags: str) -> None:
    assert result(flags).tobytes() == result("promote Y(128)").tobytes()


def test_parts_of_a_sum_are_promoted_too() -> None:
    found = result("promote Y(128)\n  combine Y over k by partials", k="grid.z(1024) / ")
    assert error(found) < 0.25 * error(result("combine Y over k by partials", k="grid.z(1024) / "))
