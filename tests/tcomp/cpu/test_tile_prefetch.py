"""What register tiles read and write behind a long sum is asked for along it, line by line."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.codegen.cpu.prefetch import _grid
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.lower import lower
from tests.tcomp.cpu.support import normal, run
from tests.tcomp.cpu.test_dot import ZEN4

TEXT = """
op f(X: f32[M, K], W: f32[K, N], R: f32[M, N]) -> P: f32[M, N], Y: f32[M, N]:
  acc[m, n] = sum k: X[m, k] * W[k, n]
  P[m, n] = acc[m, n] + 1.0
  Y[m, n] = P[m, n] * R[m, n]

schedule f on cpu:
  m -> core / unroll(4)
  n -> unroll(2) / vec
  k -> seq({block})
  order m, k, n
"""


def product(k: int, block: int, machine: CpuMachine, m: int = 13, n: int = 70) -> Kernel:
    module = load_text(TEXT.format(block=block), "f.tc")
    (made,) = lower(module.ops["f"], module, {"M": m, "N": n, "K": k}, machine).kernels
    return made


@pytest.mark.parametrize(("k", "block"), [(20, 20), (200, 200), (300, 150), (517, 129)])
def test_results_are_what_they_were(k: int, block: int, machine: CpuMachine, objects: Path) -> None:
    """Short sums, which ask for nothing, sums of one part and of several, and tiles cut by the ends of the tensors."""
    x, w, r = normal(13, k), normal(k, 70, seed=1), normal(13, 70, seed=2)
    out = run(product(k, block, machine), machine, objects, {"X": x, "W": w, "R": r})
    p = x.astype(np.float64) @ w + 1
    np.testing.assert_allclose(out["P"], p, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["Y"], p * r, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86's assembly")
@pytest.mark.parametrize(("k", "inside"), [(64, 0), (512, 3)])
def test_requests_are_in_the_sums_loop_and_not_before_it(k: int, inside: int) -> None:
    """P, Y and R, one line of each a turn at most."""
    assembly = kernel_assembly(product(k, k, ZEN4, m=16, n=64), ZEN4)
    blocks = re.split(r"\n(?=\.LBB)", assembly)
    turning = [b for b in blocks if "vfmadd" in b and re.search(rf"\tj\w+\t{re.escape(b.split(':')[0])}\b", b)]
    assert turning and all(b.count("prefetch") == inside for b in turning)
    assert assembly.count("prefetch") == inside * len(turning)


@pytest.mark.parametrize(
    ("offsets", "grid"),
    [([0], (1, 0, 0)), ([0, 64, 128], (1, 64, 0)), ([5, 69, 1005, 1069], (2, 1000, 64)), ([0, 64, 1000], None)],
)
def test_offsets_as_rows_and_columns(offsets: list[int], grid: tuple[int, int, int] | None) -> None:
    assert _grid(offsets) == grid
