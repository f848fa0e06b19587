"""Contractions by matrix instructions, from the schedule's text to results: ragged and tiny sizes, every element type,
both storage orders of both operands, without bank conflicts. All checks of the virtual GPU are on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.load import load_text
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import numpy_type, stored, values
from tcomp.runtime.vgpu import Device
from tcomp.runtime.vgpu.arguments import tensor_maps
from tcomp.schedule.lower import lower
from tests.reference.op_cases import random_inputs
from tests.test_ops_gpu import execute

OP = """
op product(X: {t}[{x}], W: {u}[{w}], b: f32[N]) -> Y: {o}[M, N]:
  acc[m, n] = sum k: X[{x2}] * W[{w2}]
  Y[m, n] = acc[m, n] + b[n]

schedule product on gpu:
  m -> grid.y({bm}) / {rows} / mma
  n -> grid.x({bn}) / {columns}mma
  k -> pipe({bk}, 3) / mma
  stage X, W in shared at k by {by}
  use {use} for acc
"""
TILES = {"bm": 64, "bn": 64, "wm": 32, "wn": 32, "bk": 32}


def source(t: str, use: str, out: str, xt: bool, wt: bool, by: str, tiles: dict[str, Any], u: str = "") -> str:
    x, w = ("K, M" if xt else "M, K"), ("K, N" if wt else "N, K")
    tiles = {**TILES, **tiles}
    group = use.startswith("wgmma")
    rows = "warpgroup(64)" if group else f"warp.y({tiles['wm']})"
    tiles |= {"rows": rows, "columns": "" if group else f"warp.x({tiles['wn']}) / "}
    names = {"x": x, "w": w, "x2": x.lower(), "w2": w.lower(), "t": t, "u": u or t, "o": out, "use": use, "by": by}
    return OP.format(**names, **tiles)


def product(
    dims: tuple[int, int, int],
    t: str = "bf16",
    use: str = "mma.sync",
    out: str = "f32",
    xt: bool = False,
    wt: bool = False,
    by: str = "cp.async swizzle",
    target: str = "sm_80",
    u: str = "",
    **tiles: int,
) -> tuple[float, int, str]:
    """The largest error relative to the largest result, bank conflicts, and the PTX."""
    module = load_text(source(t, use, out, xt, wt, by, tiles, u), "product.tc")
    op, machine = module.ops["product"], machine_for_target(target)
    shape = dict(zip("MNK", dims, strict=True))
    (kernel,) = lower(op, module, shape, machine).kernels
    code = compile_kernel(kernel, machine)
    device, rng, inputs, pointers = Device(machine.sm), np.random.default_rng(3), {}, []
    for p in op.params:
        raw = stored(rng.standard_normal(operand_shape(p, shape)).astype(np.float32), p.dtype)
        inputs[p.name] = values(raw, p.dtype)
        pointers.append(device.upload(raw))
    dtype = op.outputs[0].dtype
    pointers.append(device.allocate(shape["M"] * shape["N"] * dtype.bytes))
    (launch,) = code.launches
    operands = dict(zip((o.name for o in op.operands), pointers, strict=True))
    pointers += tensor_maps(launch, operands)
    loaded = device.load(code.ptx)
    report = loaded.launch(launch.symbol, launch.blocks, launch.threads, pointers, launch.shared_bytes).check()
    found = values(device.download(operands["Y"], numpy_type(dtype), shape["M"] * shape["N"]), dtype)
    wanted = evaluate(op, module, inputs, shape)["Y"]
    error = np.abs(found.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
    return float(error), report.traffic["shared"].bank_conflicts, code.ptx


@pytest.mark.parametrize("dims", [(64, 64, 64), (1, 1, 1), (5, 7, 13), (70, 37, 41), (100, 72, 40)])
def test_any_size(dims: tuple[int, int, int]) -> None:
    error, conflicts, ptx = product(dims)
    assert error < 1e-6 and "mma.sync" in ptx
    if dims[2] % 8 == 0:  # rows of 16 bytes; others are copied element by element
        assert conflicts == 0


@pytest.mark.parametrize("xt", [False, True])
@pytest.mark.parametrize("wt", [False, True])
def test_any_storage_order(xt: bool, wt: bool) -> None:
    error, conflicts, ptx = product((72, 80, 96), xt=xt, wt=wt)
    assert error < 1e-6 and conflicts == 0
    assert (".trans" in ptx) == (xt or wt)
    assert product((72, 80, 96), xt=xt, wt=wt, by="cp.async")[0] < 1e-6


@pytest.mark.parametrize(
    ("t", "u", "use", "target", "bound"),
    [
        ("f16", "f16", "mma.sync", "sm_80", 1e-6),
        ("f32", "f32", "mma.sync.tf32", "sm_80", 1e-3),
        ("e4m3", "e4m3", "mma.sync", "sm_89", 1e-6),
        ("e4m3", "e5m2", "mma.sync", "sm_89", 1e-6),
        ("bf16", "bf16", "mma.sync", "sm_89", 1e-6),
        ("bf16", "bf16", "mma.sync", "sm_90a", 1e-6),
        ("f32", "f32", "mma.sync.tf32", "sm_90a", 1e-3),
        ("bf16", "bf16", "mma.sync", "sm_120a", 1e-6),
        ("f16", "f16", "mma.sync", "sm_120a", 1e-6),
        ("f32", "f32", "mma.sync.tf32", "sm_120a", 1e-3),
        ("e5m2", "e4m3", "mma.sync", "sm_120a", 1e-6),
    ],
)
def test_every_type(t: str, u: str, use: str, target: str, bound: float) -> None:
    error, conflicts, _ = product((40, 72, 64), t, use, target=target, u=u)
    assert error < bound and conflicts == 0


def test_tf32_reads_either_order() -> None:
    """One by one, across k: rows 8 banks apart keep four of them in places of their own."""
    assert product((40, 72, 64), "f32", "mma.sync.tf32", xt=True, wt=True)[0] < 1e-3
    error, conflicts, _ = product((40, 72, 64), "f32", "mma.sync.tf32", xt=True, wt=True, by="cp.async pad(8)")
    assert error < 1e-3 and conflicts == 0


@pytest.mark.parametrize("dims", [(300, 8, 48), (8, 300, 48), (70, 72, 80), (1, 1, 16)], ids=str)
@pytest.mark.parametrize("t,use,bk", [("f32", "mma.sync.tf32", 32), ("e4m3", "mma.sync", 32)])
def test_tall_wide_ragged_and_tiny_of_other_types(dims: tuple[int, int, int], t: str, use: str, bk: int) -> None:
    """f32 as tf32 and 8-bit floats; 16-bit types are in test_tensor_core_shapes.py. By both families."""
    bound = 1e-3 if t == "f32" else 1e-6
    error, conflicts, _ = product(dims, t, use, target="sm_120a", u="e5m2" if t == "e4m3" else t, bk=bk)
    assert error < bound and conflicts == 0
    error, conflicts, _ = product(
        dims, t, use.replace("mma.sync", "wgmma"), target="sm_90a", u="e5m2" if t == "e4m3" else t, by="tma", bk=2 * bk
    )
    assert error < 2e-3 and conflicts == 0


def test_deep_tiles_are_walked_in_a_loop() -> None:
    error, conflicts, ptx = product((64, 128, 256), bk=256, bm=32, wn=64)
    assert error < 1e-6 and conflicts == 0
    assert ptx.count("mma.sync") == 128


def test_a_narrow_result_is_rounded_once() -> None:
    error, _, _ = product((64, 64, 64), out="bf16")
    assert error < 2.0**-8


@pytest.mark.parametrize(
    "target, out, rows, columns, bn",
    [
        ("sm_90a", "bf16", "warp.y(16)", "", 64),
        *((target, "bf16", "warp.y(32)", "warp.x(32) / ", 64) for target in ("sm_90a", "sm_120a")),
        ("sm_120a", "bf16", "warp.y(32)", "warp.x(16, 2) / ", 64),
        ("sm_90a", "bf16", "warp.y(32)", "warp.x(64) / ", 128),
        ("sm_120a", "bf16", "", "warp.x(16) / ", 64),
        *((target, "f32", "warp.y(32)", "warp.x(32) / ", 64) for target in ("sm_90a", "sm_120a")),
        ("sm_120a", "f32", "warp.y(16, 2)", "warp.x(64) / ", 128),
    ],
)
def test_results_of_mma_sync_leave_in_whole_squares(target: str, out: str, rows: str, columns: str, bn: int) -> None:
    """...by stmatrix or in pairs, and by the copy engine, where both are: warps that divide rows, columns or both."""
    text = source("bf16", "mma.sync", out, False, False, "cp.async swizzle", {"bn": bn})
    text = text.replace("warp.y(32) / ", f"{rows} / " if rows else "").replace("warp.x(32) / ", columns)
    text += "  stage Y in shared at n by tma\n"
    module, machine, shape = load_text(text, "product.tc"), machine_for_target(target), {"M": 72, "N": 144, "K": 96}
    op = module.ops["product"]
    lowered = lower(op, module, shape, machine)
    code = compile_kernel(lowered.kernels[0], machine)
    ptx = code.ptx
    assert "mma.sync" in ptx and "st.global" not in ptx
    stores = set(re.findall(r"(stmatrix\S+|st\.shared\S*)", ptx))
    assert stores == {"stmatrix.sync.aligned.m8n8.x4.shared.b16" if out == "bf16" else "st.shared.v2.b32"}
    given = random_inputs(op, shape, 5)
    inputs = {p.name: values(stored(given[p.name], p.dtype), p.dtype) for p in op.params}
    found = execute(lowered, op, inputs, machine, conflicts=0, codes={code.name: code})["Y"]
    wanted = evaluate(op, module, inputs, shape)["Y"]
    assert np.abs(found - wanted).max() <= 2.0**-8 * np.abs(wanted).max()


def test_sums_stay_in_registers_over_the_pipeline() -> None:
    module = load_text(source("bf16", "mma.sync", "f32", False, False, "cp.async swizzle", {}), "product.tc")
    (kernel,) = lower(module.ops["product"], module, {"M": 64, "N": 64, "K": 256}, machine_for_target("sm_80")).kernels
    ptx = compile_kernel(kernel, machine_for_target("sm_80")).ptx
    assert ".local" not in ptx and "st.shared" not in ptx


def test_warps_whose_shares_of_a_copy_differ() -> None:
    """Six warps: some copy one piece more, so they come to the barriers at other times."""
    assert product((128, 96, 160), bm=128, wm=64, bn=96)[0] < 1e-6


# ---------------------------------------------------------------------------------------------------------- wgmma


@pytest.mark.parametrize("by", ["tma", "cp.async swizzle"])
@pytest.mark.parametrize("xt", [False, True])
@pytest.mark.parametrize("wt", [False, True])
def test_wgmma_reads_shared_tiles_in_place(xt: bool, wt: bool, by: str) -> None:
    error, conflicts, ptx = product((136, 80, 72), use="wgmma", xt=xt, wt=wt, by=by, target="sm_90a", bm=128, bk=64)
    assert error < 1e-6 and conflicts == 0
    assert f", 1, 1, {int(xt)}, {int(wt)};" in ptx and "ldmatrix" not in ptx
    # What ordinary copies wrote must be made visible to the asynchronous proxy; the copy engine's tiles are.
    assert ("fence.proxy.async" in ptx) == (by != "tma")


def test_a_turn_waits_for_the_products_of_the_turn_before() -> None:
    """...whose tiles it then releases; the last turn's are awaited behind the loop."""
    error, _, ptx = product((72, 80, 264), use="wgmma", by="tma", target="sm_90a", bk=64)
    assert error < 1e-6 and ptx.count("wgmma.commit_group") == 1
    assert ptx.index("wgmma.wait_group.sync.aligned 1") < ptx.index("wgmma.wait_group.sync.aligned 0")


def test_turns_are_written_out_for_each_copy_of_the_ring() -> None:
    """...where they are a multiple of its copies (three here), so that every run begins at the first."""
    error, _, ptx = product((72, 80, 376), use="wgmma", by="tma", target="sm_90a", bk=64)
    assert error < 1e-6 and ptx.count("wgmma.commit_group") == 3


@pytest.mark.parametrize("dims", [(1, 1, 8), (5, 7, 13), (70, 24, 41)])
def test_wgmma_of_any_size(dims: tuple[int, int, int]) -> None:
    by = "tma" if dims[2] % 8 == 0 else "cp.async swizzle"
    assert product(dims, use="wgmma", target="sm_90a", by=by, bk=64)[0] < 1e-6


@pytest.mark.parametrize(
    ("t", "u", "use", "bk", "bound"),
    [
        ("f16", "f16", "wgmma", 64, 1e-6),
        ("f32", "f32", "wgmma.tf32", 32, 2e-3),
        ("e4m3", "e4m3", "wgmma", 128, 1e-3),
        ("e5m2", "e4m3", "wgmma", 64, 1e-3),
    ],
)
def test_wgmma_of_every_type(t: str, u: str, use: str, bk: int, bound: float) -> None:
    error, conflicts, _ = product((72, 64, 128), t, use, u=u, target="sm_90a", by="tma", bk=bk)
    assert error < bound and conflicts == 0


@pytest.mark.parametrize(
    ("bm", "bn", "width"), [(64, 8, 8), (64, 40, 40), (64, 136, 136), (128, 248, 248), (128, 256, 256), (64, 384, 192)]
)
def test_wgmma_of_many_widths(bm: int, bn: int, width: int) -> None:
    by = "tma" if bn <= 256 else "cp.async swizzle"
    error, _, ptx = product((bm, bn, 64), use="wgmma", target="sm_90a", by=by, bm=bm, bn=bn, bk=64)
    assert error < 1e-6
    assert f"m64n{width}k16" in ptx


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_one_to_three_warpgroups_compute_and_one_copies(groups: int) -> None:
    by = "tma\n  producer warpgroup(24)\n  persistent"
    error, conflicts, ptx = product((200, 72, 136), use="wgmma", by=by, target="sm_90a", bm=64 * groups, bk=64)
    assert error < 1e-6 and conflicts == 0
    assert ("setmaxnreg.inc" in ptx) == (groups > 1), "two warpgroups have all the registers that threads can use"
    assert f".reqntid {128 * (groups + 1)}" in ptx or f".maxntid {128 * (groups + 1)}" in ptx


EVERY_EPILOGUE = """
import ops.math

op ends(X: bf16[M, K], W: bf16[N, K], b: bf16[N], R: bf16[M, N], s: f32[])
    -> P: bf16[M, N], Y: bf16[M, N], Q: e4m3[M, N], Qt: e4m3[N, M], G: bf16[M, N], amax: f32[]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  P[m, n] = acc[m, n] + b[n]
  Y[m, n] = gelu(P[m, n]) + R[m, n]
  G[m, n] = R[m, n] * gelu_slope(P[m, n])
  Q[m, n] = Y[m, n] * s
  Qt[n, m] = Y[m, n] * s
  largest[m] = max n: abs(Y[m, n])
  amax = max m: largest[m]

schedule ends on sm_90a:
  m -> grid.y(128) / warpgroup(64) / mma
  n -> grid.x(64) / mma
  k -> pipe(64, 2) / mma
  stage X, W in shared at k by tma
  use wgmma for acc
  inline P, Y
  combine largest over n by partials
  combine amax over m by partials
"""


@pytest.mark.slow
def test_one_product_with_every_epilogue() -> None:
    """Of one accumulator: bias, GELU and its derivative, residual, cast to 8 bits, transposed copy, largest
    value, which is joined over one grid loop and then over the other."""
    module, machine = load_text(EVERY_EPILOGUE), machine_for_target("sm_90a")
    op, dims = module.ops["ends"], {"M": 200, "N": 136, "K": 136}
    lowered = lower(op, module, dims, machine)
    assert "wgmma" in compile_kernel(lowered.kernels[0], machine).ptx and len(lowered.kernels) == 1
    given = random_inputs(op, dims, 5)
    inputs = {p.name: values(stored(given[p.name], p.dtype), p.dtype) for p in op.params}
    found = execute(lowered, op, inputs, machine, conflicts=0)
    for name, wanted in evaluate(op, module, inputs, dims).items():
        unit = 2.0**-3 if name in ("Q", "Qt") else 2.0**-7  # one of e4m3, two of bf16: P and Y are rounded beside a tie
        np.testing.assert_allclose(found[name], wanted, rtol=unit, atol=2.0**-8, err_msg=name)
    assert (found["Qt"] == found["Q"].T).all()


# ------------------------------------------------------------------------------------------------ which schedule holds

TWO = """
op product(X: real[M, K], W: real[N, K]) -> Y: real[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule product on sm_80:
  m -> grid.y(64) / warp.y(32) / mma
  n -> grid.x(64) / warp.x(32) / mma
  k -> pipe(32, 3) / mma
  stage X, W in shared at k by cp.async swizzle
  use mma.sync for Y

schedule product on gpu:
  m -> grid.y(64) / warp.y(32) / lane.y(8)
  n -> grid.x(64) / warp.x(32) / lane.x / vec
  k -> pipe(16, 2) / vec
  stage X, W in shared at k by cp.async
"""


@pytest.mark.parametrize(
    ("dtype", "target", "matrix"),
    [
        (DType.BF16, "sm_80", True),
        (DType.F16, "sm_120a", True),
        (DType.BF16, "sm_90a", True),
        (DType.F32, "sm_80", False),
    ],
)
def test_a_schedule_holds_for_the_types_its_instruction_takes(dtype: DType, target: str, matrix: bool) -> None:
    from tcomp.dsl.storage import bound

    module, machine = load_text(TWO, "two.tc"), machine_for_target(target)
    (kernel,) = lower(bound(module.ops["product"], dtype), module, {"M": 64, "N": 64, "K": 64}, machine).kernels
    assert ("mma.sync" in compile_kernel(kernel, machine).ptx) == matrix
