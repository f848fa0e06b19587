"""Sums in the blocks of a product that has one loop more (`joining/beside.py`): they read its tiles in shared memory
while it runs, and their lanes are joined behind the loop."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tcomp.autotune import virtual_run
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.errors import UserError
from tcomp.grad import backward_of
from tcomp.grad.accumulate import held
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Scope
from tcomp.ir.walk import computes
from tcomp.machine.gpu import H100, GpuMachine
from tcomp.runtime.vgpu import Options
from tcomp.runtime.vgpu.report import Report
from tcomp.schedule.lower import lower
from tests.reference.op_cases import stored_inputs
from tests.tcomp.nvptx.support import given, lowered, run
from tests.tcomp.test_schedule_gpu import assert_keeps_results

RNG = np.random.default_rng(17)
TEXT = """
op f(dY: bf16[M, N], X: bf16[M, K]{old}) -> {new}:
  db[n] {eq} {reducer} m: dY[m, n]
  dW[n, k] {eq} sum m: dY[m, n] * X[m, k]

schedule f on sm_90a:
  n -> grid.y({rows}) / warpgroup(64) / mma
  k -> grid.x({columns}) / mma
  m -> grid.z({part}) / pipe(64, {stages}) / mma
  n of db -> warpgroup(64) / lane / vec(4)
  m of db -> lane.y(8) / unroll(2)
  stage dY, X in shared at m by tma
  stage dW in shared at k by tma
  use wgmma for dW
  combine dW, db over m by partials
  {share}
  {further}
"""
SHARE = "combine db over k by partials"
FEW = replace(H100, sms=3)


def text(
    part: int = 128, share: str = SHARE, further: str = "producer warp\n  persistent\n  raster 8", reducer: str = "sum",
    rows: str = "128", columns: int = 64, stages: int = 3, adds: bool = False,
) -> str:  # fmt: skip
    """`adds`: to f32 gradients that are there."""
    old, new = (", inout dW: f32[N, K], inout db: f32[N]", "") if adds else ("", "dW: bf16[N, K], db: f32[N]")
    eq = "+=" if adds else "="
    return TEXT.format(
        part=part, share=share, further=further, reducer=reducer, rows=rows, columns=columns, stages=stages,
        old=old, new=new, eq=eq,
    ).replace(") -> :", "):")  # fmt: skip


def right(found: Kernel, machine: GpuMachine = FEW) -> list[Report]:
    """The launches' reports; results are what tile IR says, no check has a finding, no bank conflict."""
    _, reports = run(found, given(found, RNG), machine, tolerance=1e-4)
    assert not any(r.findings for r in reports)
    assert not sum(r.traffic["shared"].bank_conflicts for r in reports if "shared" in r.traffic)
    return reports


def sums_of(found: Kernel, name: str = "db") -> list[Compute]:
    return [c for c in computes(found.phases[0]) if c.target.tensor.startswith(f"{name}.") and c.accumulate]


RAGGED = {"M": 364, "N": 136, "K": 136}


def test_a_tile_is_copied_once_for_both_and_parts_are_joined_in_one_launch() -> None:
    found = lowered(text(), RAGGED)
    packs = [s for s in _statements(found) if isinstance(s, Pack)]
    assert sorted(p.source.tensor for p in packs) == ["X", "dY"] and len(found.phases) == 2
    assert {b.name: b.shape for b in found.tiles if b.scope is Scope.TEAM}["db.partial"][:2] == (3, 3)
    (own,) = sums_of(found)
    assert found.buffer(own.target.tensor).scope is Scope.REGISTERS and own.only is not None
    right(found)


@pytest.mark.parametrize("share", [SHARE, ""])
@pytest.mark.parametrize("part", [128, 4096])
def test_blocks_along_the_other_loop_share_the_sum_or_leave_it_to_the_first(share: str, part: int) -> None:
    found = lowered(text(part, share), RAGGED)
    (own,) = sums_of(found)
    assert str(own.only).count("%") == (1 if share else 0)
    assert len(found.phases) == (1 if part == 4096 and not share else 2)
    right(found)


@pytest.mark.parametrize(
    "further", ["", "persistent", "producer warp", "producer warpgroup(40)\n  persistent\n  pingpong"]
)
def test_with_and_without_warps_that_copy(further: str) -> None:
    levels = text(further=further).replace("warpgroup(64) / mma", "warpgroup(64, 1) / mma") if "ping" in further else ""
    right(lowered(levels or text(further=further), {"M": 364, "N": 136, "K": 72}))


SHAPES = [
    ({"M": 40, "N": 24, "K": 40}, "128"),
    ({"M": 520, "N": 72, "K": 264}, "192"),
    ({"M": 200, "N": 392, "K": 40}, "256) / cluster(128"),
    ({"M": 650, "N": 264, "K": 72}, "384) / cluster(192"),
]


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("dims", "rows"), [SHAPES[0], *(pytest.param(*s, marks=pytest.mark.slow) for s in SHAPES[1:])])
def test_squares_clusters_and_sums_that_go_on(dims: dict[str, int], rows: str, adds: bool) -> None:
    right(lowered(text(rows=rows, adds=adds, columns=96), dims))


@pytest.mark.parametrize("adds", [False, True])
def test_beside_parts_that_are_added_in_turns(adds: bool) -> None:
    """Parts of `dW` need no second launch then; those of `db` are joined by one."""
    written = text(adds=adds).replace("dW: bf16", "dW: f32")
    turns = "combine dW over m by turns\n  combine db over m by partials"
    found = lowered(written.replace("combine dW, db over m by partials", turns), RAGGED)
    assert len(found.phases) == 2 and [b.name for b in found.tiles if b.scope is Scope.TEAM] == ["db.partial"]
    right(found)


def in_turns(out: str = "f32", stream: bool = False, adds: bool = False, part: int = 128, **options: Any) -> str:
    further = "producer warp\n  persistent\n  raster 8" + ("\n  stream" if stream else "")
    written = text(part, "", further, adds=adds, **options)
    written = written.replace("dW: bf16", f"dW: {out}").replace("db: f32[N]:", f"db: {out}[N]:")
    return written.replace("combine dW, db over m by partials", "combine dW, db over m by turns")


@pytest.mark.parametrize("stream", [False, True], ids=["parts", "stream"])
@pytest.mark.parametrize("out,adds", [("f32", False), ("f32", True), ("bf16", False)], ids=["stored", "added", "bf16"])
def test_parts_that_are_added_in_turns_as_the_others_are(out: str, adds: bool, stream: bool) -> None:
    """Each warp adds its own values, behind that of the block before. What is narrower than f32 is summed in a
    workspace, which the launch reads that reads the product's."""
    found = lowered(in_turns(out, stream, adds), RAGGED)
    assert len(found.phases) == (1 if out == "f32" else 2) and not any(b.scope is Scope.TEAM for b in found.tiles)
    (own,) = [c for c in computes(found.phases[0]) if c.turns is not None]
    assert own.only is not None and own.turns is not None and own.turns.stores is not adds
    assert own.target.tensor == ("db" if out == "f32" else "db.joined")
    assert found.buffer("db.turns").shape == (2 * 8,), "tiles along n, warps"
    assert (found.gpu.order.stream is not None) is stream
    (report, *_) = right(found)
    assert report.grid[0] == 3


@pytest.mark.parametrize(("m", "stream"), [(300, False), (127, False), (320, True), (127, True), (620, True)])
def test_lengths_of_sums_in_turns(m: int, stream: bool) -> None:
    """Rounds of the ring that end behind the tensor; a sum of one part; blocks with several parts of tiles."""
    found = lowered(in_turns(stream=stream), {"M": m, "N": 136, "K": 72})
    assert any(c.turns for c in computes(found.phases[0])) is (m > (192 if stream else 128))
    right(found)


@pytest.mark.slow
def test_a_sum_in_turns_in_clusters_with_one_block_too_many() -> None:
    options: dict[str, Any] = {"rows": "256) / cluster(128"}
    for stream in (False, True):
        right(lowered(in_turns(stream=stream, **options), {"M": 500, "N": 392, "K": 72}))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["parts", "stream"])
@pytest.mark.parametrize("adds", [False, True])
def test_any_order_of_blocks_gives_the_same_bits(adds: bool, stream: bool) -> None:
    module = load_text(in_turns(stream=stream, adds=adds, rows="256) / cluster(128"), "f.tc")
    op, dims, machine = module.ops["f"], {"M": 700, "N": 264, "K": 72}, replace(H100, sms=4)
    inputs, made = stored_inputs(op, module, dims), lower(op, module, dims, machine)
    codes = virtual_run.codes_of(made, machine)
    found = [virtual_run.execute(op, made, inputs, machine, Options(order=order), codes) for order in range(4)]
    for name in ("dW", "db"):
        assert len({f[name].tobytes() for f in found}) == 1


def test_what_does_not_go_with_turns_is_said() -> None:
    both = in_turns().replace("by turns", "by turns\n  combine db over k by partials")
    with pytest.raises(
        TcError, match="its parts over m are added in turns, each as the whole that one block has of it"
    ):
        lowered(both, RAGGED)
    with pytest.raises(TcError, match="blocks add sums in f32 alone"):
        lowered(in_turns(reducer="max"), RAGGED)
    apart = "combine dW over m by turns\n  combine db over m by partials"
    with pytest.raises(TcError, match="a `stream` cuts 'm' elsewhere for each") as e:
        lowered(in_turns(stream=True).replace("combine dW, db over m by turns", apart), RAGGED)
    assert "combine db over m by turns" in e.value.hint


@pytest.mark.parametrize("added", [0, 1])
def test_a_line_stands_where_its_condition_holds(added: int) -> None:
    share = "combine db over k by partials when(added == 0)\n  combine dW, db over m by turns when(added > 0)"
    written = text(share=share).replace("dW: bf16", "dW: f32")
    written = written.replace("by partials\n", "by partials when(added == 0)\n", 1)
    written = written.replace("schedule f on sm_90a:\n", f"schedule f on sm_90a:\n  tune added = {added}\n")
    found = lowered(written, RAGGED)
    assert len(found.phases) == 2 - added
    right(found)


def test_the_largest_of_a_column() -> None:
    """Rows past the tensor's end are zeros in the tile, and count for nothing."""
    found = lowered(text(reducer="max"), RAGGED)
    inputs = given(found, RNG)
    inputs["dY"] = -np.abs(inputs["dY"]) - 1
    run(found, inputs, FEW, tolerance=1e-4)


def test_by_mma_sync_and_cp_async() -> None:
    schedule = """
schedule f on sm_80:
  n -> grid.y(64) / warp.y(32) / mma
  k -> grid.x(64) / warp.x(32) / mma
  m -> grid.z(128) / pipe(32, 3) / mma
  n of db -> warp.y(32) / lane / vec(4)
  m of db -> lane.y(4)
  stage dY, X in shared at m by cp.async swizzle
  use mma.sync for dW
  combine dW, db over m by partials
  combine db over k by partials
"""
    head = text().partition("schedule")[0]
    found = lowered(head + schedule, {"M": 300, "N": 100, "K": 90})
    assert len(found.phases) == 2
    run(found, given(found, RNG), tolerance=1e-4)


@pytest.mark.parametrize("share", [SHARE, ""])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("part", [64, 192, 4096])
@pytest.mark.parametrize("dims", [RAGGED, {"M": 40, "N": 24, "K": 40}, {"M": 40, "N": 136, "K": 136}])
def test_tile_ir_keeps_results(share: str, adds: bool, part: int, dims: dict[str, int]) -> None:
    written = text(part, share, adds=adds).replace("dW: bf16", "dW: f32")
    module = load_text(written, "f.tc")
    assert_keeps_results(module.ops["f"], module, dims, lower(module.ops["f"], module, dims, H100))


# ----------------------------------------------------------------------------------------------------- as shipped


def shipped(name: str, dims: dict[str, int], machine: GpuMachine = H100) -> Kernel:
    module = load_text("import ops.linear\n", "f.tc")
    found = backward_of(name, module)
    assert found is not None
    op = held(bound(found, DType.BF16), {"dW": DType.F32, "db": DType.F32})  # (as in training)
    kernels = lower(op, module, dims, machine).kernels
    assert not any(k.writes == {"db"} for k in kernels)
    return next(k for k in kernels if "dW" in k.writes)


@pytest.mark.parametrize(
    ("name", "n", "k", "launches"),
    [
        ("linear_residual", 768, 3072, 1),
        ("linear", 2304, 768, 1),
        ("linear_residual", 768, 768, 2),
        ("linear_gelu", 3072, 768, 1),
    ],
)
def test_gpt2s_bias_gradients_cost_no_launch_and_run_beside_the_products(
    name: str, n: int, k: int, launches: int
) -> None:
    """Between the issue of a turn's group and the wait for the one before; nothing spills, nothing is serialised. Two
    parts are added in turns, more are joined."""
    found = shipped(name, {"M": 16384, "N": n, "K": k})
    assert {"dW", "db"} <= found.writes and len(found.phases) == launches
    gpu = compile_kernel(found, H100)
    assembled = assemble(gpu.ptx, "sm_90a")
    for r in assembled.resources:
        assert r.spill_store_bytes == r.spill_load_bytes == r.stack_bytes == 0
    assert not [m for m in assembled.findings if m.code != "C7504"]
    try:
        sass = disassemble(assembled.cubin)
    except UserError:
        pytest.skip("nvdisasm is not installed")
    kinds = {"HGMMA": "i", "gsb0": "g", "WARPGROUP.DEPBAR": "w", "LDS.64": "l"}
    order = "".join(kinds[m] for m in re.findall(r"HGMMA|gsb0(?= ;)|WARPGROUP\.DEPBAR|LDS\.64(?= R)", sass))
    turns = re.findall(r"i+gl{8}w", order)
    assert len(turns) == sass.count("WARPGROUP.DEPBAR.LE gsb0, 0x1"), order


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,m,n,joined",
    [
        ("linear", 2112, 128, []),
        ("linear_residual", 2112, 128, []),
        ("linear_residual", 2112, 136, [2]),
        ("linear_gelu", 3136, 128, [3]),
    ],
)
def test_shipped_bias_gradients_of_divided_sums(name: str, m: int, n: int, joined: list[int]) -> None:
    """Two parts in turns, but for tiles that are cut both ways, which take registers; more parts are joined."""
    found = shipped(name, {"M": m, "N": n, "K": 264})
    assert [b.shape[0] for b in found.tiles if b.name == "db.partial"] == joined
    inputs = {
        o.name: RNG.standard_normal(o.shape).astype(np.float32) / 8 for o in found.operands if o.name in found.reads
    }
    run(found, inputs, FEW)


def _statements(found: Kernel) -> list[object]:
    def inside(body: tuple[object, ...]) -> list[object]:
        return [x for s in body for x in (s, *(inside(s.body) if isinstance(s, Loop) else ()))]

    return inside(found.phases[0])


@pytest.mark.parametrize("further", ["k -> pipe(4)", "k -> grid.z(4) / pipe(2)\n  combine s, Y over k by partials"])
def test_a_sum_in_memory_is_begun_by_the_block_that_sums(further: str) -> None:
    """Its loop stands outside of that over rows, so that no register holds it: another block's zero would undo it."""
    module = load_text(f"""
op f(X: f32[M, K], W: f32[N, K]) -> s: f32[M], Y: f32[M, N]:
  s[m] = sum k: X[m, k]
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid.y(8) / seq(4)
  n -> grid.x(8)
  {further}
  order k, m
""")
    dims = {"M": 13, "N": 11, "K": 9}
    assert_keeps_results(module.ops["f"], module, dims, lower(module.ops["f"], module, dims, H100))
