"""The error bounds that tcomp/codegen/llvm/vectormath.py states, swept densely, and the special values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
import pytest

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import Access, Call, DType, Name, Num
from tcomp.errors import UserError
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Scope
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.numeric import random_uniform
from tcomp.runtime.cpu.single import SingleKernel

N = 1 << 16
FUNCTIONS = ("exp", "log", "tanh", "sin", "cos", "sqrt", "rsqrt", "floor")


def _machines() -> list[CpuMachine]:
    found = []
    for level in ("avx512", "avx2", "sse2", "neon", "generic"):
        try:
            found.append(detect(level))
        except UserError:
            continue
    return found


@pytest.fixture(params=_machines(), ids=lambda m: m.name, scope="module")
def machine(request: pytest.FixtureRequest) -> CpuMachine:
    return request.param


def kernel(function: str, dtype: DType, n: int, lanes: int) -> Kernel:
    buffers = tuple(Buffer(name, dtype, (n,), Scope.OPERAND) for name in ("X", "Y"))
    j = Axis("j", Num(0), Num(n), n, 1, lanes)
    value = Call(function, (Access("X", (Name("j"),)),))
    body = Compute(Access("Y", (Name("j"),)), value, (j,))
    return Kernel(function, buffers, (), ((body,),), frozenset("X"), frozenset("Y"))


def apply(function: str, x: np.ndarray, machine: CpuMachine, objects: Path) -> np.ndarray:
    dtype = DType.F32 if x.dtype == np.float32 else DType.F64
    padded = np.zeros(N, x.dtype)
    padded[: len(x)] = x
    with SingleKernel(kernel(function, dtype, N, machine.lanes_f32), machine, 1, objects) as single:
        single.array("X")[...] = padded
        single.run()
        return single.array("Y")[: len(x)].copy()


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest distance in units in the last place of the exact result, subnormal spacing included."""
    spacing = np.spacing(np.abs(exact).astype(got.dtype)).astype(exact.dtype)
    return float(np.max(np.abs(got.astype(exact.dtype) - exact) / spacing))


def logarithmic(low: float, high: float, count: int) -> np.ndarray:
    return np.exp(np.linspace(np.log(low), np.log(high), count))


def signed(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, -x])


EXP_UNDERFLOW = -125.5 * np.log(2)
"""exp in f32 is zero below."""
HALF = N // 2
SWEEPS: dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], float]] = {
    "exp": (np.linspace(EXP_UNDERFLOW, 88.72, N), np.exp, 2.2),
    "log": (logarithmic(1e-44, 3.4e38, N), np.log, 2),
    "tanh": (signed(logarithmic(1e-30, 20.0, HALF)), np.tanh, 6),
    "sin": (signed(logarithmic(1e-20, 1e4, HALF)), np.sin, 2),
    "cos": (signed(logarithmic(1e-20, 1e4, HALF)), np.cos, 2),
    "rsqrt": (logarithmic(1e-38, 3e38, N), lambda x: 1 / np.sqrt(x), 2),
    "sqrt": (logarithmic(1e-38, 3e38, N), np.sqrt, 0.5001),
    "floor": (signed(logarithmic(1e-3, 1e10, HALF)), np.floor, 0),
}


@pytest.mark.parametrize("function", SWEEPS)
def test_f32_functions_are_within_their_bounds(function: str, machine: CpuMachine, objects: Path) -> None:
    points, exact, bound = SWEEPS[function]
    x = points.astype(np.float32)
    y = apply(function, x, machine, objects)
    assert ulps(y, exact(x.astype(np.float64))) <= bound


@pytest.mark.parametrize(("function", "low", "high"), [("log", 0.5, 2.0), ("exp", -1e-3, 1e-3), ("sin", 3.1, 3.2)])
def test_f32_functions_near_their_hard_points(
    function: str, low: float, high: float, machine: CpuMachine, objects: Path
) -> None:
    x = np.linspace(low, high, N).astype(np.float32)
    exact = SWEEPS[function][1](x.astype(np.float64))
    assert ulps(apply(function, x, machine, objects), exact) <= SWEEPS[function][2]


def test_sine_near_multiples_of_pi(machine: CpuMachine, objects: Path) -> None:
    multiples = (np.arange(1, 3000) * np.pi).astype(np.float32)
    x = np.concatenate([multiples, np.nextafter(multiples, 0), np.nextafter(multiples, 1e9)]).astype(np.float32)
    exact = np.array([float(mpmath.sin(mpmath.mpf(float(v)))) for v in x])
    assert ulps(apply("sin", x, machine, objects), exact) <= 2


F64_BOUNDS = {
    "exp": (-745.0, 709.7, 2),
    "log": (1e-320, 1e308, 2),
    "tanh": (-21.0, 21.0, 4),
    "sin": (-1e4, 1e4, 4),
    "cos": (-1e4, 1e4, 4),
}


@pytest.mark.parametrize("function", F64_BOUNDS)
def test_f64_functions_are_within_their_bounds(function: str, machine: CpuMachine, objects: Path) -> None:
    low, high, bound = F64_BOUNDS[function]
    generator = np.random.default_rng(0)
    x = generator.uniform(low, high, 3000)
    if function == "log":
        x = np.concatenate([np.exp(generator.uniform(np.log(1e-300), np.log(1e300), 2000)), x[:100], [5e-324, 1e-310]])
    else:
        x = np.concatenate([x, generator.standard_normal(1000), generator.standard_normal(500) * 1e-8])
    y = apply(function, x, machine, objects)
    with mpmath.workdps(40):
        exact = [getattr(mpmath, function)(mpmath.mpf(float(v))) for v in x]
        spacing = [mpmath.mpf(float(np.spacing(abs(float(e))))) for e in exact]
        worst = max(abs(mpmath.mpf(float(a)) - e) / s for a, e, s in zip(y, exact, spacing, strict=True))
    assert worst <= bound


@pytest.mark.parametrize("function", ["exp", "tanh"])
def test_f32_functions_over_every_exponent(function: str, machine: CpuMachine, objects: Path) -> None:
    """Numbers from the whole range of bit patterns: NaNs of any payload, infinities, subnormals, overflow."""
    bits = (np.arange(N, dtype=np.uint64) * 65521).astype(np.uint32)
    x = np.concatenate([bits, [0x7F800001, 0x7FC00003, 0xFFFFFFFF, 0x7F800000, 0xFF800000]]).astype(np.uint32)[-N:]
    x = x.view(np.float32)
    y = apply(function, x, machine, objects)
    with np.errstate(all="ignore"):
        exact = getattr(np, function)(x.astype(np.float64))
        rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(rounded))
    finite = np.isfinite(rounded)
    if function == "exp":
        below = x < EXP_UNDERFLOW - 1e-5
        assert (y[below] == 0).all()
        finite &= x > EXP_UNDERFLOW + 1e-5
    assert ulps(y[finite], exact[finite]) <= SWEEPS[function][2]
    assert function != "tanh" or np.abs(y[finite]).max() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype: type[np.floating], machine: CpuMachine, objects: Path) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, 1.0, -1.0, 2000.0, -2000.0, 100.0, -100.0], dtype)
    with np.errstate(all="ignore"):
        for function in ("exp", "log", "tanh", "sqrt", "rsqrt", "floor", "sin", "cos"):
            y = apply(function, x, machine, objects)
            exact = (1 / np.sqrt(x)) if function == "rsqrt" else getattr(np, function)(x)
            rtol = 4 * float(np.finfo(dtype).eps)
            atol = 2.0**-125 if function == "exp" and dtype == np.float32 else 0
            np.testing.assert_allclose(y, exact.astype(dtype), rtol=rtol, atol=atol, err_msg=function)
    signs = np.signbit(apply("tanh", x, machine, objects)) == np.signbit(np.tanh(x))
    assert signs[~np.isnan(x)].all()


def test_exp_overflows_and_underflows_where_it_should(machine: CpuMachine, objects: Path) -> None:
    x = np.array([88.72283, 88.72284, 89.0, -86.98, -86.99, -87.4, -103.9, -150.0], np.float32)
    with np.errstate(all="ignore"):
        exact = np.exp(x.astype(np.float64)).astype(np.float32)
    y = apply("exp", x, machine, objects)
    np.testing.assert_array_equal(np.isinf(y), np.isinf(exact))
    np.testing.assert_allclose(y[3], exact[3], rtol=1e-6)
    np.testing.assert_array_equal(y[4:], 0)


def test_exp_of_sixteen_lanes_has_powers_in_registers_and_six_multiplications(machine: CpuMachine) -> None:
    if "avx512f" not in machine.features:
        pytest.skip("no vectors of sixteen lanes")
    words = kernel_assembly(kernel("exp", DType.F32, 1024, 16), machine).split()
    assert sum(w.startswith(("vpermi2", "vpermt2")) for w in words) == 1
    assert sum(w.startswith(("vfm", "vfnm", "vmul")) for w in words) == 6


def test_exp_is_one_at_zero(machine: CpuMachine, objects: Path) -> None:
    x = np.zeros(16, np.float32)
    np.testing.assert_array_equal(apply("exp", x, machine, objects), 1)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
def test_no_library_is_called(function: str, dtype: DType, machine: CpuMachine) -> None:
    for lanes in (1, machine.lanes_f32):
        text = kernel_assembly(kernel(function, dtype, 64, lanes), machine)
        assert "call" not in text.split()


def test_random_numbers_are_uniform_and_depend_on_both_arguments(machine: CpuMachine, objects: Path) -> None:
    n = N
    j = Axis("j", Num(0), Num(n), n, 1, machine.lanes_f32)
    seed = Buffer("seed", DType.I32, (), Scope.OPERAND)
    y = Buffer("Y", DType.F32, (n,), Scope.OPERAND)
    value = Call("random", (Access("seed", ()), Name("j")))
    body = Compute(Access("Y", (Name("j"),)), value, (j,))
    k = Kernel("random", (seed, y), (), ((body,),), frozenset(["seed"]), frozenset("Y"))
    drawn = []
    with SingleKernel(k, machine, 1, objects) as single:
        for s in (0, 1):
            single.array("seed")[...] = s
            single.run()
            drawn.append(single.array("Y").copy())
    for s, u in enumerate(drawn):
        np.testing.assert_array_equal(u, random_uniform(np.array(s), np.arange(n)).astype(np.float32))
        assert u.min() >= 0 and u.max() < 1
        assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.02
        assert len(np.unique(u)) > 0.99 * n
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.02
