"""`stage ... by ahead`: the next turn's tile is packed beside the sum that reads this one's; results are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tcomp.codegen.cpu.compile import memory_needs
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel
from tcomp.ir.walk import computes
from tcomp.machine.cpu import detect
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import LoweredOp, lower

PRODUCT = """
op product(X: f32[M, N], W: f32[N, K]) -> Y: f32[M, K]:
  Y[m, k] = sum n: X[m, n] * W[n, k]

schedule product on cpu:
  k -> core / seq(COLUMNS) / unroll(2) / vec
  m -> seq(ROWS) / unroll(4)
  n -> seq(DEPTH)
  order m, n, k
  stage W in packed at k BY
"""


def product_kernel(by: str, sizes: tuple[int, int, int], blocks: tuple[int, int, int], threads: int) -> Kernel:
    text = PRODUCT.replace("BY", by)
    for name, block in zip(("ROWS", "COLUMNS", "DEPTH"), blocks, strict=True):
        text = text.replace(name, str(block))
    module = load_text(text)
    dims = dict(zip("MNK", sizes, strict=True))
    (kernel,) = lower(module.ops["product"], module, dims, detect(), threads=threads).kernels
    return kernel


def result(kernel: Kernel, threads: int, cache: Path) -> np.ndarray:
    """Y for the same random operands; nothing is written outside of it."""
    rng = np.random.default_rng(1)
    step = single_op_step(LoweredOp((kernel,), ()), {}, 256)
    executor = CpuExecutor(step, detect(), threads, cache)
    for name, slot in step.slots.items():
        if name.startswith("guard"):
            executor.array(name)[...] = 7
        elif name in "XW":
            executor.array(name)[...] = rng.standard_normal(slot.shape, np.float32)
    executor.run("run")
    executor.run("run")  # a second run begins with full copies of the tile
    assert all((executor.array(s) == 7).all() for s in step.slots if s.startswith("guard"))
    y, wanted = executor.array("Y").copy(), executor.array("X").astype(float) @ executor.array("W").astype(float)
    executor.close()
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    return y


SIZES = st.tuples(st.integers(1, 90), st.integers(1, 150), st.integers(1, 150))
BLOCKS = st.tuples(st.sampled_from([8, 24]), st.sampled_from([16, 48]), st.sampled_from([16, 64]))


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(SIZES, BLOCKS, st.integers(1, 3))
def test_a_product_packed_ahead_is_the_same_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, sizes: tuple[int, int, int], blocks: tuple[int, int, int], threads: int
) -> None:
    """Also where tiles are cut short, turns wrap into the loops around, and threads begin in the middle."""
    cache = tmp_path_factory.getbasetemp() / "ahead"
    plain, ahead = (result(product_kernel(by, sizes, blocks, threads), threads, cache) for by in ("", "by ahead"))
    np.testing.assert_array_equal(plain, ahead)


def test_the_tile_has_two_copies_and_the_sum_packs_the_next_turns() -> None:
    sizes, blocks = (96, 128, 96), (24, 16, 64)
    plain, ahead = (product_kernel(by, sizes, blocks, 1) for by in ("", "by ahead"))
    assert [t.ring for t in ahead.tiles] == [2]
    assert memory_needs(ahead)[0] == 2 * memory_needs(plain)[0]
    (node,) = (c.ahead for p in ahead.phases for c in computes(p) if c.ahead is not None)
    assert {v for _, v, _ in node.following} == {"n.0", "k.1"}
    assert "pack ahead W.packed0 from W[n, k]" in print_kernel(ahead)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ([("W[n, k]", "W[k, n]"), ("W: f32[N, K]", "W: f32[K, N]")], "its copy is not one of whole rows"),
        ([("order m, n, k", "order n, k, m")], "its reader is in an inner loop"),
    ],
)
def test_what_cannot_be_packed_ahead_is_refused(changes: list[tuple[str, str]], problem: str) -> None:
    text = PRODUCT.replace("BY", "by ahead")
    for old, new in (*changes, ("ROWS", "8"), ("COLUMNS", "16"), ("DEPTH", "16")):
        text = text.replace(old, new)
    module = load_text(text)
    with pytest.raises(TcError, match=problem):
        lower(module.ops["product"], module, {"M": 40, "N": 40, "K": 40}, detect(), threads=1)
