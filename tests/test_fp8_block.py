"""8-bit linear layers with a scale for each block: bit for bit what the equations say, and close to a plain layer."""

from __future__ import annotations

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

OPS = ("linear_fp8_block", "linear_gelu_fp8_block", "linear_residual_fp8_block")
COMPILED = [
    pytest.param(n + b, marks=[] if n == "linear_gelu_fp8_block" else pytest.mark.slow)
    for n in OPS
    for b in ("", ".backward")
]
SHAPES = [(130, 129, 257), *(pytest.param(s, marks=pytest.mark.slow) for s in [(200, 256, 384), (5, 300, 64)])]
LIMIT = 1e-3
"""Products of bf16 and a scale are exact, so 8-bit values are the oracle's; rounded results may fall beside a tie."""
Array = np.ndarray


@pytest.fixture(scope="module")
def module() -> Module:
    return load(library() / "ops" / "fp8_block.tc")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_is_the_oracle(name: str, shape: tuple[int, int, int], module: Module, objects: Path) -> None:
    """Nearly every element the same; a value beside a tie may round the other way."""
    device = CpuDevice(detect(), 2, objects)
    op = bound(module.ops[name], DType.BF16)
    for found in verify_op(op, module, dict(zip("MNK", shape, strict=True)), device, seed=1):
        assert found.error <= LIMIT, f"{found.what}: {found.error:.1e}"


@pytest.mark.parametrize("name", OPS)
def test_without_rounding_the_backward_is_the_derivative(name: str, module: Module) -> None:
    errors = compare_backward(name, module, {"M": 130, "N": 129, "K": 140})
    assert errors.keys() >= {"dX", "dW", "db"} and max(errors.values()) < 1e-12


def quantised(x: Array, rows: int, columns: int, dtype: DType, top: float) -> Array:
    """`x` rounded to 8 bits block by block, by a loop over the blocks."""
    out = np.empty_like(x)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            block = x[i : i + rows, j : j + columns]
            scale = round_to(top / np.abs(block).max(), DType.BF16)
            out[i : i + rows, j : j + columns] = round_to(block * scale, dtype) / scale
    return out


def test_the_equations_are_blockwise_quantised_products(module: Module) -> None:
    rng = np.random.default_rng(0)
    m, n, k = 150, 200, 300
    x, w, dy = (rng.standard_normal(s) * rng.lognormal(0, 2, s) for s in ((m, k), (n, k), (m, n)))
    b = rng.standard_normal(n)
    dims = {"M": m, "N": n, "K": k}
    y = evaluate(module.ops["linear_fp8_block"], module, {"X": x, "W": w, "b": b}, dims)["Y"]
    wq = quantised(w, 128, 128, DType.E4M3, 448.0)
    np.testing.assert_allclose(y, quantised(x, 1, 128, DType.E4M3, 448.0) @ wq.T + b, rtol=1e-9, atol=1e-9)
    back = evaluate(module.ops["linear_fp8_block.backward"], module, {"X": x, "W": w, "dY": dy}, dims)
    np.testing.assert_allclose(back["dX"], quantised(dy, 1, 128, DType.E5M2, 57344.0) @ wq, rtol=1e-9, atol=1e-8)
    want = quantised(dy, 128, 1, DType.E5M2, 57344.0).T @ quantised(x, 128, 1, DType.E4M3, 448.0)
    np.testing.assert_allclose(back["dW"], want, rtol=1e-9, atol=1e-8)


def test_zeros_stay_zeros(module: Module) -> None:
    dims = {"M": 3, "N": 130, "K": 5}
    zeros = {"X": np.zeros((3, 5)), "W": np.zeros((130, 5)), "b": np.zeros(130)}
    assert not evaluate(module.ops["linear_fp8_block"], module, zeros, dims)["Y"].any()
