"""Attention's CPU schedules: what is packed once per head, and how a sum over query heads is shared out among cores."""

from __future__ import annotations

import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.dsl.recipes import RECIPES
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Compute
from tcomp.ir.walk import statements_in
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.lower import lower

AVX2 = CpuMachine("avx2", (), 8, 16, 32768, 512 << 10, 32 << 20, 2)
AVX512 = CpuMachine("avx512", (), 16, 32, 49152, 1 << 20, 32 << 20, 2)


def test_values_are_packed_for_the_field_that_reads_them() -> None:
    """A monoid's field is a sum over indices of its own; a `stage` line for its operand packs along those."""
    module = load("models/ops/attention.tc")
    (kernel,) = lower(module.ops["attention"], module, {"B": 1, "T": 1024, "H": 2, "D": 64}, AVX2).kernels
    lines = print_kernel(kernel).splitlines()
    (packed,) = (x.split()[1] for x in lines if "pack " in x and ", 2, h" in x)
    assert any(line.split()[0].startswith("o[") and packed in line and "+= sum k" in line for line in lines)


@pytest.mark.parametrize(
    ("machine", "length", "parts"),
    [(AVX512, 256, False), (AVX512, 500, False), (AVX512, 1024, True), (AVX2, 250, False), (AVX2, 512, True)],
)
def test_nothing_is_rescaled_where_one_tile_has_the_scores_of_all_keys(
    machine: CpuMachine, length: int, parts: bool
) -> None:
    """Then outputs leave from the registers of their sums."""
    module = load("models/ops/attention.tc")
    (kernel,) = lower(module.ops["attention"], module, {"B": 1, "T": length, "H": 2, "D": 64}, machine).kernels
    text = print_kernel(kernel)
    assert ("m.rescale" in text) == parts
    assert ("each register tile:" in text) == (not parts)


@pytest.mark.parametrize(
    ("machine", "length", "storage", "packed"),
    [
        (AVX512, 64, "f32", 1),
        (AVX512, 65, "f32", 2),
        (AVX512, 64, "bf16", 2),
        (AVX2, 64, "f32", 2),
        (AVX2, 64, "bf16", 3),
    ],
)
def test_few_values_are_read_where_they_lie(machine: CpuMachine, length: int, storage: str, packed: int) -> None:
    """By wide vectors, where they need not be widened; the next head's are prefetched all the same. Queries that
    vectors run along are widened once."""
    module = load("models/ops/attention.tc")
    op = bound(module.ops["attention"], RECIPES[storage].storage)
    (kernel,) = lower(op, module, {"B": 2, "T": length, "H": 12, "D": 64}, machine).kernels
    text = print_kernel(kernel)
    assert sum(".packed" in t.name for t in kernel.tiles) == packed
    assert (", 2, h.0, e]  # needed" in text) == (packed == 1)
    assert storage != "f32" or ", k, 2, select(h.0 + 1 < 12" in text


@pytest.mark.parametrize(
    ("machine", "length", "heads", "copies"),
    [(AVX512, 256, 12, 3), (AVX512, 256, 2, 2), (AVX2, 128, 12, 2), (AVX2, 256, 12, 3)],
)
def test_keys_are_packed_for_both_products_where_rows_lie_pages_apart(
    machine: CpuMachine, length: int, heads: int, copies: int
) -> None:
    """As columns and as rows; products with vectors along the channels take the same rows."""
    module = load("models/ops/attention.tc")
    op = backward_of("attention", module)
    assert op is not None
    (kernel,) = lower(op, module, {"B": 1, "T": length, "H": heads, "D": 64}, machine).kernels
    assert print_kernel(kernel).count("  pack ") == copies


def test_gradients_are_collected_in_tiles_of_their_own_and_written_once() -> None:
    """Keys' gradients are complete when the loop over queries is, queries' when the one over keys is."""
    module = load("models/ops/attention.tc")
    op = backward_of("attention", module)
    assert op is not None
    (kernel,) = lower(op, module, {"B": 1, "T": 256, "H": 2, "D": 64}, AVX2).kernels
    shapes = {t.name.partition(".sum")[0] + str(t.shape) for t in kernel.tiles if ".sum" in t.name}
    assert shapes == {"dQKV(64, 64)", "dQKV(256, 64)"}
    stores = [x.strip() for x in print_kernel(kernel).splitlines() if x.strip().startswith("dQKV[")]
    assert len(stores) == 3
    assert all(" = dQKV.sum" in x for x in stores)


def test_a_loop_has_register_tiles_of_its_own_in_some_equations() -> None:
    """Keys are vectors of the scores, and rows of their own gradients, collected in private tiles or not."""
    for name, dims, gradients in (
        ("attention", {"B": 1, "T": 128, "H": 2, "D": 64}, ("dQKV.sum5", "dQKV.sum7")),
        ("grouped_attention", {"B": 2, "T": 128, "G": 2, "R": 3, "D": 64}, ("dK", "dV")),
    ):
        module = load("models/ops/attention.tc")
        op = backward_of(name, module)
        assert op is not None
        (kernel,) = lower(op, module, dims, AVX512, threads=2).kernels
        tiles = {
            s.target.tensor: {a.name: (a.unroll, a.lanes) for a in s.axes}
            for s in statements_in(kernel.phases[0])
            if isinstance(s, Compute) and len(s.reduced) == 1
        }
        assert tiles["qk"]["k"] == tiles["dp"]["k"] == (2, 16)
        assert all(tiles[g]["k"] == (4, 1) for g in gradients)


CHANNELS = {"q": (2, 1), "k": (4, 1), "d": (1, 8)}


@pytest.mark.parametrize(
    ("machine", "length", "storage", "scores", "outputs"),
    [
        (AVX2, 128, "f32", CHANNELS, (4, 2)),
        (AVX2, 129, "f32", {"q": (4, 1), "k": (2, 8), "d": (1, 1)}, (4, 2)),
        (AVX2, 257, "f32", {"q": (6, 1), "k": (2, 8), "d": (1, 1)}, (6, 2)),
        (AVX2, 257, "bf16", CHANNELS, (4, 2)),
        (AVX512, 256, "f32", {"q": (8, 1), "k": (2, 16), "d": (1, 1)}, (4, 4)),
    ],
)
def test_more_registers_make_scores_of_more_queries_and_outputs_of_more_channels(
    machine: CpuMachine, length: int, storage: str, scores: dict[str, tuple[int, int]], outputs: tuple[int, int]
) -> None:
    """Scores' tiles are two vectors of keys wide, or of few scores four keys by vectors along the channels: half of one
    on the diagonal is computed in vain. What reads an operand once has no tile."""
    module = load("models/ops/attention.tc")
    op = bound(module.ops["attention"], RECIPES[storage].storage)
    (kernel,) = lower(op, module, {"B": 1, "T": length, "H": 2, "D": 64}, machine).kernels
    tiles = {
        s.target.tensor: {a.name: (a.unroll, a.lanes) for a in s.axes}
        for s in statements_in(kernel.phases[0])
        if isinstance(s, Compute) and s.reduced
    }
    lanes = machine.lanes_f32
    assert tiles["qk"] == scores and tiles["l"] == {"q": (1, 1), "k": (2, lanes)}
    queries, vectors = outputs
    assert (tiles["o"]["q"], tiles["o"]["e"]) == ((queries, 1), (vectors, lanes))


@pytest.mark.parametrize(("length", "keys"), [(64, (4, 1)), (65, (2, 16))])
def test_a_mapping_holds_where_its_condition_does(length: int, keys: tuple[int, int]) -> None:
    """Of few keys wide vectors run along the channels backward."""
    module = load("models/ops/attention.tc")
    op = backward_of("attention", module)
    assert op is not None
    (kernel,) = lower(op, module, {"B": 1, "T": length, "H": 12, "D": 64}, AVX512).kernels
    tiles = {
        s.target.tensor: {a.name: (a.unroll, a.lanes) for a in s.axes}
        for s in statements_in(kernel.phases[0])
        if isinstance(s, Compute)
    }
    assert tiles["qk"]["k"] == tiles["dp"]["k"] == keys


def test_of_mappings_with_conditions_one_holds() -> None:
    """M = 64"""
    lines = "  m -> seq(16)\n  n -> vec\n  n of s -> vec when(M > 64)\n  n of s -> unroll(2) / vec when(M <= 64)\n"
    assert summed(lines) == summed("  m -> seq(16)\n  n -> unroll(2) / vec\n")
    with pytest.raises(TcError, match="loop 'n' is mapped twice"):
        summed(lines.replace("M > 64", "M >= 64"))


def test_only_levels_within_a_tile_belong_to_some_equations() -> None:
    with pytest.raises(TcError, match="only levels within a tile can differ"):
        summed("  m -> seq(16)\n  n of s -> seq(8) / vec\n")


def summed(schedule: str) -> str:
    text = f"op total(X: f32[M, N]) -> s: f32[N]:\n  s[n] = sum m: X[m, n]\n\nschedule total on cpu:\n{schedule}"
    module = load_text(text)
    (kernel,) = lower(module.ops["total"], module, {"M": 64, "N": 32}, AVX2, threads=2).kernels
    return print_kernel(kernel)


def test_a_private_sum_is_written_after_its_last_tile() -> None:
    lines = "  m -> seq(16)\n  n -> vec\n  order m, n\n"
    assert "s.sum" not in summed(lines)
    assert "s[n] = s.sum" in summed(lines + "  combine s over m by private\n")


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("  m -> core(16) / seq(4)\n  n -> vec\n  combine s over m by private\n", "by partials"),
        ("  n -> seq(16) / vec\n  combine s over m by private\n", "no sum over tiles of m"),
    ],
)
def test_a_private_sum_is_no_sum_of_several_cores(schedule: str, message: str) -> None:
    with pytest.raises(TcError, match=message):
        summed(schedule)


@pytest.mark.parametrize(("heads", "threads", "shared"), [(3, 2, True), (4, 2, False), (3, 1, False), (17, 2, False)])
def test_query_heads_are_shared_out_where_key_heads_are_not(heads: int, threads: int, shared: bool) -> None:
    module = load("models/ops/attention.tc")
    op = backward_of("grouped_attention", module)
    assert op is not None
    dims = {"B": 1, "T": 64, "G": heads, "R": 3, "D": 64}
    (kernel,) = lower(op, module, dims, AVX2, threads=threads).kernels
    assert any(t.name == "dK.partial" for t in kernel.tiles) is shared
    assert len(kernel.phases) == (3 if shared else 1)
