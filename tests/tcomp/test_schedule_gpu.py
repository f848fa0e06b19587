"""Schedules for GPUs: any legal one keeps the result, tiles live where they should, illegal ones are refused.

Results are those of the tile IR interpreter, in float64 and without threads; tests/tcomp/nvptx runs the code.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.load import load, load_text
from tcomp.grad import backward_of
from tcomp.ir.tile import Fragment, Kernel, Loop, Scope
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import H100
from tcomp.oracle import evaluate
from tcomp.schedule.lower import LoweredOp, lower
from tests.reference.gpu_schedules import OPS, scheduled
from tests.tcomp.tile_interpreter import Interpreter


@lru_cache
def gpt2() -> Module:
    return load("models/gpt2.tc")


def inputs_of(op: Op, dims: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    high = dims.get("V", 7)
    return {
        o.name: rng.standard_normal(operand_shape(o, dims))
        if o.dtype.is_float
        else rng.integers(0, high, operand_shape(o, dims))
        for o in op.params
    }


def assert_keeps_results(op: Op, module: Module, dims: dict[str, int], lowered: LoweredOp) -> None:
    arrays = inputs_of(op, dims)
    expected = evaluate(op, module, arrays, dims)
    arrays = {k: np.array(v) for k, v in arrays.items()}
    arrays |= {o.name: np.full(operand_shape(o, dims), np.nan) for o in op.outputs}
    arrays |= {w.name: np.full(w.shape, np.nan) for w in lowered.workspaces}
    with np.errstate(all="ignore"):
        for kernel in lowered.kernels:
            Interpreter(kernel, arrays, 1).run()
    for name, reference in expected.items():
        np.testing.assert_allclose(arrays[name], reference, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", OPS)
@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_legal_schedule_gives_the_oracles_result(name: str, data: st.DataObject) -> None:
    module = gpt2()
    op, dims, lowered = scheduled(data, name, module)
    assert_keeps_results(op, module, dims, lowered)


SIZES = {"M": 37, "N": 67, "K": 131, "C": 97, "B": 2, "T": 67, "H": 3, "D": 24, "P": 128, "V": 113, "S": 70}
NAMES = [
    *("matmul", "linear", "linear_gelu", "linear_residual", "layernorm", "attention", "crossentropy", "mean"),
    *("embedding", "global_norm", "adamw", "cosine"),
]


@pytest.mark.parametrize("written", [True, False], ids=["written", "default"])
@pytest.mark.parametrize("name", [*NAMES[:5], pytest.param("attention", marks=pytest.mark.slow), *NAMES[6:]])
def test_every_op_lowers_forward_and_backward(name: str, written: bool) -> None:
    module = gpt2() if written else replace(gpt2(), schedules={})
    op = module.ops[name]
    forms = [op] if name in ("global_norm", "adamw", "cosine") else [op, backward_of(name, module)]
    for form in forms:
        assert form is not None
        assert_keeps_results(form, module, SIZES, lower(form, module, SIZES, H100))


# ------------------------------------------------------------------------------------------------- where tiles live


def only(kernels: tuple[Kernel, ...]) -> Kernel:
    (kernel,) = kernels
    return kernel


def test_a_contractions_sum_stays_in_registers_over_the_whole_pipeline() -> None:
    module = gpt2()
    kernel = only(lower(module.ops["matmul"], module, {"M": 256, "N": 256, "K": 256}, H100).kernels)
    total = next(t for t in kernel.tiles if ".sum" in t.name)
    assert total.scope is Scope.REGISTERS
    assert isinstance(total.layout, Fragment)
    per_thread = [s.per_thread(n) for s, n in zip(total.layout.spreads, total.shape, strict=True)]
    assert per_thread == [8, 8]
    assert kernel.gpu.shape.threads == 256
    staged = [t for t in kernel.tiles if t.scope is Scope.SHARED]
    assert [t.ring for t in staged] == [3, 3]


def test_attention_keeps_scores_and_outputs_in_registers_and_weights_in_shared_memory() -> None:
    module = gpt2()
    kernel = only(lower(module.ops["attention"], module, {"B": 1, "T": 256, "H": 1, "D": 64}, H100).kernels)
    scopes = {t.name: t.scope for t in kernel.tiles}
    assert {scopes[n] for n in ("qk", "o", "l", "m")} == {Scope.REGISTERS}
    assert scopes["m.weight"] is Scope.SHARED


def test_nothing_grows_with_the_square_of_the_length() -> None:
    module = gpt2()
    for name in ("attention", "attention.backward"):
        sizes = []
        for t in (1024, 4096):
            lowered = lower(module.ops[name], module, {"B": 1, "T": t, "H": 1, "D": 64}, H100)
            assert not lowered.workspaces
            sizes.append(sum(b.bytes for k in lowered.kernels for b in k.tiles))
        assert sizes[1] <= 4 * sizes[0]


def test_backward_of_attention_is_one_loop_over_queries() -> None:
    """The writes of finished sums must not split the fused loop: p and ds stay one tile each."""
    module = gpt2()
    kernel = only(lower(module.ops["attention.backward"], module, {"B": 1, "T": 512, "H": 1, "D": 64}, H100).kernels)
    shapes = {t.name: t.shape for t in kernel.tiles}
    assert shapes["p"] == shapes["ds"] == (32, 64)


def test_rows_of_shared_tiles_start_in_different_banks() -> None:
    module = gpt2()
    for name, dims in (("matmul", {"M": 256, "N": 256, "K": 256}), ("attention", {"B": 1, "T": 256, "H": 1, "D": 64})):
        for kernel in lower(module.ops[name], module, dims, H100).kernels:
            for t in kernel.tiles:
                if t.scope is Scope.SHARED and len(t.shape) > 1:
                    pitch = t.elements // int(np.prod(t.shape[:-1]))
                    assert pitch * t.dtype.bytes // 16 % 2 == 1


def test_a_specific_target_wins_over_the_family() -> None:
    module = load_text(
        "op f(X: f32[M]) -> Y: f32[M]:\n  Y[m] = X[m] + 1.0\n\n"
        "schedule f on gpu:\n  m -> grid(64) / lane\n\n"
        "schedule f on sm_90a:\n  m -> grid(256) / warp(64) / lane / vec(2)\n",
        "f.tc",
    )
    kernel = only(lower(module.ops["f"], module, {"M": 1024}, H100).kernels)
    assert kernel.gpu.shape.warps == 4
    kernel = only(lower(module.ops["f"], module, {"M": 1024}, replace(H100, target="sm_80")).kernels)
    assert kernel.gpu.shape.warps == 1


def test_a_condition_on_dimensions_says_which_shapes_a_schedule_is_for() -> None:
    """At others the next one holds. Layer norm's gradients in one pass leave parts that one pass joins."""
    op = backward_of("layernorm", gpt2())
    assert op is not None
    counts = []
    for c in (256, 2304):
        dims = {"M": 70, "C": c}
        lowered = lower(op, gpt2(), dims, H100)
        assert_keeps_results(op, gpt2(), dims, lowered)
        counts.append([len(k.phases) for k in lowered.kernels])
    assert counts == [[2], [1, 1]]


def test_a_kernels_own_parameter_is_chosen_from_its_own_choices() -> None:
    """`B.n = 96` is for kernel B alone, whose line allows it; the line above both does not."""
    module = load_text(
        "op f(X: f32[M]) -> A: f32[M], B: f32[M]:\n  A[m] = X[m] + 1.0\n  B[m] = X[m] + 2.0\n\n"
        "schedule f on gpu:\n  tune n = 64 from 32, 64\n  kernel A:\n    m -> grid(n) / lane\n"
        "  kernel B:\n    tune n = 128 from 96, 128\n    m -> grid(n) / lane\n",
        "f.tc",
    )
    found = lower(module.ops["f"], module, {"M": 960}, H100, chosen={"B.n": 96})
    steps = [loop.step for k in found.kernels for loop in k.phases[0] if isinstance(loop, Loop)]
    assert steps == [64, 96]


@pytest.mark.parametrize(
    "text",
    [
        "  u[i] = x[i] + 1.0\n  t[i] = u[i] * 2.0\n  y[i] = x[i]\n",
        "  m = max j: x[j]\n  y[ids[i]] += x[i] + m\n  s = sum i: x[i]\n  z[ids[i]] += s * x[i]\n",
    ],
    ids=["temporaries that nothing reads", "a loop that one equation sums over and another scatters over"],
)
def test_the_default_schedule_takes_any_op(text: str) -> None:
    outputs = "y: f32[N], z: f32[N]" if "z[" in text else "y: f32[N]"
    index = "  index i: N\n  index j: N\n"
    module = load_text(f"op f(x: f32[N], ids: i32[N]) -> {outputs}:\n{index}{text}")
    op, dims = module.ops["f"], {"N": 37}
    assert_keeps_results(op, module, dims, lower(op, module, dims, H100))


@pytest.mark.parametrize("order", ["k, i", "i, k"])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_sums_over_tiles_are_added_to_an_output_in_the_order_of_the_equations(device: str, order: str) -> None:
    """Whichever of their loops is the outer one: `y` is assigned before it is added to."""
    module = load_text(
        "op f(x: f32[M, K], v: f32[M, I]) -> y: bf16[M]:\n"
        "  y[m] = sum k: x[m, k] * x[m, k]\n"
        "  y[m] += sum i: v[m, i]\n\n"
        f"schedule f on {device}:\n  i -> seq(8)\n  k -> seq(4)\n  order {order}\n"
    )
    op, dims = module.ops["f"], {"M": 3, "K": 17, "I": 33}
    machine = H100 if device == "gpu" else detect()
    arrays = {p.name: np.ones(operand_shape(p, dims)) for p in op.params}
    arrays["y"] = np.full(3, np.nan)
    for kernel in lower(op, module, dims, machine, threads=1).kernels:
        Interpreter(kernel, arrays, 1).run()
    assert arrays["y"].tolist() == [50.0] * 3


def test_a_temporary_that_several_equations_add_to() -> None:
    module = load_text(
        "op f(x: f32[N, 3]) -> y: f32[N]:\n"
        "  t[i] = x[i, 0]\n  t[i] += exp(x[i, 1])\n  t[i] += exp(x[i, 2])\n  y[i] = t[i] * 2.0\n\n"
        "schedule f on gpu:\n  i -> grid(32) / lane\n"
    )
    op, dims = module.ops["f"], {"N": 40}
    assert_keeps_results(op, module, dims, lower(op, module, dims, H100))


def test_nothing_asks_for_what_the_kernel_computes_only_later() -> None:
    """`a` is needed where k == s[i], but s comes behind it."""
    module = load_text(
        "op f(x: f32[N, K], ids: i32[N]) -> y: f32[N]:\n"
        "  a[i, k] = exp(x[i, k])\n  s[i]: i32 = ids[i] // 2\n  y[i] = sum k where k == s[i]: a[i, k]\n"
    )
    op, dims = module.ops["f"], {"N": 9, "K": 7}
    assert_keeps_results(op, module, dims, lower(op, module, dims, detect()))


def test_results_behind_a_guard_that_names_no_summed_index_are_zero() -> None:
    module = load_text(
        "monoid expsum by m:\n  m = max(a.m, b.m)\n  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)\n\n"
        "op f(x: f32[N, K], u: f32[J]) -> y: f32[N, K]:\n"
        "  m[i, k], l[i, k] = expsum j where i <= k by x[i, k] + u[j]: 1\n  y[i, k] = 3.0 / (1.0 + l[i, k])\n"
    )
    op, dims = module.ops["f"], {"N": 33, "K": 67, "J": 3}
    assert_keeps_results(op, module, dims, lower(op, module, dims, detect()))


def test_workspaces_have_one_order_in_every_process() -> None:
    """Placement follows it, so it must not be that of a set of names."""
    names = [f"w{n}" for n in range(6)]
    sums = "".join(f"  {w}[n] = sum m: X[m, n] * {n}.5\n" for n, w in enumerate(names))
    text = (
        f"op f(X: f32[M, N]) -> {', '.join(names)}: bf16[N]:\n{sums}\nschedule f on gpu:\n"
        f"  m -> grid(8) / seq(4)\n  n -> lane\n  combine {', '.join(names)} over m by atomic\n"
    )
    module = load_text(text)
    lowered = lower(module.ops["f"], module, {"M": 20, "N": 9}, H100, deterministic=False)
    found = [w.name for w in lowered.workspaces]
    assert len(found) == 6 and found == sorted(found)
