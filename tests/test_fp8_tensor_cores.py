"""8-bit linear layers on tensor cores, forward and backward: wgmma on Hopper, tcgen05 on Blackwell (a scale for each
tensor), mma.sync on other GPUs with 8-bit units.

Every check of the virtual GPU is on, results are the oracle's, and nothing in the assembled kernels spills or is
serialised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from tcomp.autotune.virtual_run import reported
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.runtime.vgpu.tcgen05_descriptor import product_of
from tcomp.schedule.lower import lower
from tests.reference.op_cases import GPT2
from tests.test_ops_gpu import execute

DIMS = {"M": 200, "N": 112, "K": 272, "H": 16}
"""M is whole tiles neither of the passes that cast and transpose nor of the products"""
RAGGED = {"M": 67, "N": 70, "K": 131, "H": 16}
"""rows that are no multiple of 16 bytes: the copy engine cannot take them, cp.async and mma.sync can"""
LAYERS = ("matmul_residual", "linear_gelu")
"""all layers share their schedules: these two have every kernel of them between them"""
QUICK = [("linear_gelu_fp8", ".backward", "sm_90a"), ("matmul_residual_fp8_block", "", "sm_90a")]
EVERY = [
    pytest.param(f"{n}_{s}", b, t, marks=[] if (f"{n}_{s}", b, t) in QUICK else pytest.mark.slow)
    for n in LAYERS
    for s in ("fp8", "fp8_block")
    for b in ("", ".backward")
    for t in ("sm_90a", "sm_89", "sm_100a")
    if t == "sm_90a" or (n == "linear_gelu" and (t == "sm_89" or s == "fp8"))
]
Array = np.ndarray


def eight_bit_layers() -> Module:
    return load_text("import ops.fp8\nimport ops.fp8_block\n", str(GPT2.with_name("eight_bits.tc")))


def dims_of(name: str, dims: dict[str, int]) -> dict[str, int]:
    return {d: n for d, n in dims.items() if d != "H" or "block" not in name}


def inputs_of(op: Op, dims: dict[str, int]) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    found = {}
    for p in op.params:
        x = rng.standard_normal(operand_shape(p, dims)).astype(np.float32)
        x = np.full_like(x, 3.5) if p.name.startswith("h") else x
        found[p.name] = values(stored(x, p.dtype), p.dtype)
    return found


def close(
    name: str, target: str, dims: dict[str, int], chosen: Mapping[str, int | float] = MappingProxyType({})
) -> None:
    module, machine = eight_bit_layers(), machine_for_target(target)
    op = bound(module.ops[name], DType.BF16)
    inputs = inputs_of(op, dims_of(name, dims))
    lowered = lower(op, module, dims_of(name, dims), machine, chosen=chosen)
    found = execute(lowered, op, inputs, machine, conflicts=0)
    for output, x in evaluate(op, module, inputs, dims_of(name, dims)).items():
        # wgmma keeps 14 bits of a sum, results are rounded to 8. Scales are in f32, so that a value which the oracle
        # rounds to one 8-bit float may become its neighbour: one term of 272 moves by an eighth.
        np.testing.assert_allclose(found[output], x, rtol=2.0**-7, atol=2.0**-6 * np.abs(x).max(), err_msg=output)


@pytest.mark.parametrize("name, backward, target", EVERY)
def test_layers_are_the_oracles(name: str, backward: str, target: str) -> None:
    close(name + backward, target, DIMS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, target, sizes",
    [
        ("linear_gelu_fp8", "sm_120a", (520, 64, 64)),
        ("linear_gelu_fp8_block.backward", "sm_120a", (520, 32, 48)),
        ("linear_gelu_fp8.backward", "sm_90a", (64, 528, 64)),
        ("linear_gelu_fp8", "sm_90a", (1, 16, 16)),
        ("linear_gelu_fp8", "sm_90a", (520, 32, 48)),
        ("linear_gelu_fp8.backward", "sm_120a", (520, 32, 48)),
        ("linear_gelu_fp8", "sm_120a", (24, 528, 64)),
        ("linear_gelu_fp8.backward", "sm_90a", (24, 528, 64)),
        ("linear_gelu_fp8", "sm_100a", (1, 16, 16)),
        ("linear_gelu_fp8.backward", "sm_100a", (24, 48, 528)),
    ],
)
def test_tall_wide_and_tiny(name: str, target: str, sizes: tuple[int, int, int]) -> None:
    close(name, target, dict(zip("MNK", sizes, strict=True)) | {"H": 16})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes, chosen",
    [
        ("linear_gelu_fp8_block", (300, 48, 144), {"BM": 256, "S": 2}),
        ("linear_gelu_fp8_block.backward", (520, 144, 48), {"dX.BM": 256, "dX.S": 3}),
        ("matmul_fp8_block.backward", (300, 520, 144), {"dW.BM": 256, "dW.S": 3}),
        ("matmul_fp8_block.backward", (130, 32, 48), {"dW.BM": 256, "dW.S": 2}),
        ("matmul_fp8_block.backward", (300, 400, 144), {"dW.BM": 192, "dW.S": 3}),
        ("matmul_fp8_block.backward", (700, 144, 160), {"dW.parts": 3}),
    ],
)
def test_rows_that_warpgroups_take_in_turns(name: str, sizes: tuple[int, int, int], chosen: dict[str, int]) -> None:
    close(name, "sm_90a", dict(zip("MNK", sizes, strict=True)), chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_before_gelu_fp8_block", "linear_residual_of_gelu_fp8_block"])
def test_gelu_where_the_next_layer_quantises(name: str) -> None:
    close(name, "sm_90a", {"M": 140, "N": 48, "K": 160})


def test_layer_normalisation_leaves_blocks() -> None:
    """8-bit values are the oracle's, bit for bit, in both orders."""
    module, machine, dims = eight_bit_layers(), machine_for_target("sm_90a"), {"M": 256, "C": 384}
    op = bound(module.ops["layernorm_cast_fp8_block"], DType.BF16)
    inputs = inputs_of(op, dims)
    lowered = lower(op, module, dims, machine)
    assert [len(k.phases) for k in lowered.kernels] == [1]
    found = execute(lowered, op, inputs, machine, conflicts=0)
    for output, x in evaluate(op, module, inputs, dims).items():
        bits = output in ("Yr", "Yt")
        np.testing.assert_allclose(found[output], x, rtol=0 if bits else 1e-6, atol=0 if bits else 1e-7, err_msg=output)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_given", "linear_gelu_given", "linear_before_gelu_given"])
def test_products_of_what_comes_quantised(name: str) -> None:
    close(f"{name}_fp8_block", "sm_90a", {"M": 256, "N": 112, "K": 272})


@pytest.mark.parametrize("rows, columns", [(32, 48), (24, 528), (1, 16)])
def test_a_narrow_tile_that_is_turned_has_room_for_what_lanes_cover_either_way(rows: int, columns: int) -> None:
    """Lanes past the end of a smaller one would all be sent to its last row, and meet in that row's banks."""
    module, machine = eight_bit_layers(), machine_for_target("sm_90a")
    op = bound(module.ops["linear_gelu_fp8"], DType.BF16)
    lowered = lower(op, module, {"M": rows, "N": rows, "K": columns, "H": 16}, machine)
    tiles = {t.name: t.shape for k in lowered.kernels for t in k.tiles if t.name in ("Xq", "Wq")}
    assert tiles.keys() == {"Xq", "Wq"} and all(n >= 64 for shape in tiles.values() for n in shape)


@pytest.mark.slow
def test_layer_normalisation_spills_nothing() -> None:
    module, machine = eight_bit_layers(), machine_for_target("sm_90a")
    for columns in (768, 1024, 1280, 2048):
        op = bound(module.ops["layernorm_cast_fp8_block"], DType.BF16)
        (kernel,) = lower(op, module, {"M": 16384, "C": columns}, machine).kernels
        assert not assemble(compile_kernel(kernel, machine).ptx, "sm_90a").findings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_gelu_fp8_block.backward"])
def test_shapes_that_tensor_copies_cannot_take(name: str) -> None:
    close(name, "sm_90a", RAGGED)


@pytest.mark.parametrize("backward", ["", ".backward"])
def test_passes_that_transpose_ask_memory_for_whole_sectors(backward: str) -> None:
    """They turn tiles in shared memory: read from memory along the other index, a byte would cost a sector of 32."""
    module, machine, dims = eight_bit_layers(), machine_for_target("sm_90a"), {"M": 64, "N": 64, "K": 128, "H": 16}
    op = bound(module.ops["linear_gelu_fp8" + backward], DType.BF16)
    lowered = lower(op, module, dims, machine)
    _, reports = reported(op, lowered, inputs_of(op, dims), machine)
    names = [k.name for k in lowered.kernels for _ in k.phases]
    passes = [r.traffic for name, r in zip(names, reports, strict=True) if re.search(r"\.(Xr|Wr|Dr)\b", name)]
    assert passes and any("shared" in t for t in passes)
    for t in passes:
        # (the same values' scale, and a bias gradient's few parts, are less than a sector)
        moved = t["global"].bytes_read + t["global"].bytes_written
        assert 32 * t["global"].sectors <= 1.1 * moved


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix, target, family",
    [
        *((s, t, f) for s in ("fp8", "fp8_block")
          for t, f in (("sm_90a", "wgmma.mma_async"), ("sm_89", "mma"), ("sm_120a", "mma"))),
        ("fp8", "sm_100a", "tcgen05"),
    ],
)  # fmt: skip
def test_all_products_are_matrix_instructions_without_spills(suffix: str, target: str, family: str) -> None:
    module, machine = eight_bit_layers(), machine_for_target(target)
    products = []
    for name in (f"linear_gelu_{suffix}", f"linear_gelu_{suffix}.backward"):
        sizes = dims_of(name, {"M": 4096, "N": 1024, "K": 768, "H": 16})
        for kernel in lower(bound(module.ops[name], DType.BF16), module, sizes, machine).kernels:
            code = compile_kernel(kernel, machine)
            products += _products(code.ptx, family)
            built = assemble(code.ptx, target)
            assert not built.findings and not any(r.spill_store_bytes for r in built.resources), kernel.name
    assert products == ["e4m3.e4m3", "e5m2.e4m3", "e5m2.e4m3"]


def _products(ptx: str, family: str) -> list[str]:
    """The types that matrix instructions multiply: tcgen05 says them in an instruction descriptor."""
    if family != "tcgen05":
        return sorted(set(re.findall(rf"{re.escape(family)}\.sync\S+f32\.(e\dm\d\.e\dm\d)", ptx)))
    assert not re.search(r"\bmma\.sync", ptx)
    blocks = (b for b in ptx.split("{ .reg .b64 da, db;")[1:] if "tcgen05.mma.cta_group::2.kind::f8f6f4 " in b)
    codes = {int(b.partition("mov.b32 i, ")[2].partition(";")[0]) for b in blocks}
    found = {product_of("f8f6f4", code, 2) for code in codes}
    return sorted(f"{p.a}.{p.b}" for p in found)
