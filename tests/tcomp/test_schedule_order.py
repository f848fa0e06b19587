"""Splitting an op into kernels and inlining keep the order of its equations, or are refused.

Each op rewrites or re-reads a tensor, so that any reordering shows in the values.
"""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.dims import operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import CpuMachine
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower
from tests.tcomp.tile_interpreter import Interpreter

MACHINE = CpuMachine("avx2", (), 8, 16, 32768, 1 << 20, 1 << 24, 3)

REWRITTEN = """
op rewritten(X: f32[N]) -> Y: f32[N], Z: f32[N]:
  Y[n] = X[n] * 2.0
  Z[n] = Y[n] + 1.0
  Y[n] = X[n] * Z[n]
"""
STATE = """
op state(inout X: f32[N], G: f32[N]) -> Y: f32[N]:
  a[n] = X[n] * 2.0
  X[n] = X[n] + G[n]
  Y[n] = a[n]
"""
CHAIN = """
op chain(X: f32[N]) -> A: f32[N], B: f32[N]:
  A[n] = X[n] * 2.0
  B[n] = A[n] + 1.0
"""
GUARDED = """
op guarded(X: f32[T]) -> Z: f32[T], L: f32[T]:
  Z[t] = sum u where u > t: X[u]
  L[t] = max u where u > t: X[u]

schedule guarded on cpu:
  t -> core(4)
  u -> seq(5)
"""
STRIDED = """
op strided(X: f32[N]; M) -> Y: f32[M]:
  require N * 3 <= M
  Y[3 * i + 1] = X[i]

schedule strided on cpu:
  i -> core(7)
"""
REVERSED = """
op reversed(X: f32[N]) -> Y: f32[N]:
  Y[N - 1 - i] = X[i]

schedule reversed on cpu:
  i -> core(3)
"""
LITERALS = """
op literals(X: f32[H], Z: f32[G]) -> Y: f32[H]:
  require H <= 2 * G
  Y[h] = 2.0 * Z[h // 2] * X[h]
"""


def outcome(text: str, dims: dict[str, int]) -> float:
    """The largest difference between the lowered op and the oracle."""
    module = load_text(text)
    (op,) = module.ops.values()
    lowered = lower(op, module, dims, MACHINE, threads=2)
    rng = np.random.default_rng(0)
    inputs = {p.name: rng.standard_normal(operand_shape(p, dims)) for p in op.params}
    expected = evaluate(op, module, inputs, dims)
    arrays = {k: np.array(v) for k, v in inputs.items()}
    arrays |= {o.name: np.full(operand_shape(o, dims), np.nan) for o in op.outputs}
    arrays |= {w.name: np.full(w.shape, np.nan) for w in lowered.workspaces}
    for kernel in lowered.kernels:
        Interpreter(kernel, arrays, 2).run()
    for name, value in expected.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-12, err_msg=name)
    return 0.0


@pytest.mark.parametrize("text", [REWRITTEN, STATE, CHAIN], ids=["rewritten", "state", "chain"])
@pytest.mark.parametrize("n", [1, 35])
def test_the_default_schedule_keeps_the_equations_order(text: str, n: int) -> None:
    outcome(text, {"N": n})


@pytest.mark.parametrize("t", [1, 5, 6, 13])
def test_an_empty_guarded_reduction_gives_its_identity(t: int) -> None:
    outcome(GUARDED, {"T": t})


@pytest.mark.parametrize(
    ("text", "dims"), [(STRIDED, {"N": 20, "M": 64}), (REVERSED, {"N": 20})], ids=["3i+1", "N-1-i"]
)
def test_points_that_never_meet_may_be_divided_among_cores(text: str, dims: dict[str, int]) -> None:
    outcome(text, dims)


def test_integer_and_real_literals_of_one_value_are_told_apart() -> None:
    outcome(LITERALS, {"H": 6, "G": 3})


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        (CHAIN, "schedule chain on cpu:\n  kernel B:\n    n -> core\n  kernel A:\n    n -> core\n"),
        (REWRITTEN, "schedule rewritten on cpu:\n  kernel Y:\n    n -> core\n  kernel Z:\n    n -> core\n"),
        (STATE, "schedule state on cpu:\n  kernel X:\n    n -> core\n  kernel Y:\n    n -> core\n"),
        (STATE, "schedule state on cpu:\n  n -> core\n  inline a\n"),
    ],
    ids=["reader first", "rewritten between", "state overwritten", "inlined past a write"],
)
def test_a_schedule_that_would_change_the_order_is_refused(text: str, schedule: str) -> None:
    with pytest.raises(TcError, match=r"before it is computed|after it was overwritten|overwritten before this use"):
        outcome(text + "\n" + schedule, {"N": 35})
