"""The functions' stated error bounds, swept on the virtual GPU, and what they do at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Expr
from tcomp.ir.tile import Compute, Loop
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import H100
from tcomp.runtime.cpu.single import SingleKernel
from tests.tcomp.nvptx.support import at, axis, fn, kernel, lanes, launch, op, operand

N = 4096
RNG = np.random.default_rng(11)
Reference = Callable[[np.ndarray], np.ndarray]


def evaluate(value: Expr, x: np.ndarray, dtype: DType = DType.F32, **more: np.ndarray) -> np.ndarray:
    """`value` over X (and further operands) at every element, on the virtual GPU."""
    names = ["X", *more]
    body = Compute(at("Y", "i"), value, (axis("i", len(x), lanes(2)),))
    k = kernel([*(operand(n, len(x), dtype=dtype) for n in names), operand("Y", len(x), dtype=dtype)], [[body]])
    out, _ = launch(k, compile_kernel(k, H100), {"X": x, **more})
    return out["Y"]


def ulps(found: np.ndarray, exact: np.ndarray, single: bool = True) -> float:
    """The largest error in units in the last place of the exact result."""
    spacing = np.spacing(np.abs(exact).astype(np.float32 if single else np.float64)).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - exact) / spacing))


def spread(low: float, high: float) -> np.ndarray:
    """Points over a range, small magnitudes too."""
    tiny = np.geomspace(1e-6, max(abs(low), abs(high)), N // 2) * RNG.choice([-1.0, 1.0], N // 2)
    return np.clip(np.concatenate([np.linspace(low, high, N // 2), tiny]), low, high).astype(np.float32)


SWEEPS: list[tuple[str, float, float, float, Reference]] = [
    ("exp", -87, 88, 3, np.exp),
    ("log", 1e-6, 1e6, 2, np.log),
    ("tanh", -12, 12, 6, np.tanh),
    ("sin", -1e4, 1e4, 2, np.sin),
    ("cos", -1e4, 1e4, 2, np.cos),
    ("rsqrt", 1e-6, 1e6, 2, lambda x: 1 / np.sqrt(x)),
    ("sqrt", 0, 1e6, 0.5, np.sqrt),
    ("floor", -1000, 1000, 0, np.floor),
]


@pytest.mark.parametrize("name,low,high,bound,exact", SWEEPS, ids=[s[0] for s in SWEEPS])
def test_error_bounds(name: str, low: float, high: float, bound: float, exact: Reference) -> None:
    x = spread(low, high)
    assert ulps(evaluate(fn(name, at("X", "i")), x), exact(x.astype(np.float64))) <= bound


@pytest.mark.parametrize("name,low,high,exact", [(s[0], s[1], s[2], s[4]) for s in SWEEPS if s[0] not in ("floor",)])
def test_in_f64(name: str, low: float, high: float, exact: Reference) -> None:
    x = spread(low, high).astype(np.float64)
    assert ulps(evaluate(fn(name, at("X", "i")), x, DType.F64), exact(x), single=False) <= 4


def test_at_the_edges() -> None:
    inf, nan = math.inf, math.nan
    x = np.array([0.0, -0.0, inf, -inf, nan, 1e-40, -1e-40, 3e38, -3e38, 89.0, -104.0, -88.5, 88.72, 1e-30], np.float32)
    with np.errstate(all="ignore"):
        for name, exact in (
            ("exp", np.exp),
            ("log", np.log),
            ("tanh", np.tanh),
            ("sqrt", np.sqrt),
            ("floor", np.floor),
            ("rsqrt", lambda v: 1 / np.sqrt(v)),
        ):
            wanted = exact(x.astype(np.float64)).astype(np.float32)
            found = evaluate(fn(name, at("X", "i")), x)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=2e-45, err_msg=name)


def test_powers() -> None:
    x = np.concatenate([np.linspace(-4, 4, 65), np.linspace(0.1, 9, 63)]).astype(np.float32)
    y = RNG.choice([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 0.5, 2.5], len(x)).astype(np.float32)
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    finite = np.isfinite(wanted) | np.isnan(wanted)
    found = evaluate(op("**", at("X", "i"), at("Z", "i")), x, Z=y)
    np.testing.assert_allclose(found[finite], wanted[finite], rtol=1e-6)
    for n in (-3, 0, 2, 7, 0.5):
        with np.errstate(all="ignore"):
            wanted = np.power(np.abs(x.astype(np.float64)) + 1, n).astype(np.float32)
        found = evaluate(op("**", op("+", fn("abs", at("X", "i")), 1.0), n), x)
        np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_division_is_exactly_rounded() -> None:
    x = RNG.standard_normal(N).astype(np.float32)
    z = (RNG.standard_normal(N) * 10.0 ** RNG.integers(-20, 20, N)).astype(np.float32)
    found = evaluate(op("/", at("X", "i"), at("Z", "i")), x, Z=z)
    np.testing.assert_array_equal(found, x / z)


def test_random_is_the_cpus(tmp_path: Path) -> None:
    n = 300
    body = Compute(at("Y", "i"), fn("random", 1234567, op("*", "i", 7919)), (axis("i", n),))
    k = kernel([operand("Y", n)], [[body]])
    gpu, _ = launch(k, compile_kernel(k, H100), {})
    grid = k.phases[0][0]
    assert isinstance(grid, Loop)
    cpu = replace(k, phases=((replace(grid, level="core"),),), blocks=None)
    with SingleKernel(cpu, detect(), 1, tmp_path) as single:
        single.run()
        assert single.array("Y").tobytes() == gpu["Y"].tobytes()
    assert 0.4 < float(gpu["Y"].mean()) < 0.6
