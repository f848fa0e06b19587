"""Forms for results of 16 bits: right to half a unit in the last place, and right where the formula cancels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.threads.rounded import for_narrow
from tcomp.codegen.rounded import scaled
from tcomp.dsl.ast import Binary, Call, DType, Expr, Num, walk
from tcomp.ir.tile import Compute
from tcomp.machine.gpu import H100
from tcomp.numeric import round_to
from tests.reference.gelu import exact, gelu
from tests.tcomp.nvptx.support import at, axis, fn, from_bits, kernel, lanes, launch, op, operand, to_bits

BITS = {DType.BF16: 8, DType.F16: 11}
"""of the significand"""
C, D = 0.7978845608028654, 0.035677408136300125
LEAST = {DType.BF16: 2.0**-133, DType.F16: 2.0**-24}
"""subnormal number"""


def stored(x: np.ndarray, dtype: DType, of: Callable[[Expr], Expr] = gelu) -> tuple[np.ndarray, str]:
    """GELU (or another function) of x by the compiled kernel, and its PTX."""
    body = Compute(at("Y", "i"), of(at("X", "i")), (axis("i", len(x), lanes(2)),))
    k = kernel([operand("X", len(x), dtype=dtype), operand("Y", len(x), dtype=dtype)], [[body]])
    gpu = compile_kernel(k, H100)
    out, _ = launch(k, gpu, {"X": x})
    return out["Y"].astype(np.float64), gpu.ptx


@pytest.mark.parametrize("dtype", BITS, ids=lambda d: d.value)
def test_gelu_is_right_to_a_rounding(dtype: DType) -> None:
    x = np.concatenate([np.linspace(-9, 9, 3072), np.geomspace(1e-4, 5, 512), -np.geomspace(1e-4, 5, 512)])
    x = from_bits(to_bits(x.astype(np.float32), dtype), dtype).astype(np.float64)
    found, ptx = stored(x.astype(np.float32), dtype)
    wanted = exact(x)
    unit = np.maximum(np.exp2(np.floor(np.log2(np.abs(wanted))) + 1 - BITS[dtype]), LEAST[dtype])
    assert np.max(np.abs(found - wanted) / unit) <= 0.51
    assert "rcp.approx" in ptx and ptx.count("ex2.approx") == ptx.count("rcp.approx")


@pytest.mark.parametrize("dtype", BITS, ids=lambda d: d.value)
def test_powers_and_reciprocals_are_right_to_a_rounding(dtype: DType) -> None:
    """The logistic function, whose exponent is rounded once."""
    x = np.concatenate([np.linspace(-80, 80, 1024), np.linspace(-9, 9, 1024)])
    x = from_bits(to_bits(x.astype(np.float32), dtype), dtype).astype(np.float64)
    found, ptx = stored(x.astype(np.float32), dtype, lambda v: op("/", 1.0, op("+", 1.0, fn("exp", op("-", 0.0, v)))))
    wanted = 1 / (1 + np.exp(-x))
    unit = np.maximum(np.exp2(np.floor(np.log2(wanted)) + 1 - BITS[dtype]), LEAST[dtype])
    assert np.max(np.abs(found - wanted) / unit) <= 0.51
    assert "rcp.approx" in ptx and "div" not in ptx
    edges, _ = stored(np.array([-math.inf, math.inf, math.nan, 0.0], np.float32), dtype, lambda v: fn("exp", v))
    np.testing.assert_array_equal(edges, [0.0, math.inf, math.nan, 1.0])


def test_gelu_at_the_edges() -> None:
    x = np.array([0.0, -0.0, -12.0, -40.0, -3e38, 40.0, 3e38, math.inf, -math.inf, math.nan], np.float32)
    found, _ = stored(x, DType.BF16)
    np.testing.assert_array_equal(found[:2], [0.0, 0.0])
    assert abs(found[2]) < 1e-30 and not found[3:5].any()
    assert found[5] == 40 and found[6] > 2.9e38 and found[7] == math.inf
    assert np.isnan(found[8:]).all()


def test_f32_results_keep_the_formula() -> None:
    found, ptx = stored(np.linspace(-1e-3, 1e-3, 64, dtype=np.float32), DType.F32)
    assert "copysign" in ptx or ptx.count("fma") > 4 * ptx.count("ex2.approx")
    np.testing.assert_allclose(
        found, exact(np.linspace(-1e-3, 1e-3, 64, dtype=np.float32).astype(np.float64)), rtol=1e-6
    )


def test_only_sums_of_one_value_take_the_form() -> None:
    a, b, t = at("X", "i"), at("Z", "i"), fn("tanh", at("X", "i"))
    for e in (op("+", b, op("*", a, t)), op("-", a, op("*", a, t)), op("*", a, t)):
        assert for_narrow(e) == e
    for e in (op("+", a, op("*", a, t)), op("+", op("*", a, t), a)):
        assert not any(isinstance(n, Call) and n.function == "tanh" for n in walk(for_narrow(e)))


def test_factors_go_into_constants() -> None:
    x = at("X", "i")
    assert scaled(op("*", 0.5, x), 2.0) == x
    assert scaled(op("*", x, op("+", 3.0, op("*", 2.0, x))), 2.0) == op("*", x, op("+", 6.0, op("*", 4.0, x)))
    assert scaled(x, 2.0) == Binary("*", x, Num(2.0))
    assert scaled(op("+", x, 1.0), 2.0) == Binary("*", op("+", x, 1.0), Num(2.0))


@pytest.mark.parametrize("shared", [True, False], ids=["in one product", "in parts"])
@pytest.mark.parametrize("dtype", BITS, ids=lambda d: d.value)
def test_gelus_derivative_is_right_to_a_rounding(dtype: DType, shared: bool) -> None:
    """As it is derived, a (1 + tanh + x (1 - tanh^2)), and as one may write it: by one power and one reciprocal."""
    x = np.concatenate([np.linspace(-9, 9, 3072), -np.geomspace(1e-4, 5, 512)])
    x = from_bits(to_bits(x.astype(np.float32), dtype), dtype).astype(np.float64)

    def slope(v: Expr) -> Expr:
        turn = fn("tanh", op("*", v, op("+", C, op("*", D, op("*", v, v)))))
        bend = op("*", v, op("+", C, op("*", 3 * D, op("*", v, v))))
        rest = op("-", 1.0, op("*", turn, turn))
        if shared:
            return op("*", op("*", 0.5, 3.0), op("+", op("+", 1.0, turn), op("*", bend, rest)))
        return op("+", op("+", 1.5, op("*", 1.5, turn)), op("*", rest, op("*", 1.5, bend)))

    found, ptx = stored(x.astype(np.float32), dtype, slope)
    t = np.tanh(x * (C + D * x * x))
    logistic = 1 / (1 + np.exp(-2 * x * (C + D * x * x)))
    wanted = 3 * logistic * (1 + 2 * x * (C + 3 * D * x * x) * (1 - logistic))
    np.testing.assert_allclose(wanted, 1.5 * (1 + t + x * (C + 3 * D * x * x) * (1 - t * t)), atol=1e-12)
    unit = np.maximum(np.exp2(np.floor(np.log2(np.abs(wanted))) + 1 - BITS[dtype]), LEAST[dtype])
    assert np.max(np.abs(found - wanted) - 0.51 * unit) <= 2.0**-20, "its zero is where two parts cancel"
    if shared:
        small = x < -4
        assert np.max((np.abs(found - wanted) / unit)[small]) <= 0.51, "nothing cancels there"
    assert "copysign" not in ptx and "rcp.approx" in ptx and ptx.count("ex2.approx") == ptx.count("rcp.approx")


def test_a_quotient_that_is_cast_is_what_the_exact_one_rounds_to() -> None:
    """Scales of 8-bit blocks, for every largest value that a tensor in bf16 may have: 448 / a is never near a tie."""
    x = from_bits(np.arange(1, 0x7F80, dtype=np.uint16), DType.BF16).astype(np.float32)
    body = Compute(
        at("Y", "i"), fn("bf16", op("/", 448.0, fn("max", at("X", "i"), 1e-30))), (axis("i", len(x), lanes(2)),)
    )
    k = kernel([operand("X", len(x)), operand("Y", len(x))], [[body]])
    gpu = compile_kernel(k, H100)
    out, _ = launch(k, gpu, {"X": x})
    wanted = 448.0 / np.maximum(x.astype(np.float64), np.float32(1e-30))
    np.testing.assert_array_equal(out["Y"], round_to(wanted, DType.BF16))
    assert "div.full" in gpu.ptx and "div.rn" not in gpu.ptx


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_quotients_that_are_cast_are_right_for_zero_infinity_and_subnormal_numbers(dtype: DType) -> None:
    powers = [2.0**e for e in (-149, -133, -128, -127, -126, -24, -10, 0, 100, 126, 127)]
    x = np.array([0, np.inf, np.nan, 1e-45, 3e-39, 3, 7, 448, 65504, 8.6e37, 1.7e38, 3.4e38, *powers], np.float32)
    x = np.concatenate([x, -x])
    u, v = (a.reshape(-1) for a in np.meshgrid(x, x))
    body = Compute(at("Y", "i"), fn(dtype.value, op("/", at("U", "i"), at("V", "i"))), (axis("i", len(u), lanes(2)),))
    k = kernel([operand(n, len(u)) for n in "UVY"], [[body]])
    gpu = compile_kernel(k, H100)
    out, _ = launch(k, gpu, {"U": u, "V": v})
    with np.errstate(all="ignore"):
        wanted = round_to((u / v).astype(np.float64), dtype)
    np.testing.assert_array_equal(out["Y"], wanted)
    some = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(out["Y"])[some], np.signbit(wanted)[some])
    assert "div.full" in gpu.ptx


def test_gelus_derivative_takes_as_few_instructions_as_it_can() -> None:
    """Squares, two polynomials, a power, a reciprocal: ten for each value beside those two."""
    x = np.linspace(-4, 4, 64, dtype=np.float32)

    def slope(v: Expr) -> Expr:
        square = fn("min", op("*", v, v), 64.0)
        turn = fn("tanh", op("*", v, op("+", C, op("*", D, square))))
        bend = op("+", C / 2, op("*", 1.5 * D, square))
        rest = op("-", 1.0, op("*", turn, turn))
        return op("+", op("+", 0.5, op("*", 0.5, turn)), op("*", op("*", rest, bend), v))

    _, ptx = stored(x, DType.BF16, slope)
    counts = [ptx.count(i) for i in ("mul.rn.f32", "add.rn.f32", "fma.rn.f32", "sub.rn.f32")]
    assert counts == [2 * 3, 2, 2 * 4, 0]
