"""Forms for results of 16 bits: right to half a unit in the last place, also where the formula as written cancels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.cpu.rounded import as_stored
from tcomp.dsl.ast import Call, DType, walk
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Compute, Kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.lower import lower
from tests.reference.gelu import exact, gelu
from tests.reference.tile_ir import at, fn, op, operand
from tests.tcomp.cpu.support import axis, kernel, normal, run
from tests.tcomp.cpu.test_interleave import bits, real


def stored(x: np.ndarray, dtype: DType, machine: CpuMachine) -> Kernel:
    j = axis("j", x.size, 2, machine.lanes_f32)
    names = [operand("X", x.size, dtype=dtype), operand("Y", x.size, dtype=dtype)]
    return kernel(names, [Compute(at("Y", "j"), gelu(at("X", "j")), (j,))])


def test_gelu_is_right_to_a_rounding(machine: CpuMachine, objects: Path) -> None:
    """In any place of a vector; far out it is x, or zero."""
    x = np.concatenate([np.linspace(-9, 9, 6000), np.geomspace(1e-4, 5, 512), -np.geomspace(1e-4, 5, 511)])
    given = bits(x)
    wide = real(given).astype(np.float64)
    found = real(run(stored(given, DType.BF16, machine), machine, objects, {"X": given})["Y"]).astype(np.float64)
    unit = np.exp2(np.floor(np.log2(np.abs(exact(wide)))) - 7)
    assert np.max(np.abs(found - exact(wide)) / unit) <= 0.51


def test_exp_is_right_to_a_rounding(machine: CpuMachine, objects: Path) -> None:
    """Also where it cancels, and beyond the exponents' range."""
    x = np.concatenate([np.linspace(-86, 88, 6000), np.geomspace(1e-3, 80, 512), -np.geomspace(1e-3, 80, 507)])
    given = bits(np.concatenate([x, [np.inf, -np.inf, 1e10, -1e10, 0]]))
    wide = real(given).astype(np.float64)
    j = axis("j", given.size, 2, machine.lanes_f32)
    names = [operand(name, given.size, dtype=DType.BF16) for name in ("X", "E", "Y")]
    power = fn("exp", at("X", "j"))
    assert power not in walk(as_stored(power, DType.BF16)) and as_stored(power, DType.F32) == power
    both = [Compute(at("E", "j"), power, (j,)), Compute(at("Y", "j"), op("-", power, 1.0), (j,))]
    found = run(kernel(names, both), machine, objects, {"X": given})
    with np.errstate(over="ignore"):
        for name, exact_value in (("E", np.exp(wide)), ("Y", np.expm1(wide))):
            result = real(found[name]).astype(np.float64)
            np.testing.assert_array_equal(result[-5:-1], exact_value[-5:-1].astype(np.float32))
            unit = np.exp2(np.floor(np.log2(np.abs(exact_value[:-5]))) - 7)
            assert np.max(np.abs(result[:-5] - exact_value[:-5]) / unit) <= 0.51


def test_gelu_of_anything_large(machine: CpuMachine, objects: Path) -> None:
    x = bits(np.array([14, 20, 88, 1e10, 3e38, np.inf, -14, -15, -20, -88, -1e10, -3e38, 0, np.nan] * 3, np.float32))
    found = real(run(stored(x, DType.BF16, machine), machine, objects, {"X": x})["Y"]).reshape(3, -1)
    np.testing.assert_array_equal(found[:, :6], real(x).reshape(3, -1)[:, :6])
    assert (np.abs(found[:, 6:12]) < 1e-36).all() and (found[:, 12] == 0).all() and np.isnan(found[:, 13]).all()


def test_only_what_is_stored_in_16_bits_changes_its_form(machine: CpuMachine, objects: Path) -> None:
    value = gelu(at("X", "j"))
    assert as_stored(value, DType.F32) == value
    for dtype in (DType.BF16, DType.F16):
        assert not any(isinstance(e, Call) and e.function == "tanh" for e in walk(as_stored(value, dtype)))
    other = op("+", at("X", "j"), op("*", 0.5, fn("tanh", at("X", "j"))))
    assert as_stored(other, DType.BF16) == other
    x = normal(70)
    found = run(stored(x, DType.F32, machine), machine, objects, {"X": x})["Y"]
    np.testing.assert_allclose(found, exact(x.astype(np.float64)), rtol=1e-5, atol=1e-7)


GELU = """
import ops.math
op f(X: bf16[M, K], W: bf16[N, K]) -> P: bf16[M, N], Y: bf16[M, N]:
  P[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = gelu(P[m, n])
op g(P: bf16[M, N]) -> Y: bf16[M, N]:
  Y[m, n] = gelu(P[m, n])
schedule f, g on cpu:
  m -> core(8) / unroll(4)
  n -> unroll(2) / vec
"""


@pytest.mark.parametrize("n", [16, 32, 70])
def test_behind_a_product_and_alone_it_gives_the_same_bits(n: int, machine: CpuMachine, objects: Path) -> None:
    """So an activation that is computed again is the one that was."""
    module, dims = load_text(GELU, "gelu.tc"), {"M": 9, "N": n, "K": 40}
    x, w = bits(normal(9, 40)), bits(normal(n, 40, seed=1))
    (product,), (alone,) = (lower(module.ops[o], module, dims, machine).kernels for o in "fg")
    both = run(product, machine, objects, {"X": x, "W": w})
    again = run(alone, machine, objects, {"P": both["P"]})
    np.testing.assert_array_equal(both["Y"], again["Y"])
