"""Ops that call ops mean what they would mean written out; shared schedules what they would say."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.dsl.parse import parse
from tcomp.dsl.printer import print_item, print_op
from tcomp.grad import backward_of
from tcomp.oracle import evaluate

PRODUCT = """
op product(A: real[I, J], B: real[N, J], top: f32[]) -> acc: f32[I, N], s: f32[]:
  require I <= J
  index j: J
  s = 448.0 / top
  Aq[i, j]: e4m3 = A[i, j] * s
  acc[i, n] = sum j: Aq[i, j] * B[n, j]
"""
CALLS = (
    PRODUCT
    + """
op project(X: real[M, 2 * K], W: real[N, 2 * K], top: f32[]) -> Y: real[M, N]:
  total, scale = product(X, W, top)
  Y[m, n] = total[m, n] / scale
"""
)
WRITTEN = """
op project(X: real[M, 2 * K], W: real[N, 2 * K], top: f32[]) -> Y: real[M, N]:
  require M <= 2 * K
  index j: 2 * K
  scale: f32 = 448.0 / top
  Aq[i, j]: e4m3 = X[i, j] * scale
  total[i, n]: f32 = sum j: Aq[i, j] * W[n, j]
  Y[m, n] = total[m, n] / scale
"""


def written(text: str, name: str = "project") -> str:
    return print_op(load_text(text).ops[name])


def test_a_call_is_its_equations_under_the_callers_names() -> None:
    assert written(CALLS) == written(WRITTEN)


def test_the_values_and_the_derivative_are_those_of_the_equations() -> None:
    called, direct = load_text(CALLS), load_text(WRITTEN)
    rng = np.random.default_rng(0)
    inputs = {"X": rng.standard_normal((3, 8)), "W": rng.standard_normal((5, 8)), "top": np.array(2.0)}
    dims = {"M": 3, "N": 5, "K": 4}
    a, b = (evaluate(m.ops["project"], m, inputs, dims)["Y"] for m in (called, direct))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - inputs["X"] @ inputs["W"].T).max() < 0.5
    assert print_op(backward_of("project", called)) == print_op(backward_of("project", direct))


def test_calls_nest_and_a_result_that_is_not_read_keeps_its_own_name() -> None:
    text = PRODUCT + "\nop f(X: real[M, K], W: real[N, K], t: f32[]) -> Y: real[M, N]:\n  Y, _ = product(X, W, t)\n"
    text += "\nop g(X: real[M, K], W: real[N, K], t: f32[]) -> Z: real[M, N]:\n  Y = f(X, W, t)\n  Z[m, n] = -Y[m, n]\n"
    names = [t.name for q in load_text(text).ops["g"].equations for t in q.targets]
    assert names == ["s", "Aq", "Y", "Z"]


def test_messages_about_another_files_equations_point_at_the_call() -> None:
    text = """import ops.fp8

op f(X: e4m3[K, M], W: e4m3[K, N], r: f32[M], q: f32[N], h: f32[3, H], s: f32[]) -> Y: f32[M, K]:
  t[m] = max k: abs(X[k, m])
  Y, a, b = product_fp8_gradients(t, X, W, r, q, s, s, s, h)
"""
    with pytest.raises(TcError, match="'t' has 1 axis") as caught:
        load_text(text, "f.tc")
    assert (caught.value.span.file, caught.value.span.line) == ("f.tc", 5)


OPS = """
op f(X: f32[M, N]) -> Y: f32[M, N], s: f32[]:
  Y[m, n] = X[m, n] + 1.0
  s = max m, n: X[m, n]

op g(X: f32[M, N], b: f32[K]) -> P: f32[M, N], Y: f32[M, N], c: f32[K]:
  P[m, n] = X[m, n] + 1.0
  Y[m, n] = 2.0 * P[m, n]
  c[k] = 2.0 * b[k]
"""
SHARED = (
    OPS
    + """
schedule f, g on gpu:
  tune B = 8 from 8, 16
  kernel P, Y:
    m, k -> grid(B)
    n of P -> vec(4)
  kernel s:
    m -> grid(4)
    combine s, c over m by partials
  kernel c:
    k -> grid(B)
"""
)


def directives(module: Module, op: str, target: str) -> str:
    return print_item(module.schedules[op, target])


def test_each_op_takes_of_a_shared_schedule_what_it_has() -> None:
    module = load_text(SHARED)
    alone = (
        OPS
        + """
schedule f on gpu:
  tune B = 8 from 8, 16
  kernel Y:
    m -> grid(B)
  kernel s:
    m -> grid(4)
    combine s over m by partials

schedule g on gpu:
  tune B = 8 from 8, 16
  kernel P, Y:
    m, k -> grid(B)
    n of P -> vec(4)
  kernel c:
    k -> grid(B)
"""
    )
    want = load_text(alone)
    for op in ("f", "g"):
        assert directives(module, op, "gpu") == directives(want, op, "gpu")


def test_flags_name_what_each_op_has() -> None:
    text = """
schedule f, g on gpu:
  inline P
  overlap P
  reverse k
  cast Y.P to bf16
"""
    module = load_text(OPS + text)
    alone = "\n".join(text.splitlines()[2:])
    assert directives(module, "f", "gpu").strip() == "schedule f on gpu:"
    assert directives(module, "g", "gpu").strip() == f"schedule g on gpu:\n{alone}"


def test_parsing_leaves_calls_as_they_are_written() -> None:
    ops = [i for i in parse(CALLS, "f.tc").items if isinstance(i, Op)]
    assert "total, scale = product(X, W, top)" in print_op(ops[1])
