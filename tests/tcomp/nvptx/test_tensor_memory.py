"""Products by tcgen05: sums in tensor memory, on the virtual GPU with every check on, and through the assembler."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.autotune import virtual_run
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.dsl.load import load_text
from tcomp.instructions import TCGEN05, Instruction
from tcomp.instructions.tcgen05 import ROWS, loaded
from tcomp.machine.gpu import GpuMachine, machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.runtime.vgpu import Options
from tcomp.runtime.vgpu.report import KernelFault
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx import support

B200 = machine_for_target("sm_100a")
FEW = replace(B200, sms=2)
PLAIN = {"along": ("X: {x}[M, K], W: {w}[N, K]", "X[m, k] * W[n, k]"),
         "across": ("X: {x}[K, M], W: {w}[K, N]", "X[k, m] * W[k, n]"),
         "mixed": ("X: {x}[M, K], W: {w}[K, N]", "X[m, k] * W[k, n]")}  # fmt: skip


def text(order: str = "along", x: str = "bf16", w: str = "bf16", y: str = "f32", rows: int = 128, columns: int = 64,
         depth: int = 64, lines: str = "persistent", use: str = "tcgen05") -> str:  # fmt: skip
    operands, product = PLAIN[order]
    return f"""
op f({operands.format(x=x, w=w)}) -> Y: {y}[M, N]:
  acc[m, n]: f32 = sum k: {product}
  Y[m, n] = acc[m, n] * 0.5

schedule f on sm_100a:
  m -> grid.y({rows}) / warpgroup(128) / mma
  n -> grid.x({columns}) / mma
  k -> pipe({depth}, 3) / mma
  stage X, W in shared at k by tma
  use {use} for acc
  producer warpgroup(40)
  {lines}
"""


def agrees(source: str, dims: dict[str, int], machine: GpuMachine = FEW, order: int = 0, result: str = "Y") -> None:
    """Small integers: sums are exact in f32, and in bf16 after one rounding."""
    module = load_text(source, "f.tc")
    op, rng = module.ops["f"], np.random.default_rng(3)
    lowered = lower(op, module, dims, machine)
    (kernel,) = lowered.kernels
    inputs = {}
    for o in kernel.operands:
        if o.name in kernel.reads:
            given = rng.integers(-3, 4, o.shape).astype(np.float32)
            inputs[o.name] = values(stored(given, o.dtype), o.dtype)
    found = virtual_run.execute(op, lowered, inputs, machine, Options(order=order))[result]
    wanted = evaluate(op, module, inputs, dims)[result]
    dtype = kernel.buffer(result).dtype
    assert np.array_equal(found, values(stored(wanted.astype(np.float32), dtype), dtype))


@pytest.mark.parametrize("order", PLAIN)
@pytest.mark.parametrize("dims", [(256, 128, 128), (200, 104, 136)], ids=str)
def test_operands_may_lie_either_way(order: str, dims: tuple[int, int, int]) -> None:
    """Blocks take several tiles, so both accumulators are used more than once."""
    agrees(text(order, y="bf16"), dict(zip("MNK", dims, strict=True)))


@pytest.mark.parametrize(
    ("x", "w", "order", "depth"),
    [("f16", "f16", "mixed", 32), ("e4m3", "e4m3", "along", 64), ("e5m2", "e4m3", "across", 128),
     ("f32", "f32", "along", 16)],
)  # fmt: skip
def test_types(x: str, w: str, order: str, depth: int) -> None:
    use = "tcgen05.tf32" if x == "f32" else "tcgen05"
    agrees(text(order, x, w, depth=depth, columns=96, use=use), {"M": 160, "N": 208, "K": 272})


@pytest.mark.parametrize(
    ("rows", "columns", "lines"),
    [
        (256, 48, "persistent"),
        (256, 128, ""),
        (128, 16, "raster 2"),
        (128, 128, "stage Y in shared at n by tma"),
        (128, 256, "persistent\n  stage Y in shared at n by tma"),
        (256, 240, "persistent"),
        (128, 208, ""),
    ],
)
def test_tiles(rows: int, columns: int, lines: str) -> None:
    """Of up to 256 columns a warpgroup; where they are more than 128, they come to registers panel by panel."""
    agrees(text(rows=rows, columns=columns, lines=lines, y="bf16"), {"M": 392, "N": 136, "K": 72})


@pytest.mark.parametrize("dims", [(256, 128, 192), (392, 136, 72)], ids=str)
def test_blocks_of_a_cluster_share_tiles(dims: tuple[int, int, int]) -> None:
    """Each fetches half of W's tile for both; the last cluster has a block without rows. A tile may be overwritten when
    the products of both blocks have read it."""
    source = text(y="bf16", columns=128, lines="persistent\n  stage Y in shared at n by tma")
    source = source.replace("grid.y(128)", "grid.y(256) / cluster(128)")
    machine = replace(B200, sms=4)
    kernel = support.lowered(source, dict(zip("MNK", dims, strict=True)), machine)
    assert ".multicast::cluster.b64 [" in compile_kernel(kernel, machine).ptx
    agrees(source, dict(zip("MNK", dims, strict=True)), machine)


@pytest.mark.parametrize(("columns", "rows"), [(256, "grid.y(128)"), (64, "grid.y(256) / cluster(128)")])
def test_sides_of_a_block_take_sums_in_turn(columns: int, rows: str) -> None:
    """Five rows of tiles: one side has a tile more than the other."""
    source = text(y="bf16", columns=columns, lines="persistent\n  pingpong\n  stage Y in shared at n by tma")
    source = source.replace("grid.y(128) / warpgroup(128)", f"{rows} / warpgroup(128, 1)")
    agrees(source, {"M": 616, "N": columns, "K": 136}, order=columns % 3)


@pytest.mark.parametrize(("columns", "blocks"), [(256, 1), (128, 2), (64, 4)])
def test_blocks_of_clusters_never_wait_for_columns(columns: int, blocks: int) -> None:
    """Two clusters that share two multiprocessors could each have the columns of one, and wait for the other's."""
    source = text(columns=columns, depth=16).replace("grid.y(128)", "grid.y(256) / cluster(128)")
    kernel = support.lowered(source, {"M": 512, "N": 512, "K": 64}, B200)
    (launch,) = compile_kernel(kernel, B200).launches
    assert launch.cluster == 2 and B200.tensor_columns // launch.tensor_columns == blocks
    assert occupancy(B200, 32, launch.threads, launch.shared_bytes).blocks <= blocks


def test_sides_of_a_block_have_a_sum_each() -> None:
    """With one accumulator the second side would load it before the first sum is there."""
    source = text(columns=160, rows=256, lines="persistent\n  pingpong")
    kernel = support.lowered(source, {"M": 264, "N": 160, "K": 64}, FEW)
    with pytest.raises(Unsupported, match="a sum for each side of a block, of 320 columns"):
        compile_kernel(kernel, FEW)
    agrees(source.replace("grid.x(160)", "grid.x(128)"), {"M": 520, "N": 128, "K": 64})


def test_a_tile_of_a_cluster_is_not_free_for_this_blocks_products_alone() -> None:
    source = text(y="bf16", columns=128).replace("grid.y(128)", "grid.y(256) / cluster(128)")
    machine = replace(B200, sms=2)
    kernel = support.lowered(source, {"M": 256, "N": 128, "K": 512}, machine)
    gpu = compile_kernel(kernel, machine)
    broken = replace(gpu, ptx=re.sub(r"mov\.b16 blocks, 3;", "mov.b16 blocks, 1;", gpu.ptx))
    assert broken.ptx != gpu.ptx
    with pytest.raises(KernelFault):
        support.launch(kernel, broken, support.given(kernel, np.random.default_rng(1)), 100)


@pytest.mark.parametrize("target", ["sm_103a", "sm_110a"])
def test_other_targets_that_have_it(target: str) -> None:
    """By the schedule for sm_100a, in code of their own."""
    machine = machine_for_target(target)
    agrees(text(y="bf16"), {"M": 136, "N": 64, "K": 64}, replace(machine, sms=2))
    kernel = support.lowered(text(y="bf16"), {"M": 256, "N": 128, "K": 128}, machine)
    code = compile_kernel(kernel, machine)
    assert f".target {target}" in code.ptx and "tcgen05.mma" in code.ptx
    assert assemble(code.ptx, target).resources[0].spill_store_bytes == 0


def test_the_order_of_blocks_and_warps_is_free() -> None:
    for order in (1, 2):
        agrees(text(y="bf16"), {"M": 384, "N": 128, "K": 192}, order=order)


@pytest.mark.parametrize(
    ("without", "finding"),
    [
        ("tcgen05.fence::after_thread_sync;", "missing tcgen05.fence"),
        ("tcgen05.fence::before_thread_sync;", "missing tcgen05.fence"),
        ("tcgen05.wait::ld.sync.aligned;", "missing tcgen05.wait"),
        ("tcgen05.dealloc.cta_group::1.sync.aligned.b32 ", "tensor memory misuse"),
    ],
)
def test_what_a_kernel_may_not_leave_out_is_found(without: str, finding: str) -> None:
    """The tests above would notice."""
    kernel = support.lowered(text(), {"M": 256, "N": 128, "K": 128}, replace(B200, sms=1))
    gpu = compile_kernel(kernel, replace(B200, sms=1))
    broken = replace(gpu, ptx=gpu.ptx.replace(without, "//" if without[-1] == " " else ""))
    assert broken.ptx != gpu.ptx
    with pytest.raises(KernelFault, match=finding):
        support.launch(kernel, broken, support.given(kernel, np.random.default_rng(1)), 100)


REFUSED = {
    "needs warps beside those that compute": ("producer warpgroup(40)", "producer warp"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_it_cannot_do_is_refused(why: str) -> None:
    kernel = support.lowered(text().replace(*REFUSED[why]), {"M": 256, "N": 128, "K": 128}, B200)
    with pytest.raises(Unsupported, match=why):
        compile_kernel(kernel, B200)


def test_the_assembler_takes_it_without_spills() -> None:
    kernel = support.lowered(text(y="bf16", rows=256, columns=128, lines="persistent\n  stage Y in shared at n by tma"),
                             {"M": 4096, "N": 2048, "K": 1024}, B200)  # fmt: skip
    (used,) = assemble(compile_kernel(kernel, B200).ptx, "sm_100a").resources
    assert used.spill_store_bytes == used.spill_load_bytes == used.stack_bytes == 0
    assert 128 < used.registers <= 168


@pytest.mark.parametrize("lines", ["", "  stage Y in shared at n by tma"])
def test_a_sum_that_comes_by_panels_takes_few_registers(lines: str) -> None:
    kernel = support.lowered(text(y="bf16", columns=256, lines=f"persistent\n{lines}"),
                             {"M": 4096, "N": 2048, "K": 1024}, B200)  # fmt: skip
    (tile,) = (t for t in kernel.tiles if t.name == "acc")
    assert (tile.shape, tile.columns) == ((128, 256), 64)
    (used,) = assemble(compile_kernel(kernel, B200).ptx, "sm_100a").resources
    assert used.spill_store_bytes == used.spill_load_bytes == used.stack_bytes == 0
    assert 64 < used.registers <= 128


def test_an_accumulator_is_given_back_when_its_last_panel_is_loaded() -> None:
    """An arrival for each load but the last would let products overwrite columns that are still to come."""
    source = text(y="bf16", columns=128, lines="persistent\n  stage Y in shared at n by tma")
    kernel = support.lowered(source, {"M": 512, "N": 256, "K": 64}, replace(B200, sms=1))
    gpu = compile_kernel(kernel, replace(B200, sms=1))
    load, before = "tcgen05.ld.sync", "tcgen05.fence::before_thread_sync;"
    first, second = gpu.ptx.find(load), gpu.ptx.rfind(load)
    assert first < second < gpu.ptx.find(before) and gpu.ptx.count(before) == 1


@pytest.mark.parametrize("i", [i for i in TCGEN05 if i.m == ROWS], ids=lambda i: i.name)
def test_each_declared_instruction_computes_its_equation(i: Instruction) -> None:
    agrees(text(x=i.a.value, w=i.b.value, depth=i.k, columns=i.n[0], use=i.family), {"M": i.m, "N": i.n[0], "K": i.k})


def test_warps_load_their_rows_as_two_accumulators() -> None:
    """32 rows a warp; registers: pairs of columns of rows g and g + 8, the next columns, the 16 rows below."""
    layout = loaded(64)
    for thread in range(128):
        for e in range(64):
            lane = thread % 32
            row = thread // 32 * 32 + e // 32 * 16 + e // 2 % 2 * 8 + lane // 4
            assert layout.place(thread, e) == (row, e % 32 // 4 * 8 + lane % 4 * 2 + e % 2)
    half = loaded(64, 64)
    assert {half.place(t, e) for t in range(128) for e in range(32)} == {(m, n) for m in range(64) for n in range(64)}
    assert all(half.place(t, e)[0] // 16 == t // 32 for t in range(128) for e in range(32))


@pytest.mark.parametrize("m", [384, 456])
def test_parts_of_a_sum(m: int) -> None:
    """Both operands lie across the summed index; parts are joined in a second launch, the last one may be shorter."""
    source = """
op f(X: bf16[M, N], W: bf16[M, K]) -> Y: f32[N, K]:
  Y[n, k] = sum m: X[m, n] * W[m, k]

schedule f on sm_100a:
  n -> grid.y(128) / warpgroup(128) / mma
  k -> grid.x(64) / mma
  m -> grid.z(128) / pipe(64, 2) / mma
  stage X, W in shared at m by tma
  stage Y in shared at k by tma
  use tcgen05 for Y
  combine Y over m by partials
  producer warpgroup(40)
  persistent
"""
    agrees(source, {"M": m, "N": 136, "K": 72})
