"""`stage ... by ahead`: the next turn's tile is packed beside the sum that reads this one's; results are the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, example, given, strategies as st

from tcomp.codegen.cpu.compile import kernel_assembly, kernel_ir, memory_needs
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.errors import UserError
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel
from tcomp.ir.walk import computes
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import LoweredOp, lower
from tests.turns import examples

PRODUCT = """
op product(X: f32[M, N], W: f32[N, K]) -> Y: f32[M, K]:
  Y[m, k] = sum n: X[m, n] * W[n, k]

schedule product on cpu, cpu.avx512bf16:
  k -> core / seq(COLUMNS) / unroll(2) / vec
  m -> seq(ROWS) / unroll(4)
  n -> seq(DEPTH)
  order m, n, k
  stage W in packed at k BY
"""
TURNED = PRODUCT.replace("W: f32[N, K]", "W: f32[K, N]").replace("W[n, k]", "W[k, n]")
"""The tile runs along another axis than W: it is transposed."""


def in_pairs(product: str) -> str:
    """By bf16 dots, whose tiles are words of two elements."""
    narrow = product.replace("X: f32", "X: bf16").replace("W: f32", "W: bf16")
    return narrow.replace("  stage W", "  stage X in packed at m by widening\n  stage W") + "  use vdpbf16ps for Y\n"


def machine() -> CpuMachine:
    """This CPU, its bf16 dots written out by their meaning where it has none."""
    try:
        return detect("avx512bf16")
    except UserError:
        plain = detect().name
        return detect(f"{plain}+avx512bf16") if plain.startswith("avx") else detect()


wide_only = pytest.mark.skipif(machine().lanes_f32 < 16, reason="tiles are packed ahead on vectors of 16 lanes")
dots_only = pytest.mark.skipif("avx512bf16" not in machine().features, reason="no bf16 dots")
PRODUCTS = {
    "rows": PRODUCT,
    "turned": TURNED,
    "rows in pairs": in_pairs(PRODUCT),
    "turned in pairs": in_pairs(TURNED),
}
KINDS = [pytest.param(k, id=k, marks=dots_only if "pairs" in k else ()) for k in PRODUCTS]


def product_kernel(
    by: str, sizes: tuple[int, int, int], blocks: tuple[int, int, int], threads: int, kind: str = "rows"
) -> Kernel:
    text = PRODUCTS[kind].replace("BY", by)
    for name, block in zip(("ROWS", "COLUMNS", "DEPTH"), blocks, strict=True):
        text = text.replace(name, str(block))
    module = load_text(text)
    dims = dict(zip("MNK", sizes, strict=True))
    (kernel,) = lower(module.ops["product"], module, dims, machine(), threads=threads).kernels
    return kernel


def result(kernel: Kernel, threads: int, cache: Path) -> np.ndarray:
    """Y for the same random operands, of few bits; nothing is written outside of it."""
    rng = np.random.default_rng(1)
    step = single_op_step(LoweredOp((kernel,), ()), {}, 256)
    executor = CpuExecutor(step, machine(), threads, cache)
    given = {}
    for name, slot in step.slots.items():
        if name.startswith("guard"):
            executor.array(name)[...] = 7
        elif name in "XW":
            given[name] = rng.integers(-100, 100, slot.shape) / 64.0
            executor.write(name, given[name])
    executor.run("run")
    executor.run("run")  # a second run begins with full copies of the tile
    assert all((executor.array(s) == 7).all() for s in step.slots if s.startswith("guard"))
    y = executor.array("Y").copy()
    executor.close()
    w = given["W"] if given["W"].shape == (given["X"].shape[1], y.shape[1]) else given["W"].T
    np.testing.assert_allclose(y, given["X"] @ w, rtol=1e-4, atol=1e-4)
    return y


SIZES = st.tuples(st.integers(1, 90), st.integers(1, 150), st.integers(1, 150))
BLOCKS = st.tuples(st.sampled_from([8, 24]), st.sampled_from([16, 48]), st.sampled_from([16, 64]))


@pytest.mark.slow
@examples(6, 2, phases=[Phase.explicit, Phase.generate])
@given(SIZES, BLOCKS, st.integers(1, 3))
@example((40, 150, 96), (24, 48, 64), 2)
@example((64, 128, 150), (24, 48, 16), 1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_packed_ahead_is_the_same_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    sizes: tuple[int, int, int],
    blocks: tuple[int, int, int],
    threads: int,
) -> None:
    """Also where tiles are cut short, turns wrap into the loops around, and threads begin in the middle."""
    cache = tmp_path_factory.getbasetemp() / "ahead"
    compare(kind, sizes, blocks, threads, cache)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_pieces_and_a_tile_cut_short_are_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Columns 0 to 95 are two whole tiles, packed in pieces; of the third there is a part."""
    compare(kind, (64, 128, 120), (24, 48, 64), 1, tmp_path)


@wide_only
@pytest.mark.parametrize("inputs", [1024, 1008])
def test_rows_of_one_set_are_packed_by_whole_lines(inputs: int, tmp_path: Path) -> None:
    """Rows of 4096 bytes would push each other out of the first-level cache, 16 at a time: a piece has four."""
    sizes, blocks = (16, inputs, 100), (8, 48, 64)
    kernel = product_kernel("by ahead", sizes, blocks, 1, "turned")
    loads = re.findall(r"= load <(\d+) x float>, .*align 4", kernel_ir(kernel, machine()))
    assert ("4" in loads) is (inputs == 1008)
    compare("turned", sizes, blocks, 1, tmp_path)


@wide_only
@dots_only
def test_pieces_of_pairs_are_counted_in_words(tmp_path: Path) -> None:
    """A tile of 48 elements along the sum is 24 words, no whole lines of 16: pieces are four words of 16 rows, though
    those of W are 4096 bytes apart."""
    kernel = product_kernel("by ahead", (16, 2048, 96), (8, 48, 48), 1, "turned in pairs")
    assert re.search(r"icmp ult i64 %\S+, 18\b", kernel_ir(kernel, machine()))
    result(kernel, 1, tmp_path)


def compare(kind: str, sizes: tuple[int, int, int], blocks: tuple[int, int, int], threads: int, cache: Path) -> None:
    """The product packed ahead and packed at once, which both are right."""
    plain, ahead = (result(product_kernel(by, sizes, blocks, threads, kind), threads, cache) for by in ("", "by ahead"))
    np.testing.assert_array_equal(plain, ahead)


@wide_only
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_stand_in_the_loop_and_spill_nothing(kind: str) -> None:
    """The assembly of the shipped register tile: each part of the sum has a piece before it, within 32 registers."""
    text = PRODUCTS[kind].replace("unroll(2)", "unroll(3)").replace("unroll(4)", "unroll(8)").replace("BY", "by ahead")
    for name, block in (("ROWS", 256), ("COLUMNS", 48), ("DEPTH", 768)):
        text = text.replace(name, str(block))
    module = load_text(text)
    (kernel,) = lower(module.ops["product"], module, {"M": 256, "N": 768, "K": 768}, machine(), threads=1).kernels
    assembly = kernel_assembly(kernel, machine())
    assert not re.search(r"vmov\w+\s+%[xyz]mm\d+, -?\d*\(%r[sb]p\)", assembly)
    shuffles = 2 if "turned" in kind else 0
    assert len(re.findall(r"vp?unpck[lh](?:pd|qdq)\s+%zmm", assembly)) >= shuffles


@wide_only
@pytest.mark.parametrize("kind", [k for k in KINDS if "pairs" not in k.values[0]])
def test_a_tile_is_packed_in_pieces_that_cover_it(kind: str, tmp_path: Path) -> None:
    """As many rows, or blocks of four columns, as the tile has: nothing is left to be copied whole."""
    kernel = product_kernel("by ahead", (256, 128, 96), (256, 48, 128), 1, kind)
    text = kernel_ir(kernel, machine())
    assert re.search(rf"icmp ult i64 %\S+, {128 if kind == 'rows' else 3 * 32}\b", text)
    result(kernel, 1, tmp_path)


@wide_only
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
