"""8-bit linear layers with delayed scales: the histories are a part of the step, and the layers follow them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.load import library, load
from tcomp.dsl.storage import bound
from tcomp.grad.check import compare_backward
from tcomp.machine.cpu import detect
from tcomp.numeric import round_to
from tcomp.oracle import evaluate
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.verify import verify_op
from tests.reference import torch_gpt2 as reference
from tests.reference.runs import built, train
from tests.reference.torch_gpt2 import Config, Hyper

OPS = ("linear_fp8", "linear_gelu_fp8", "linear_residual_fp8")
COMPILED = [
    pytest.param(n + b, marks=[] if n == "linear_gelu_fp8" else pytest.mark.slow)
    for n in OPS
    for b in ("", ".backward")
]
CONFIG = Config(L=2, H=2, C=16, V=256, S=128)  # (at which tests of ranks have kernels)
HYPER = Hyper(peak_lr=1e-3, warmup=0, total=10)
DIMS = {"M": 37, "N": 50, "K": 70, "H": 4}


@pytest.fixture(scope="module")
def module() -> Module:
    return load(library() / "ops" / "fp8.tc")


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_is_the_oracle(name: str, module: Module, objects: Path) -> None:
    device = CpuDevice(detect(), 2, objects)
    for found in verify_op(bound(module.ops[name], DType.BF16), module, DIMS, device, seed=1):
        assert found.error <= 1e-3, f"{found.what}: {found.error:.1e}"


@pytest.mark.parametrize("name", OPS)
def test_without_rounding_the_backward_is_the_derivative(name: str, module: Module) -> None:
    errors = compare_backward(name, module, DIMS)
    assert errors.keys() >= {"dX", "dW", "db"} and max(errors.values()) < 1e-12


def test_the_scale_is_the_histories_and_what_exceeds_it_saturates(module: Module) -> None:
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s) for s in ((37, 70), (50, 70), (37, 50)))
    x[0, 0] = 100.0
    history = np.array([[2.0, 3.0, 1.0, 0.0], [4.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    inputs = {"X": x, "W": w, "b": np.zeros(50), "h": history}
    forward = evaluate(module.ops["linear_fp8"], module, inputs, DIMS)
    y = forward["Y"]
    scales = [float(round_to(np.asarray(448 / a), DType.BF16)) for a in (3.0, 4.0)]
    xq, wq = (round_to(t * s, DType.E4M3) / s for t, s in zip((x, w), scales, strict=True))
    assert xq[0, 0] == 448 / scales[0] and abs(xq[0, 0] - 3.0) < 0.01
    np.testing.assert_allclose(y, xq @ wq.T, rtol=1e-9, atol=1e-9)
    kept = {p.name: forward[p.name] for p in module.ops["linear_fp8.backward"].params if p.name in forward}
    back = evaluate(module.ops["linear_fp8.backward"], module, {**kept, "dY": dy, "h": history}, DIMS)
    dq = round_to(dy * 57344 * 16, DType.E5M2) / 57344 / 16  # no history: 1/16 is taken for the largest
    np.testing.assert_allclose(back["dX"], dq @ wq, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back["dW"], dq.T @ xq, rtol=1e-9, atol=1e-9)
    for new, old, tensor in zip(back["dh"], history, (x, w, dy), strict=True):
        np.testing.assert_array_equal(new, [np.abs(tensor).max(), *old[:-1]])


def amax(params: reference.Params, batches: list[reference.Batch], accumulation: int, cache: Path) -> list[np.ndarray]:
    """The state after each step."""
    found = []
    with built("gpt2", asdict(CONFIG), 2, 16, accumulation, 1, cache, precision="fp8") as (step, executor):
        assert step.slots["amax"].kind == "state" and step.states == ("amax",)
        executor.write("amax", 0.0)
        for start in range(0, len(batches), accumulation):
            train(step, executor, params, batches[start : start + accumulation], HYPER, accumulation)
            found.append(np.array(executor.array("amax")))
    return found


def test_histories_move_on_by_one_each_step_and_hold_the_largest_values(objects: Path) -> None:
    params = reference.random_params(CONFIG, seed=1)
    first, second = amax(params, reference.random_batches(CONFIG, 2, 2, 16, 2), 1, objects)
    assert (first[..., 0] > 0).all() and not first[..., 1:].any()
    np.testing.assert_array_equal(second[..., 1], first[..., 0])
    for layer in range(CONFIG.L):
        for i, name in enumerate(("qkv_w", "proj_w", "up_w", "down_w")):
            weight = round_to(params[name][layer].numpy(), DType.BF16)
            assert first[layer, i, 1, 0] == np.abs(weight).max()


@pytest.mark.slow
def test_micro_batches_are_joined_by_the_largest(objects: Path) -> None:
    """Of operands; an incoming gradient is of a loss that is divided by the number of micro-batches."""
    params = reference.random_params(CONFIG, seed=1)
    batches = reference.random_batches(CONFIG, 2, 2, 16, 2)
    (both,) = amax(params, batches, 2, objects)
    (a,), (b,) = (amax(params, [batch], 1, objects) for batch in batches)
    np.testing.assert_array_equal(both[:, :, :2], np.maximum(a, b)[:, :, :2])
    np.testing.assert_allclose(both[:, :, 2], np.maximum(a, b)[:, :, 2] / 2, rtol=0.05)
