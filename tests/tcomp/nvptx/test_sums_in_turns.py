"""Parts of a long sum that blocks add to their output in turns (`combine ... by turns`): one launch, no workspace, the
words that say whose turn it is zero again, the same bits in any order of blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tcomp.autotune import virtual_run
from tcomp.autotune.gpu_copies import Copies
from tcomp.autotune.gpu_sample import sample_block
from tcomp.autotune.sass import functions_of
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import Binary, Name, Num
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Kernel, Loop, Scope, Turns, Unpack
from tcomp.ir.walk import statements_in
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu import Options
from tcomp.schedule.lower import lower
from tests.reference.op_cases import stored_inputs
from tests.tcomp.nvptx.support import changed, given, interpreted, lowered, run
from tests.tcomp.tile_interpreter import OutOfTurn
from tests.turns import in_turns

RNG = np.random.default_rng(5)
FEW = replace(H100, sms=4)
"""so few multiprocessors that persistent blocks take several tiles"""
PRODUCT = """
op f(dY: bf16[M, N], X: bf16[M, K]{old}) -> {new}:
  dW[n, k] {eq} sum m: dY[m, n] * X[m, k]

schedule f on sm_90a:
  n -> grid.y({n}){cluster} / {warps} / mma
  k -> grid.x({k}) / {columns}mma
  m -> grid.z(128) / pipe(64, 2) / mma
  stage dY, X in shared at m by tma
  stage dW in shared at k by tma
  use {use} for dW
  combine dW over m by turns
  {flags}
"""


def text(
    t: str = "f32", adds: bool = False, n: int = 128, k: int = 64, cluster: str = "", groups: bool = True,
    flags: str = "producer warp\n  persistent\n  raster 2",
) -> str:  # fmt: skip
    warps, columns, use = ("warpgroup(64)", "", "wgmma") if groups else ("warp.y(64)", "warp.x(32) / ", "mma.sync")
    return PRODUCT.format(
        old=f", inout dW: {t}[N, K]" if adds else "", new="" if adds else f"dW: {t}[N, K]", eq="+=" if adds else "=",
        n=n, k=k, cluster=cluster, warps=warps, columns=columns, use=use, flags=flags,
    ).replace(") -> :", "):")  # fmt: skip


def turns_in(kernel: Kernel) -> list[Unpack]:
    return [s for p in kernel.phases for s in statements_in(p) if isinstance(s, Unpack) and s.turns is not None]


@pytest.mark.parametrize(
    "m,n,k", [(364, 136, 72), (136, 8, 8), (1000, 64, 64)], ids=["ragged", "tiny", "tall"]
)  # fmt: skip
@pytest.mark.parametrize("adds", [False, True], ids=["stored", "added"])
def test_parts_are_added_in_one_launch(m: int, n: int, k: int, adds: bool) -> None:
    found = lowered(text(adds=adds), {"M": m, "N": n, "K": k})
    (unpack,) = turns_in(found)
    assert unpack.turns is not None and unpack.turns.stores is not adds
    assert unpack.groups == min(2, -(-n // 64)) and found.buffer("dW.turns").shape[-1] % unpack.groups == 0
    assert len(found.phases) == 1 and not any(b.scope is Scope.TEAM for b in found.tiles)
    assert {o.name for o in found.operands} == {"dY", "X", "dW"}, "a sum in f32 has no workspace"
    run(found, given(found, RNG), FEW)


@pytest.mark.parametrize("adds", [False, True], ids=["stored", "added"])
def test_what_is_narrower_than_f32_is_summed_in_a_workspace(adds: bool) -> None:
    found = lowered(text("bf16", adds), {"M": 364, "N": 136, "K": 72})
    assert len(found.phases) == 2 and found.buffer("dW.joined").scope is Scope.OPERAND
    run(found, given(found, RNG), FEW)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 32},  # one panel
        {"n": 256, "cluster": " / cluster(128)"},  # three tiles: the last cluster has one block too many
        {"n": 128, "cluster": " / cluster(64)", "k": 32},
        {"groups": False, "k": 64},
        {"n": 64, "flags": "producer warp\n  persistent\n  pingpong"},
        {"flags": "producer warp\n  stagger"},
        {"flags": "raster 2"},
    ],
    ids=["one panel", "cluster", "cluster, one panel", "mma.sync", "pingpong", "stagger", "not persistent"],
)
def test_parts_of_other_schedules(options: dict[str, Any]) -> None:
    found = lowered(text(**options), {"M": 300, "N": 304, "K": 72})
    run(found, given(found, RNG), FEW)


def test_loops_of_a_block_around_what_it_adds() -> None:
    """A tile is handed over in every turn of a loop, with a word of its own."""
    found = lowered(
        """
op f(S: f32[M, K], X: f32[K, N]) -> Y: f32[M, N]:
  Y[m, n] = sum k: S[m, k] * X[k, n]

schedule f on sm_90a:
  k -> grid(32) / seq(16)
  m -> seq(16) / lane.y(4)
  n -> lane.x
  order m, k
  stage Y in shared at m by tma
  combine Y over k by turns
""",
        {"M": 40, "K": 100, "N": 64},
    )
    run(found, given(found, RNG), FEW)


def test_a_sum_of_one_part_takes_no_turns() -> None:
    found = lowered(text(), {"M": 128, "N": 136, "K": 72})
    assert not turns_in(found) and not any(b.scope is Scope.WORDS for b in found.tiles)
    run(found, given(found, RNG), FEW)


STREAM = "producer warp\n  persistent\n  raster 2\n  stream"


@pytest.mark.parametrize(
    ("options", "m", "n", "k"),
    [
        *(pytest.param({}, *s, id=f"stored-{s[0]}") for s in [(364, 136, 72), (136, 8, 8), (1500, 64, 64)]),
        *(pytest.param({"adds": True}, *s, id=f"added-{s[0]}") for s in [(364, 136, 72), (1500, 64, 64)]),
        pytest.param({"t": "bf16"}, 364, 136, 72, id="bf16"),
        pytest.param({"k": 32}, 364, 136, 72, id="one panel"),
        *(
            pytest.param({"n": 256, "cluster": " / cluster(128)"}, *s, id=f"cluster-{s[0]}")
            for s in [(364, 136, 72), (136, 8, 8), (1500, 64, 64)]
        ),
    ],
)
def test_equal_shares_of_all_tiles(options: dict[str, Any], m: int, n: int, k: int) -> None:
    """Blocks of which each has the end of one tile's sum and the beginning of another's; fewer where there is less."""
    n = 2 * n if "cluster" in options else n
    found = lowered(text(**options, flags=STREAM), {"M": m, "N": n, "K": k})
    assert found.gpu.order.stream is not None and found.gpu.order.stream.unit == 128
    assert not any(
        s.variable.startswith("m.part") for p in found.phases for s in statements_in(p) if isinstance(s, Loop)
    )
    _, reports = run(found, given(found, RNG), FEW)
    tiles = -(-n // 128) * -(-k // options.get("k", 64))
    assert reports[0].grid[0] == min(4, tiles * found.gpu.order.stream.units)


@pytest.mark.parametrize("sms,n,parts", [(3, 136, (1, 8)), (5, 136, (2, 5)), (5, 72, (0, 0)), (8, 264, (2, 5))])
def test_shares_begin_with_parts_of_one_size(sms: int, n: int, parts: tuple[int, int]) -> None:
    """As many of each tile's sum as fit, then the rest of all sums; without a rest all is cut as one."""
    found = lowered(text(flags=STREAM), {"M": 1500, "N": n, "K": 64})
    assert found.gpu.order.stream is not None and found.gpu.order.stream.units == 12
    assert found.gpu.order.stream.parts(-(-n // 128), sms) == parts
    _, reports = run(found, given(found, RNG), replace(H100, sms=sms))
    assert reports[0].grid[0] == sms


@pytest.mark.slow
def test_shares_of_clusters_begin_with_parts_of_one_size() -> None:
    found = lowered(text(n=256, cluster=" / cluster(128)", flags=STREAM), {"M": 1500, "N": 512, "K": 64})
    run(found, given(found, RNG), replace(H100, sms=10))


@pytest.mark.parametrize("copies", ["cp.async swizzle", "tma"])
@pytest.mark.parametrize("m", [320, 300, 127], ids=["whole tiles", "ragged", "one short of a round"])
def test_the_last_round_of_a_stream_reads_nothing_behind_its_tensors(m: int, copies: str) -> None:
    """Five tiles are two rounds and a half of the ring: the sixth, of which there is nothing, is read as zeros."""
    producer = "producer warp\n  " if copies == "tma" else ""
    written = text(groups=copies == "tma", flags=f"{producer}persistent\n  stream")
    written = written.replace("dY, X in shared at m by tma", f"dY, X in shared at m by {copies}")
    found = lowered(written, {"M": m, "N": 136, "K": 72})
    assert (found.gpu.order.stream is None) == (m == 127)
    run(found, given(found, RNG), FEW)


def test_a_stream_without_a_divided_sum_has_whole_tiles() -> None:
    found = lowered(text(flags=STREAM), {"M": 128, "N": 136, "K": 72})
    assert found.gpu.order.stream is None and not turns_in(found)
    run(found, given(found, RNG), FEW)


@pytest.mark.parametrize(
    "flags,sms,resident",
    [("producer warp\n  persistent", 4, True), ("producer warp\n  persistent", 99, False), (STREAM, 4, False),
     ("producer warp", 4, False)],
    ids=["several tiles", "one tile", "stream", "not persistent"],
)  # fmt: skip
def test_blocks_that_stay_must_all_have_room(flags: str, sms: int, resident: bool) -> None:
    """Those with several tiles wait for what blocks of higher numbers add first; the others only for lower numbers."""
    gpu = compile_kernel(lowered(text(flags=flags), {"M": 364, "N": 136, "K": 72}), replace(H100, sms=sms))
    assert [s.resident for s in gpu.launches] == [resident]


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize(("adds", "stream"), [(False, False), (True, True)], ids=["stored-parts", "added-stream"])
def test_any_order_of_blocks_gives_the_same_bits(adds: bool, stream: bool) -> None:
    """All four with a sum beside them: test_beside.py."""
    flags = {"flags": STREAM} if stream else {}
    module = load_text(text(n=256, cluster=" / cluster(128)", adds=adds, **flags), "f.tc")
    op, dims = module.ops["f"], {"M": 700, "N": 264, "K": 72}
    inputs = stored_inputs(op, module, dims)
    made = lower(op, module, dims, FEW)
    codes = virtual_run.codes_of(made, FEW)
    found = [virtual_run.execute(op, made, inputs, FEW, Options(order=order), codes)["dW"] for order in range(4)]
    assert len({f.tobytes() for f in found}) == 1


def test_turns_that_do_not_fit_are_found() -> None:
    kernel = lowered(text(), {"M": 364, "N": 136, "K": 72})
    turns = turns_in(kernel)[0].turns
    assert isinstance(turns, Turns) and isinstance(turns.before, Name)
    inputs = given(kernel, RNG)
    with pytest.raises(OutOfTurn, match=r"block 2 at dW.turns\[0, 0\] waits for 2, but the last was 1"):
        interpreted(changed(kernel, before=Num(2)), inputs)
    with pytest.raises(OutOfTurn, match=r"block 1 at dW.turns\[0, 0\] has a second turn"):
        interpreted(changed(kernel, flag=replace(turns.flag, subscripts=(Num(0), Num(0)))), inputs)
    with pytest.raises(OutOfTurn, match=r"words of dW\.turns are not zero at the end"):
        interpreted(changed(kernel, number=Binary("+", turns.before, Num(1))), inputs)


def test_a_weight_gradient_of_gpt2_in_parts() -> None:
    """768 x 768 outputs in 16 tiles of 192 x 192 by three warpgroups, eight parts each."""
    flags = "producer warp\n  persistent\n  raster 8"
    made = text(n=384, k=192, cluster=" / cluster(192)", flags=flags)
    made = made.replace("grid.z(128) / pipe(64, 2)", "grid.z(2048) / pipe(64, 4)")
    gpu = compile_kernel(lowered(made, {"M": 16384, "N": 768, "K": 768}), H100)
    assert [s.blocks for s in gpu.launches] == [128] and gpu.word_bytes == 1280 and not gpu.team_bytes
    assembled = assemble(gpu.ptx, "sm_90a")
    (resources,) = assembled.resources
    assert resources.spill_store_bytes == resources.spill_load_bytes == resources.stack_bytes == 0
    assert not assembled.findings


@pytest.mark.slow
@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
def test_a_weight_gradient_of_gpt2_in_equal_shares() -> None:
    """2304 x 768 outputs in 48 tiles of 192 x 192: of 66 clusters 48 have a part of 24 rounds of the ring, two to a
    tile, and the others the rest of the sums, 384 rounds by 18."""
    flags = "producer warp\n  persistent\n  raster 16\n  stream"
    made = text(n=384, k=192, cluster=" / cluster(192)", flags=flags).replace("pipe(64, 2)", "pipe(64, 4)")
    gpu = compile_kernel(lowered(made, {"M": 16384, "N": 2304, "K": 768}), H100)
    assert [s.blocks for s in gpu.launches] == [132] and not gpu.team_bytes
    assembled = assemble(gpu.ptx, "sm_90a")
    (resources,) = assembled.resources
    assert resources.spill_store_bytes == resources.spill_load_bytes == resources.stack_bytes == 0
    assert not assembled.findings
    function = functions_of(disassemble(assembled.cubin))[gpu.launches[0].symbol]
    products = []
    for block in range(0, 132, 2):
        warps = sample_block(function, gpu.launches[0], block, {}, Copies()).warps
        products.append(max(c.opcodes["HGMMA"] for _, c in warps) // 16)
    assert sum(products) == 24 * 64 and sorted(set(products)) == [21, 22, 24], (
        "rounds of four turns of four products each"
    )
