"""Shipped products and attention on tensor cores at each class of shape: tall, wide, ragged, odd and tiny; every
target, both 16-bit types, forward and backward, gradients of weights added in f32 to what is there, as a step's are.

On the virtual GPU with all checks on: results are the oracle's within the rounding of their type and of what the
schedule rounds on the way, and shared memory meets no bank conflict.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.autotune.virtual_run import codes_of, reported
from tcomp.dsl.ast import DType
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating, held
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.verify import distance
from tcomp.runtime.vgpu import Options
from tcomp.schedule.lower import lower
from tests.reference.op_cases import WEIGHTS, library, stored_inputs
from tests.test_fp8_tensor_cores import eight_bit_layers, inputs_of

SHAPES = {
    "tall": {"M": 520, "N": 32, "K": 72},
    "wide": {"M": 24, "N": 520, "K": 64},
    "ragged": {"M": 200, "N": 152, "K": 104},
    "odd": {"M": 67, "N": 70, "K": 131},
    "tiny": {"M": 1, "N": 8, "K": 8},
}
ATTENTION = {
    "long": {"B": 1, "T": 130, "H": 2, "D": 64},
    "heads of 128": {"B": 1, "T": 96, "H": 1, "D": 128},
    "tiny": {"B": 2, "T": 1, "H": 1, "D": 64},
    "grouped": {"B": 1, "T": 130, "G": 1, "R": 2, "D": 64},
}
QUICK = [
    ("linear_gelu", "wide", DType.BF16, "sm_89"),
    ("linear_gelu.backward", "tall", DType.BF16, "sm_90a"),
    ("linear_residual.backward", "tiny", DType.F16, "sm_120a"),
    ("attention", "tiny", DType.F16, "sm_80"),
]
MORE = [
    ("linear_gelu", "ragged", DType.F16, "sm_90a"),
    ("linear_gelu.backward", "ragged", DType.BF16, "sm_80"),
    ("linear_gelu.backward", "wide", DType.F16, "sm_90a"),
    ("matmul_residual.backward", "ragged", DType.F16, "sm_89"),
    ("linear", "tall", DType.BF16, "sm_120a"),
    ("linear.backward", "odd", DType.BF16, "sm_90a"),
    ("matmul", "odd", DType.F16, "sm_100a"),
    ("matmul.backward", "ragged", DType.BF16, "sm_100a"),
    ("linear_gelu", "wide", DType.BF16, "sm_100a"),
    ("linear_gelu.backward", "ragged", DType.F16, "sm_100a"),
    ("attention", "long", DType.F16, "sm_80"),
    ("linear_residual", "tiny", DType.BF16, "sm_90a"),
    ("attention.backward", "heads of 128", DType.BF16, "sm_90a"),
    ("attention.backward", "long", DType.F16, "sm_90a"),
    ("attention.backward", "long", DType.BF16, "sm_120a"),
    ("attention", "heads of 128", DType.BF16, "sm_89"),
    ("grouped_attention", "grouped", DType.BF16, "sm_80"),
    ("attention", "tiny", DType.BF16, "sm_90a"),
    ("attention.backward", "heads of 128", DType.BF16, "sm_80"),
    ("grouped_attention.backward", "grouped", DType.F16, "sm_89"),
    ("attention", "heads of 128", DType.BF16, "sm_100a"),
    ("grouped_attention", "grouped", DType.F16, "sm_100a"),
    ("attention.backward", "long", DType.BF16, "sm_100a"),
    ("attention.backward", "heads of 128", DType.F16, "sm_100a"),
    ("grouped_attention.backward", "grouped", DType.F16, "sm_100a"),
]


@pytest.mark.parametrize(
    ("name", "shape", "real", "target"), [*QUICK, *(pytest.param(*c, marks=pytest.mark.slow) for c in MORE)]
)
def test_results_are_the_oracles_without_a_bank_conflict(name: str, shape: str, real: DType, target: str) -> None:
    module, machine = library(), machine_for_target(target)
    forward = name.removesuffix(".backward")
    dims = ATTENTION[shape] if "attention" in name else SHAPES[shape]
    found = backward_of(forward, module) if name != forward else module.ops[forward]
    assert found is not None
    op = bound(found, real)
    inputs = stored_inputs(op, module, dims, real)
    if name != forward and forward in WEIGHTS:
        weights = frozenset(WEIGHTS[forward])
        op = accumulating(held(op, dict.fromkeys(weights, DType.F32)), weights)
        rng = np.random.default_rng(8)
        inputs |= {p.name: rng.standard_normal(operand_shape(p, dims), np.float32) for p in op.params if p.inout}
    lowered = lower(op, module, dims, machine)
    codes = codes_of(lowered, machine)
    code = "".join(found.ptx for found in codes.values())
    own = {"sm_90a": r"\bwgmma\.mma_async", "sm_100a": r"\btcgen05\.mma"}
    aligned = shape != "odd"  # (the copy engine does not take rows of any length)
    assert re.search(own.get(target, r"\bmma\.sync") if aligned else r"\bmma\.sync", code)
    got, reports = reported(op, lowered, inputs, machine, codes=codes)
    unit, terms = 2.0 ** {DType.BF16: -8, DType.F16: -11}[real], max(dims.values())
    for result, wanted in evaluate(op, module, inputs, dims).items():
        if result in got:
            scale = np.maximum(np.abs(wanted), np.abs(wanted).max(initial=0.0) / 16)
            off = np.max(np.abs(got[result] - wanted) / (scale * unit + 1e-6), initial=0.0)
            # Two units; in backward passes and attention the factors of sums are rounded too, a random walk.
            assert off <= 2 * (1 if name == forward and "attention" not in name else 2 + terms**0.5 / 4), (result, off)
    assert not sum(r.traffic["shared"].bank_conflicts for r in reports if "shared" in r.traffic)


SIDES = [
    ("linear_gelu", {"M": 392, "N": 192, "K": 136}),
    ("matmul_residual", {"M": 300, "N": 384, "K": 72}),
    ("linear", {"M": 520, "N": 128, "K": 264}),
    ("matmul.backward", {"M": 392, "N": 136, "K": 192}),
    ("linear_gelu_fp8", {"M": 392, "N": 192, "K": 272, "H": 16}),
    ("linear_residual_fp8", {"M": 392, "N": 384, "K": 272, "H": 16}),
    ("linear_residual_fp8.backward", {"M": 400, "N": 144, "K": 192, "H": 16}),
]


@pytest.mark.parametrize(
    ("name", "dims"),
    [SIDES[0], SIDES[3], *(pytest.param(*c, marks=pytest.mark.slow) for c in (*SIDES[1:3], *SIDES[4:]))],
)
def test_sides_of_a_block_take_tiles_in_turn(name: str, dims: dict[str, int]) -> None:
    """Where tiles are more than multiprocessors (of which this GPU has two)."""
    module = eight_bit_layers() if "fp8" in name else library()
    machine = replace(machine_for_target("sm_90a"), sms=2)
    found = module.ops.get(name) or backward_of(name.removesuffix(".backward"), module)
    assert found is not None
    op = bound(found, DType.BF16)
    inputs = inputs_of(op, dims) if "fp8" in name else stored_inputs(op, module, dims, DType.BF16)
    lowered = lower(op, module, dims, machine)
    assert any(k.gpu.sides > 1 for k in lowered.kernels)
    got, reports = reported(op, lowered, inputs, machine, Options(conflicts=0))
    for result, wanted in evaluate(op, module, inputs, dims).items():
        if result in got:
            assert distance(got[result], wanted) < 2.0**-8, result
    assert not any(r.findings for r in reports)


WIDE = [
    ("matmul_residual", {"M": 136, "N": 520, "K": 72}),
    ("linear_residual.backward", {"M": 200, "N": 136, "K": 264}),
    ("linear_gelu", {"M": 392, "N": 264, "K": 72}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dims"), WIDE)
def test_sums_of_256_columns_leave_tensor_memory_by_panels(name: str, dims: dict[str, int]) -> None:
    """Where tiles are as many as multiprocessors (of which this GPU has two)."""
    module, machine = library(), replace(machine_for_target("sm_100a"), sms=2)
    found = module.ops.get(name) or backward_of(name.removesuffix(".backward"), module)
    assert found is not None
    op = bound(found, DType.BF16)
    inputs, lowered = stored_inputs(op, module, dims, DType.BF16), lower(op, module, dims, machine)
    wide = [t.columns for k in lowered.kernels for t in k.tiles if t.shape[-1] == 256 and t.columns]
    assert wide == [64] * (2 if name.endswith("backward") else 1)
    got, reports = reported(op, lowered, inputs, machine)
    for result, wanted in evaluate(op, module, inputs, dims).items():
        if result in got:
            assert distance(got[result], wanted) < 2.0**-8, result
    assert not any(r.findings for r in reports)


@pytest.mark.slow
def test_long_sums_of_8_bit_values_leave_from_the_residuals_place() -> None:
    module, machine = eight_bit_layers(), replace(machine_for_target("sm_90a"), sms=2)
    dims = {"M": 392, "N": 200, "K": 2176, "H": 16}
    op = bound(module.ops["linear_residual_fp8"], DType.BF16)
    inputs, lowered = inputs_of(op, dims), lower(op, module, dims, machine)
    assert [b.inside[:8] for k in lowered.kernels for b in k.tiles if b.inside] == ["R.shared"]
    got, _ = reported(op, lowered, inputs, machine, Options(conflicts=0))
    wanted = evaluate(op, module, inputs, dims)
    assert distance(got["Y"], wanted["Y"]) < 2.0**-8
