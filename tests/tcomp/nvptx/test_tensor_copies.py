"""Tiles filled by the copy engine: rings of mbarriers in pipe loops, tiles on their own, ragged and tiny tensors, what
is refused, and what the assembler makes of it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.launch import from_json, to_json
from tcomp.dsl.ast import DType, Num
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Axis, Compute, Kernel, Pack, RowMajor, Shifted, Swizzled
from tcomp.machine.gpu import H100
from tests.tcomp.nvptx.gemm import product
from tests.tcomp.nvptx.support import (
    at,
    given,
    grid,
    kernel,
    lanes,
    local,
    loop,
    lowered,
    machine,
    op,
    operand,
    run,
    shared,
    tile_axis,
)

RNG = np.random.default_rng(21)
SMALL, BLOCK = (32, 64, 32), ThreadShape(2, 2, 8, 4)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def gemm(m: int, n: int, k: int, stages: int = 3, dtype: DType = DType.BF16, swizzle: int = 64, **more: bool) -> Kernel:
    return product(m, n, k, "tma", stages, dtype, SMALL, BLOCK, (4, 4), swizzle=swizzle, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "m,n,k,stages,dtype,swizzle",
    [
        (64, 64, 96, 3, DType.BF16, 64),
        (35, 72, 40, 3, DType.BF16, 32),
        (33, 64, 40, 2, DType.F32, 128),
        (5, 7, 8, 4, DType.BF16, 64),
        (40, 64, 64, 1, DType.BF16, 0),
    ],
)
def test_products(m: int, n: int, k: int, stages: int, dtype: DType, swizzle: int) -> None:
    kernel = gemm(m, n, k, stages, dtype, swizzle)
    ptx, reports = run(kernel, given(kernel, RNG), tolerance=1e-4)
    assert "cp.async.bulk.tensor.2d" in ptx and "ld.global" not in ptx
    assert ptx.count("bar.sync") == 1, "only the barrier behind the mbarriers' initialisation"
    assert reports[0].ok


def test_products_of_tiles_along_the_rows() -> None:
    """X[k, m] and W[k, n]: two panels of 64 bytes a row."""
    kernel = gemm(32, 72, 64, transposed=False)
    run(kernel, given(kernel, RNG), tolerance=1e-4)
    (shape,) = compile_kernel(kernel, H100).launches
    assert [m.map.box for m in shape.maps] == [(32, 32), (32, 32)]


def test_one_map_serves_equal_tiles() -> None:
    """Two tiles of one tensor, at two places: one tensor map."""
    x, y = operand("X", 64, 64), operand("Y", 32, 64)
    rows, cols = tile_axis("m", 32, 32), Axis("n", Num(0), Num(64), 64)
    below = Axis("r", Num(32), Num(64), 32)
    tiles = [shared("a", 32, 64), shared("b", 32, 64)]
    body = [
        Pack("a", (rows, cols), at("X", "m", "n"), by="tma"),
        Pack("b", (below, cols), at("X", "r", "n"), by="tma"),
        Compute(
            at("Y", "m", "n"),
            op("-", at("a", local("m"), "n"), at("b", local("m"), "n")),
            (rows, replace(cols, spread=lanes(2))),
        ),
    ]
    k = kernel([x, y], [[grid("m", 32, 32, *body)]], tiles)
    run(k, {"X": rand(64, 64)})
    (shape,) = compile_kernel(k, H100).launches
    assert len(shape.maps) == 1


@pytest.mark.parametrize("rows,columns", [(3, 37), (5, 64), (2, 101), (1, 7)])
def test_vectors_start_anywhere(rows: int, columns: int) -> None:
    """Rows of X lie 4 bytes times an odd number apart: read from the multiple of 16 bytes before their first element,
    by its number, masked past their ends. Rows at multiples of 16 bytes keep a map of two dimensions."""
    block = 32
    n = tile_axis("n", block, columns)
    body = [
        Pack("t", (n,), at("X", "r.0", "n"), by="tma"),
        Compute(at("Y", "r.0", "n"), op("*", at("t", local("n")), Num(2.0)), (replace(n, spread=lanes(1)),)),
    ]
    k = kernel(
        [operand("X", rows, columns), operand("Y", rows, columns)],
        [[grid("r", rows, 1, loop("n", columns, block, *body))]],
        [shared("t", block, layout=Shifted(4) if columns % 4 else RowMajor())],
        ThreadShape(1),
    )
    run(k, {"X": rand(rows, columns)})
    (shape,) = compile_kernel(k, H100).launches
    (only,) = shape.maps
    assert only.map.box[0] == (block + 4 if columns % 4 else block)
    assert only.map.shape == ((rows * columns,) if columns % 4 else (columns, rows))
    assert not only.map.problem()


def test_a_tile_on_its_own_is_filled_again_in_each_turn() -> None:
    m, n = 50, 64
    rows, cols = tile_axis("m", 8, m), Axis("n", Num(0), Num(n), n)
    tile = shared("t", 8, n, layout=Swizzled(128))
    body = [
        Pack("t", (rows, cols), at("X", "m", "n"), by="tma"),
        Compute(at("Y", "m", "n"), at("t", local("m"), "n"), (rows, replace(cols, spread=lanes(2)))),
    ]
    k = kernel(
        [operand("X", m, n), operand("Y", m, n)], [[grid("b", 1, 1, loop("m", m, 8, *body))]], [tile], ThreadShape(2)
    )
    ptx, _ = run(k, {"X": rand(m, n)})
    assert "mbarrier.arrive.shared::cta" in ptx


def test_launch_descriptions_survive_the_cache() -> None:
    gpu = compile_kernel(gemm(67, 80, 72), H100)
    assert from_json(to_json(gpu)) == gpu
    maps = gpu.launches[0].maps
    assert [m.operand for m in maps] == ["X", "W"]
    assert maps[0].map.shape == (72, 67) and maps[0].map.strides == (144,) and maps[0].map.box == (32, 32)
    assert maps[0].map.swizzle == 64


def test_the_assembler_makes_one_instruction_of_a_copy() -> None:
    """No loop over lanes around it, no spill, no warning; needs nvdisasm to look at the machine code."""
    from tcomp.cli.show_code import disassemble
    from tcomp.errors import UserError

    gpu = compile_kernel(gemm(256, 256, 256), H100)
    assembled = assemble(gpu.ptx, "sm_90a")
    (found,) = assembled.resources
    assert found.spill_store_bytes == found.spill_load_bytes == found.stack_bytes == 0 and not assembled.findings
    try:
        sass = disassemble(assembled.cubin)
    except UserError:
        pytest.skip("nvdisasm is not installed")
    assert len(re.findall(r"UTMALDG\.2D", sass)) == 2 * (3 + 1), "three turns ahead of the loop, one in it"
    assert "BRA.U.ANY" not in sass


def test_refused_by_the_generator() -> None:
    with pytest.raises(Unsupported, match="sm_80 has no tensor copies"):
        compile_kernel(gemm(64, 64, 64), machine("sm_80"))
    with pytest.raises(Unsupported, match=r"'X' cannot be staged by tma: the stride of dimension 1 is 134 bytes"):
        compile_kernel(gemm(64, 64, 67), H100)
    mixed = gemm(64, 64, 64)
    (outer,) = mixed.phases[0]
    assert compile_kernel(mixed, H100)
    inner = outer.body[0]
    pipe = inner.body[1]
    changed = replace(pipe, body=(pipe.body[0], replace(pipe.body[1], by="cp.async"), *pipe.body[2:]))
    body = (inner.body[0], changed, *inner.body[2:])
    mixed = replace(mixed, phases=((replace(outer, body=(replace(inner, body=body),)),),))
    with pytest.raises(Unsupported, match="stage everything in this loop by tma"):
        compile_kernel(mixed, H100)


# --------------------------------------------------------------------------------------------------- from schedules

MATMUL = """
op f(X: {t}[M, K], W: {t}[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid.y(32) / warp.y(16) / lane.y(4)
  n -> grid.x(32) / warp.x(16) / lane.x / vec(2)
  k -> pipe({k}, 3) / vec(4)
  stage X, W in shared at k by tma{option}
"""


@pytest.mark.parametrize("option,swizzle", [("", 128), (" swizzle(32)", 32)])
def test_a_scheduled_product(option: str, swizzle: int) -> None:
    k = lowered(MATMUL.format(t="bf16", k=64, option=option), {"M": 40, "N": 50, "K": 104})
    assert {t.layout for t in k.tiles if t.ring > 1} == {Swizzled(swizzle)}
    run(k, {"X": rand(40, 104), "W": rand(50, 104)}, tolerance=1e-4)


ATTENTION = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

op f(QKV: bf16[B, T, 3, H, D]) -> O: f32[B, T, H, D]:
  qk[b, h, q, k] = sum d: QKV[b, q, 0, h, d] * QKV[b, k, 1, h, d]
  s[b, h, q, k] = qk[b, h, q, k] * D ** -0.5
  m[b, h, q], l[b, h, q], o[b, h, q, e] = expsum k where k <= q by s[b, h, q, k]: 1, QKV[b, k, 2, h, e]
  O[b, q, h, e] = o[b, h, q, e] / l[b, h, q]

schedule f on sm_90a:
  b, h -> grid(1)
  q -> grid(32) / warp.y(16) / lane.y(4)
  k -> {k} / lane.x
  k of o -> vec
  d -> vec
  e -> lane.x / vec
  inline s
  fuse qk, m, l, o at k
  stage QKV.0 in shared at q by tma
  stage QKV.1, QKV.2 in shared at k by tma
"""


@pytest.mark.slow
@pytest.mark.parametrize("k", ["seq(32)", "pipe(32, 2)"])
def test_scheduled_attention(k: str) -> None:
    """A tile of queries staged once, keys and values in a loop whose length depends on the block."""
    found = lowered(ATTENTION.format(k=k), {"B": 1, "T": 40, "H": 2, "D": 16})
    ptx, _ = run(found, {"QKV": rand(1, 40, 3, 2, 16)}, tolerance=1e-4)
    assert "cp.async.bulk.tensor.5d" in ptx


def test_a_range_shorter_than_the_tensor_reads_zeros_beyond() -> None:
    """V columns of P count; what the map leaves out is zero in the tile, as after any other copy."""
    text = """
op f(X: f32[M, P]; V) -> y: f32[M]:
  require V <= P
  index v: V
  y[m] = sum v: X[m, v]

schedule f on sm_90a:
  m -> grid(8)
  v -> pipe(32, 2) / lane
  stage X in shared at v by tma
"""
    k = lowered(text, {"M": 11, "P": 80, "V": 70})
    run(k, {"X": rand(11, 80)}, tolerance=1e-4)
    (shape,) = compile_kernel(k, H100).launches
    assert shape.maps[0].map.shape == (70, 11)


REFUSALS = [
    (MATMUL.format(t="bf16", k=64, option=""), {"M": 64, "N": 64, "K": 65}, "X", "the stride of dimension 1 is 130"),
    (MATMUL.format(t="f32", k=48, option=" pad(4)"), {"M": 64, "N": 64, "K": 96}, "X", "rows of its tile are padded"),
    (MATMUL.format(t="bf16", k=64, option=""), {"M": 64, "N": 64, "K": 4}, "X", "the stride of dimension 1 is 8 bytes"),
]


@pytest.mark.parametrize("text,dims,name,reason", REFUSALS)
def test_refused_at_the_stage_line(text: str, dims: dict[str, int], name: str, reason: str) -> None:
    with pytest.raises(TcError) as e:
        lowered(text, dims)
    assert e.value.message.startswith(f"{name} cannot be staged by tma: ") and reason in e.value.message
    assert e.value.span.line == 9 and e.value.hint


def test_refused_on_older_targets_and_in_mixed_pipes() -> None:
    text = MATMUL.format(t="bf16", k=64, option="").replace("on sm_90a", "on gpu")
    with pytest.raises(TcError, match="sm_80 has no tensor copies: X cannot be staged by tma"):
        lowered(text, {"M": 64, "N": 64, "K": 64}, machine("sm_80"))
    mixed = text.replace("stage X, W in shared at k by tma", "stage X in shared at k by tma\n  stage W in shared at k")
    with pytest.raises(TcError, match=r"W is staged by cp\.async in a pipe loop where other tiles come by tma") as e:
        lowered(mixed, {"M": 64, "N": 64, "K": 128})
    assert e.value.hint == "stage all tiles of this loop by tma, W too, or none"
