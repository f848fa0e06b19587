"""8-bit linear layers with a scale for each block: bit for bit what the equations say, and close to a plain layer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tcomp.autotune.virtual_run import reported
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Module
from tcomp.dsl.load import library, load
from tcomp.dsl.storage import bound
from tcomp.grad.check import compare_backward
from tcomp.ir.print import print_kernel
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import machine_for_target
from tcomp.numeric import round_to
from tcomp.oracle import evaluate
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.verify import random_inputs, verify_op
from tcomp.schedule.lower import lower

OPS = ("linear_fp8_block", "linear_gelu_fp8_block", "linear_residual_fp8_block")
COMPILED = [
    pytest.param(n + b, marks=[] if n == "linear_gelu_fp8_block" else pytest.mark.slow)
    for n in OPS
    for b in ("", ".backward")
]
SHAPES = [(130, 129, 257), *(pytest.param(s, marks=pytest.mark.slow) for s in [(200, 256, 384), (5, 300, 64)])]
LIMIT = 1e-3
"""Products of bf16 and a row's scale are exact, those with a column's never at a tie (`shrink`), so 8-bit values are
the oracle's; rounded results may fall beside a tie."""
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


def quantised(x: Array, rows: int, columns: int, dtype: DType, top: float, shrunk: bool = False) -> Array:
    """`x` rounded to 8 bits block by block, by a loop over the blocks. `shrunk`: what undoes the scale has 16 bits, not
    the scale."""
    out = np.empty_like(x)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            block = x[i : i + rows, j : j + columns]
            largest = np.abs(block).max()
            scale = 1.0000002 / round_to(largest / top, DType.BF16) if shrunk else round_to(top / largest, DType.BF16)
            out[i : i + rows, j : j + columns] = round_to(block * scale, dtype) / scale
    return out


def test_the_equations_are_blockwise_quantised_products(module: Module) -> None:
    rng = np.random.default_rng(0)
    m, n, k = 150, 200, 300
    x, w, dy = (rng.standard_normal(s) * rng.lognormal(0, 2, s) for s in ((m, k), (n, k), (m, n)))
    b = rng.standard_normal(n)
    dims = {"M": m, "N": n, "K": k}
    made = evaluate(module.ops["linear_fp8_block"], module, {"X": x, "W": w, "b": b}, dims)
    y = made.pop("Y")
    wq = quantised(w, 128, 128, DType.E4M3, 448.0)
    np.testing.assert_allclose(y, quantised(x, 1, 128, DType.E4M3, 448.0) @ wq.T + b, rtol=1e-9, atol=1e-9)
    back = evaluate(module.ops["linear_fp8_block.backward"], module, {"W": w, "dY": dy, **made}, dims)
    np.testing.assert_allclose(back["dX"], quantised(dy, 1, 128, DType.E5M2, 57344.0) @ wq, rtol=1e-9, atol=1e-8)
    want = quantised(dy, 128, 1, DType.E5M2, 57344.0).T @ quantised(x, 128, 1, DType.E4M3, 448.0, shrunk=True)
    np.testing.assert_allclose(back["dW"], want, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(back["db"], dy.sum(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name, passes", [("linear_fp8_block", 2), ("linear_gelu_fp8_block.backward", 1)])
def test_a_pass_reads_an_operand_once_and_writes_both_orders(name: str, passes: int, module: Module) -> None:
    """Blocks are whole, so nothing is cleared or guarded; tiles of X and dY are copied ahead."""
    op = bound(module.ops[name], DType.BF16)
    kernels = lower(op, module, {"M": 512, "N": 256, "K": 384}, machine_for_target("sm_90a")).kernels
    casts = [k for k in kernels if re.search("Xr|Wr|Dr", k.name)]
    assert len(casts) == passes and all(len(k.phases) == 1 for k in casts)
    for k in casts:
        text = print_kernel(k)
        assert "select(" not in text and ("pack " in text or "Wr" in k.name)


@pytest.mark.slow
@pytest.mark.parametrize("name, tile", [("linear_fp8_block", "Xr"), ("linear_gelu_fp8_block.backward", "Dr")])
def test_a_pass_asks_memory_for_whole_sectors_and_spills_nothing(name: str, tile: str, module: Module) -> None:
    machine, dims = machine_for_target("sm_90a"), {"M": 256, "N": 256, "K": 128}
    op = bound(module.ops[name], DType.BF16)
    lowered = lower(op, module, dims, machine)
    _, reports = reported(op, lowered, random_inputs(op, dims, np.random.default_rng(0), False), machine)
    names = [k.name for k in lowered.kernels for _ in k.phases]
    (traffic,) = [r.traffic["global"] for n, r in zip(names, reports, strict=True) if tile in n]
    assert 32 * traffic.sectors <= 1.1 * (traffic.bytes_read + traffic.bytes_written)
    kernel = next(k for k in lowered.kernels if tile in k.name)
    assert not assemble(compile_kernel(kernel, machine).ptx, "sm_90a").findings


def test_zeros_stay_zeros(module: Module) -> None:
    dims = {"M": 3, "N": 130, "K": 5}
    zeros = {"X": np.zeros((3, 5)), "W": np.zeros((130, 5)), "b": np.zeros(130)}
    assert not evaluate(module.ops["linear_fp8_block"], module, zeros, dims)["Y"].any()
