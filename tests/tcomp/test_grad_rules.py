"""Each construct of the language, differentiated: against finite differences, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_op
from tcomp.dsl.load import load_text
from tcomp.grad import derive
from tcomp.grad.parts import disjoint
from tcomp.oracle import evaluate

Array = NDArray[Any]

MONOIDS = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

monoid lowsum by m:
  m = min(a.m, b.m)
  x = a.x * exp(2 * m - 2 * a.m) + b.x * exp(2 * m - 2 * b.m)

monoid squares by m:
  m = max(a.m, b.m)
  x = a.x * (a.m - m) ** 2 + b.x * (b.m - m) ** 2

fn swish(x) = x / (1.0 + exp(-x))

"""


def backward_text(text: str, *outputs: str) -> list[str]:
    """The printed equations of the derivative of op `f`."""
    module = load_text(MONOIDS + text)
    return print_op(derive(module.ops["f"], module, frozenset(outputs) or None)).splitlines()[1:]


def check(text: str, dims: dict[str, int] | None = None, seed: int = 0, **given: Any) -> None:
    """Every element of every derived gradient of op `f` against central differences."""
    module = load_text(MONOIDS + text)
    op = module.ops["f"]
    backward = derive(op, module)
    again = load_text(MONOIDS + text + "\n" + print_op(backward)).ops["f.backward"]
    assert again == backward
    random = np.random.default_rng(seed)
    sizes = dims or {}
    x: dict[str, Array] = {}
    for p in op.params:
        shape = tuple(sizes[e.id] if hasattr(e, "id") else e.value for e in p.shape)
        x[p.name] = np.asarray(given[p.name]) if p.name in given else random.uniform(0.2, 1.0, shape)
    y = evaluate(op, module, x, sizes)
    dy = {f"d{n}": random.standard_normal(v.shape) for n, v in y.items()}
    values = {**x, **y, **dy}
    got = evaluate(backward, module, {p.name: values[p.name] for p in backward.params}, sizes)
    for p in op.params:
        if not p.dtype.is_float:
            continue
        want = np.zeros(x[p.name].shape)
        for place in np.ndindex(want.shape):
            sides = []
            for h in (1e-6, -1e-6):
                moved = x[p.name].astype(float).copy()
                moved[place] += h
                out = evaluate(op, module, {**x, p.name: moved}, sizes)
                sides.append(sum((dy[f"d{n}"] * v).sum() for n, v in out.items()))
            want[place] = (sides[0] - sides[1]) / 2e-6
        assert np.allclose(got[f"d{p.name}"], want, rtol=1e-6, atol=1e-7), (p.name, got[f"d{p.name}"], want)


# ---------------------------------------------------------------------------------------------- builtins


@pytest.mark.parametrize(
    "e",
    [
        "exp(x[i])", "log(x[i])", "tanh(x[i])", "sqrt(x[i])", "rsqrt(x[i])", "abs(x[i] - 0.5)", "sin(x[i])",
        "cos(x[i])", "floor(3 * x[i]) * x[i]", "min(x[i], z[i])", "max(x[i], z[i] * 2)", "x[i] / z[i]",
        "select(x[i] < z[i], x[i] * z[i], x[i] + z[i])", "x[i] ** 3", "x[i] ** -2", "x[i] ** 0.5",
        "x[i] ** N", "x[i] ** z[i]", "2 ** x[i]", "-x[i] * (z[i] - x[i])", "swish(swish(x[i]))",
        "f32(x[i]) * i", "bf16(1.5) * x[i]", "random(7, i) * x[i]", "x[i] - x[i]",
        "select(i % 2 == 0 and not x[i] > 9.0, exp(x[i]), 0.0)", "min(x[i], x[i])",
        "exp(x[i]) ** 2 / exp(x[i])",
    ],
)  # fmt: skip
def test_builtins(e: str) -> None:
    check(f"op f(x, z: f32[N]) -> y: f32[N]:\n  y[i] = {e}\n", {"N": 4})


# ---------------------------------------------------------------------------------------------- accesses


def test_broadcast_reads_are_summed() -> None:
    text = "op f(a: f32[M], b: f32[N], c: f32[]) -> y: f32[M, N]:\n  y[m, n] = a[m] * b[n] + c\n"
    assert backward_text(text) == [
        "  da[m] = sum n: dy[m, n] * b[n]",
        "  db[n] = sum m: dy[m, n] * a[m]",
        "  dc = sum m, n: dy[m, n]",
    ]
    check(text, {"M": 2, "N": 3})


def test_a_gather_becomes_a_scatter() -> None:
    text = "op f(e: f32[V, C], ids: i32[T]) -> y: f32[T, C]:\n  y[t, c] = e[ids[t], c] ** 2\n"
    assert backward_text(text) == ["  de[ids[t], c] += 2.0 * dy[t, c] * e[ids[t], c]"]
    check(text, {"V": 3, "C": 2, "T": 5}, ids=[0, 2, 2, 0, 2])


def test_a_scatter_becomes_a_gather() -> None:
    text = "op f(g: f32[T, C], ids: i32[T]; V) -> y: f32[V, C]:\n  y[ids[t], c] += g[t, c] ** 2\n"
    assert backward_text(text) == ["  dg[t, c] = 2.0 * dy[ids[t], c] * g[t, c]"]
    check(text, {"V": 3, "C": 2, "T": 5}, ids=[0, 2, 2, 0, 2])


def test_affine_subscripts_scatter_and_constants_assign() -> None:
    text = "op f(x: f32[2 * N]; N) -> y: f32[N]:\n  y[i] = x[2 * i + 1] - x[2 * i] ** 2\n"
    assert all(" += " in line for line in backward_text(text))
    check("op f(x: f32[9]) -> y: f32[4]:\n  y[i] = x[2 * i + 1] - x[2 * i] ** 2 * x[i]\n")
    text = "op f(x: f32[3, N]) -> y: f32[N]:\n  y[i] = x[0, i] * x[2, i]\n"
    assert backward_text(text) == ["  dx[0, i] = dy[i] * x[2, i]", "  dx[2, i] = dy[i] * x[0, i]"]
    check(text, {"N": 3})


def test_reads_outside_the_guard_scatter_nothing_outside() -> None:
    text = (
        "op f(x: f32[N], w: f32[3]) -> y: f32[N]:\n"
        "  y[i] = sum j where i + j >= 1 and i + j <= N: x[i + j - 1] * w[j]\n"
    )
    check(text, {"N": 4})
    check("op f(x: f32[N]) -> y: f32[N]:\n  y[i] = select(i >= 1, x[i - 1] * x[i], x[i])\n", {"N": 4})


def test_a_diagonal_is_added_to() -> None:
    text = "op f(x: f32[N, N]) -> y: f32[N]:\n  y[i] = x[i, i] ** 2 + x[i, 0]\n"
    assert backward_text(text) == ["  dx[i, 0] = dy[i]", "  dx[i, i + 0] += 2.0 * dy[i] * x[i, i]"]
    check(text, {"N": 3})


def test_a_temporary_read_in_part_or_shifted() -> None:
    check(
        "op f(x: f32[N]; H) -> y: f32[H], z: f32[N]:\n  require H <= N\n  index h: H\n"
        "  t[i] = x[i] * x[i]\n  y[h] = t[h] * x[h]\n  z[i] = t[(i + 1) % N] + t[0] * t[i]\n",
        {"N": 4, "H": 2},
    )


def test_the_same_tensor_read_in_two_equations_is_written_then_added_to() -> None:
    text = (
        "op f(x: f32[M, N]) -> r: f32[M], c: f32[N], y: f32[M, N]:\n"
        "  r[m] = sum n: x[m, n]\n  c[n] = sum m: x[m, n] ** 2\n  y[m, n] = x[m, n] * r[m]\n"
    )
    check(text, {"M": 2, "N": 3})
    assert backward_text(text)[-1].startswith("  dx[m, n] = ")
    text = "op f(x: f32[M, M], v: f32[M]) -> y: f32[M]:\n  y[i] = sum j: x[i, j] * v[j] + x[j, i] * v[i]\n"
    check(text, {"M": 3})
    assert backward_text(text) == [
        "  dx[i, j] = v[j] * (dy[i] + dy[j])",
        "  dv[j] = sum i: dy[i] * x[i, j]",
        "  dv[i] += sum j: dy[i] * x[j, i]",
    ]


def test_added_to_and_partly_written_results() -> None:
    check(
        "op f(x, z: f32[N]) -> y: f32[2, N], s: f32[N]:\n"
        "  y[0, i] = x[i] * z[i]\n  y[1, i] = exp(x[i])\n  s[i] += y[0, i] ** 2\n  s[i] += sum j: y[1, j] * z[i]\n",
        {"N": 3},
    )


def test_an_input_that_nothing_depends_on_has_a_zero_gradient() -> None:
    text = "op f(x: f32[N], z: f32[M]) -> y: f32[N]:\n  y[i] = select(x[i] > 0.0, x[i], 0.0)\n"
    assert backward_text(text)[-2:] == ["  dx[i] = dy[i] * select(x[i] > 0.0, 1.0, 0.0)", "  dz[i0] = 0.0"]
    check(text, {"N": 3, "M": 2})


# -------------------------------------------------------------------------------------------- reductions


def test_guarded_sums() -> None:
    check("op f(s: f32[T, T], v: f32[T]) -> y: f32[T]:\n  y[q] = sum k where k <= q: s[q, k] * v[k]\n", {"T": 4})


@pytest.mark.parametrize("reducer", ["max", "min"])
def test_extrema(reducer: str) -> None:
    check(f"op f(x: f32[M, N]) -> y: f32[M]:\n  y[m] = {reducer} n where n <= m + 1: x[m, n]\n", {"M": 3, "N": 4})
    check(
        f"op f(x: f32[M, N], w: f32[N]) -> y: f32[M]:\n  y[m] = {reducer} n: tanh(x[m, n] * w[n])\n",
        {"M": 3, "N": 4},
    )


def test_ties_of_an_extremum_share_the_gradient() -> None:
    module = load_text("op f(x: f32[N]) -> y: f32[]:\n  y = max n: x[n]\n")
    backward = derive(module.ops["f"], module)
    x = np.array([1.0, 3, 2, 3])
    got = evaluate(backward, module, {"x": x, "y": 3.0, "dy": 1.0}, {"N": 4})
    assert np.array_equal(got["dx"], [0, 0.5, 0, 0.5])


def test_log_sum_exp_has_no_path_through_its_maximum() -> None:
    text = "op f(x: f32[M, N]) -> y: f32[M]:\n  m[i], l[i] = expsum n by x[i, n] * 3: 1\n  y[i] = m[i] + log(l[i])\n"
    assert backward_text(text) == ["  dx[i, n] = 3.0 * dy[i] * exp(3.0 * x[i, n] - y[i])"]
    check(text, {"M": 2, "N": 4})


def test_where_the_maximum_matters_its_element_gets_that_part() -> None:
    text = (
        "op f(x: f32[M, N], v: f32[N]) -> y: f32[M]:\n"
        "  m[i], l[i], o[i] = expsum n where n <= i + 1 by x[i, n]: 1, v[n]\n  y[i] = o[i] / l[i] * m[i] + l[i]\n"
    )
    assert any("m_again" in line for line in backward_text(text))
    check(text, {"M": 3, "N": 4})


def test_guards_that_leave_nothing_divide_nothing_by_zero() -> None:
    check(
        "op f(x: f32[M, N], v: f32[N]) -> y: f32[M]:\n"
        "  m[i], l[i], o[i] = expsum n where n < i by log(x[i, n]): 1, v[n]\n  y[i] = o[i] / (1.0 + l[i])\n",
        {"M": 3, "N": 4},
    )
    check(
        "op f(x: f32[N], c: f32[M]) -> y: f32[M]:\n  t[n] = exp(x[n])\n  y[m] = sum n where c[m] > 0.5: t[n] / c[m]\n",
        {"M": 2, "N": 3},
        c=[0.0, 2.0],
    )


def test_monoid_fields_with_their_own_indices_and_a_minimum() -> None:
    check(
        "op f(x: f32[M, N], v: f32[N, E]) -> y: f32[M, E], z: f32[M]:\n"
        "  m[i], l[i], o[i, e] = lowsum n by x[i, n] ** 2: x[i, n], v[n, e] * x[i, n]\n"
        "  y[i, e] = o[i, e] / l[i]\n  z[i] = l[i] * m[i]\n",
        {"M": 2, "N": 3, "E": 2},
    )


def test_softmax_with_a_gather_in_the_key_and_a_shared_operand() -> None:
    check(
        "op f(x: f32[N, D], ids: i32[T]) -> y: f32[T, D]:\n"
        "  s[t, n] = sum d: x[ids[t], d] * x[n, d]\n"
        "  m[t], l[t], o[t, d] = expsum n where n <= t by s[t, n]: 1, x[n, d]\n"
        "  y[t, d] = o[t, d] / l[t]\n",
        {"N": 3, "D": 2, "T": 4},
        ids=[0, 2, 2, 1],
    )


@pytest.mark.parametrize(
    "text",
    [
        "op f(x, z: f32[N]) -> y: f32[N]:\n  y[i] = exp(x[i])\n  y[i] += z[i] * x[i]\n",
        "op f(x, z: f32[N]) -> y: f32[N]:\n  y[i] = exp(x[i])\n  y[0] += z[0]\n",
        "op f(x: f32[N]) -> z: f32[N], y: f32[N, N]:\n  z[i] = 2.0 * exp(x[i])\n  y[i, j] = exp(x[i])\n",
    ],
)
def test_a_result_stands_for_a_value_only_where_it_is_that_value_in_the_end(text: str) -> None:
    """Not where something was added to it, nor where it has an index that the value has not."""
    check(text, {"N": 3})


def test_elements_that_differ_by_a_remainder_are_written_apart() -> None:
    text = "op f(x: f32[N]) -> y: f32[2 * N]:\n  y[2 * i] = exp(x[i])\n  y[2 * i + 1] = tanh(x[i])\n"
    assert backward_text(text) == [
        "  dx[i] = dy[2 * i + 1] * (1.0 - y[2 * i + 1] * y[2 * i + 1]) + dy[2 * i] * y[2 * i]"
    ]
    check(text, {"N": 3})


def test_no_factor_that_may_be_zero_is_divided_by() -> None:
    """`t` is computed again: y / a is not a number where a is 0."""
    text = "op f(x: f32[N, M], a: f32[]) -> y: f32[N]:\n  t[i] = sum j: x[i, j]\n  y[i] = t[i] * {} + a\n"
    assert "  t[i] = sum j: x[i, j]" in backward_text(text.format("a"))
    check(text.format("a"), {"N": 3, "M": 2}, a=0.0)
    check(text.format("(a * 0.5 / M)"), {"N": 3, "M": 2}, a=0.0)


def giving(output: str, value: str) -> str:
    """An op with a sum `t` that a result `y` of that type may give back."""
    sums = "  t[i] = sum j: x[i, j]\n"
    return f"op f(x: f32[N, M], a: f32[]) -> y: {output}[N], z: f32[N]:\n{sums}  y[i] = {value}\n  z[i] = t[i] * t[i]\n"


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("f32", "t[i] * exp(-a)"),  # zero in f32 from a = 104 on
        ("f32", "t[i] * 0.5 ** i"),
        ("f32", "t[i] + a"),  # a may be -inf, or 1e9
        ("f32", "t[i] - select(i > 1, 1e9, 0.0)"),
        ("real", "t[i] + 1.0"),
        ("bf16", "log(t[i])"),
        ("e4m3", "2.0 * t[i]"),
    ],
)
def test_no_result_gives_back_what_it_has_lost(output: str, value: str) -> None:
    assert "  t[i] = sum j: x[i, j]" in backward_text(giving(output, value))


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("real", "2.0 * t[i] / M"),
        ("bf16", "t[i] / a"),
        ("f32", "log(t[i])"),
        ("f32", "1.0 + t[i]"),
        ("f32", "t[i] + log(a)"),
    ],
)
def test_a_result_gives_back_what_it_has(output: str, value: str) -> None:
    assert not any("sum j" in line for line in backward_text(giving(output, value)))
    check(giving("f32", value), {"N": 3, "M": 2})


@pytest.mark.parametrize(
    ("value", "gradient"),
    [
        ("sum k: x[(i + k) % N] * w[k]", "f32[N + K - 1], dw: real[K]"),
        ("sum k: x[i + k] * w[k]", "real[N + K - 1], dw: real[K]"),
        ("w[0] * x[(i + 1) % N]", "f32[N + K - 1], dw: real[K]"),
        ("w[0] * x[i] + x[i]", "real[N + K - 1], dw: real[K]"),
    ],
)
def test_gradients_that_grow_in_memory_are_f32(value: str, gradient: str) -> None:
    text = f"op f(x: real[N + K - 1], w: real[K]) -> y: real[N]:\n  index k: K\n  y[i] = {value}\n"
    module = load_text(text)
    assert f"-> dx: {gradient}:" in " ".join(print_op(derive(module.ops["f"], module)).split())


def test_double_precision_stays_double() -> None:
    text = (
        "op f(x, z: f64[N]) -> y: f64[N], s: f64[]:\n  t[i] = exp(x[i])\n  s = sum i: t[i] * z[i]\n  y[i] = t[i] * s\n"
    )
    assert any(": f64 = " in line for line in backward_text(text))
    check(text, {"N": 3})


def test_inputs_and_outputs_of_any_float_type() -> None:
    text = "op f(x: bf16[N], w: f16[N]) -> y: f32[N], z: e4m3[N]:\n  y[i] = x[i] * w[i]\n  z[i] = x[i]\n"
    module = load_text(text)
    head = print_op(derive(module.ops["f"], module)).splitlines()[0]
    assert head == "backward f(x: bf16[N], w: f16[N], dy: f32[N], dz: e4m3[N]) -> dx: bf16[N], dw: f16[N]:"


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "op f(x: f32[N], inout p: f32[N]) -> y: f32[N]:\n  p[i] = x[i]\n  y[i] = p[i]\n",
            "<text>:1:17: error: op 'f' changes 'p' in place, so it has no derivative",
        ),
        (
            "op f(x: f32[N]) -> y: f32[N]:\n  y[i] = x[i]\n  y[i] = exp(y[i])\n",
            "<text>:3:3: error: 'y' is written again after its value was read, so 'f' has no derivative",
        ),
        (
            "op f(x: f32[N]) -> y: f32[N]:\n  y[i] = x[i]\n  y[i] = exp(x[i])\n",
            "<text>:3:3: error: 'y' is assigned again, so 'f' has no derivative",
        ),
        (
            "op f(x, dx: f32[N]) -> y: f32[N]:\n  y[i] = x[i] * dx[i]\n",
            "<text>:1:1: error: the gradient of 'x' would be named 'dx', which 'f' has already",
        ),
    ],
)
def test_what_cannot_be_differentiated_is_refused(text: str, message: str) -> None:
    module = load_text(text)
    with pytest.raises(TcError) as caught:
        derive(module.ops["f"], module)
    assert str(caught.value).startswith(message)
    assert "help:" in str(caught.value)


def test_a_monoid_of_another_form_is_refused() -> None:
    text = MONOIDS + "op f(x: f32[N]) -> y: f32[]:\n  m, y = squares n by x[n]: 1\n"
    module = load_text(text)
    with pytest.raises(TcError, match="the monoid 'squares' is no sum weighted by exp"):
        derive(module.ops["f"], module)


@pytest.mark.parametrize(
    ("value", "slope"),
    [
        ("1.0 / (1.0 + exp(-X[i]))", lambda x: 0.25 / np.cosh(x / 2) ** 2),
        ("swish(X[i])", lambda x: (1 + np.tanh(x / 2)) / 2 + x / 4 / np.cosh(x / 2) ** 2),
        ("log(2.0 * exp(3.0 * X[i]) + 0.5)", lambda x: 1.5 * (1 + np.tanh((3 * x + np.log(4)) / 2))),
        ("(1.0 - exp(X[i])) / (1.0 + exp(X[i]))", lambda x: -0.5 / np.cosh(x / 2) ** 2),
    ],
)
def test_slopes_of_logistic_functions_are_finite_where_their_exponentials_overflow(value: str, slope: Any) -> None:
    module = load_text(MONOIDS + f"op f(X: f32[N]) -> Y: f32[N]:\n  Y[i] = {value}\n")
    backward = derive(module.ops["f"], module)
    x = np.array([-1200.0, -60.0, -3.0, -0.5, 0.0, 1.0, 40.0, 700.0])
    with np.errstate(over="ignore"):
        got = evaluate(backward, module, {"X": x, "dY": np.ones(8)}, {"N": 8})["dX"]
        np.testing.assert_allclose(got, slope(x), rtol=1e-9, atol=1e-16)


def test_the_slope_of_a_power_by_its_exponent_is_its_limit_where_the_base_is_zero() -> None:
    text = "op f(x, z: f32[N]) -> y: f32[N]:\n  y[i] = x[i] ** z[i]\n"
    module = load_text(text)
    values = {"x": np.array([0.0, 0.0, 2.0]), "z": np.array([0.5, 3.0, -1.0]), "dy": np.ones(3)}
    got = evaluate(derive(module.ops["f"], module), module, values, {"N": 3})
    np.testing.assert_allclose(got["dz"], [0.0, 0.0, 0.5 * np.log(2.0)])


@pytest.mark.parametrize(
    ("operand", "result", "value", "gradient"),
    [
        ("N + K - 1", "N", "sum k: X[i + k] * w[k]", "dX[u] = sum k where 0 <= u - k and u - k < N: dY[u - k] * w[k]"),
        ("N", "N", "sum k where k <= i: X[i - k] * w[k]", "dX[u] = sum k where u + k < N: dY[u + k] * w[k]"),
        ("N", "N", "sum k: select(i >= k, X[i - k], 0.0) * w[k]", "dX[u] = sum k where u + k < N: dY[u + k] * w[k]"),
        ("N", "N", "select(i + 1 < N, X[i + 1], 0.0) - X[i]", "dX[u] = select(0 <= u - 1, dY[u - 1], 0.0) - dY[u]"),
        ("N", "K", "sum j where j + i < N: X[j + i] * 2.0", "dX[u] = sum i where 0 <= u - i: 2.0 * dY[i]"),
        (  # dilated
            "N", "N", "sum k where k * K <= i: X[i - k * K] * w[k]",
            "dX[u] = sum k where u + K * k < N: dY[u + K * k] * w[k]",
        ),
        (
            "N", "N", "sum k: select(i + 2 * k < N, X[i + 2 * k], 0.0) * w[k]",
            "dX[u] = sum k where 0 <= u - 2 * k: dY[u - 2 * k] * w[k]",
        ),
        ("K + N * K", "K", "sum j: X[i + K * j]", "dX[i + K * j] += dY[i]"),  # each once, but far apart
        ("2 * N + K", "N", "sum k: X[2 * i + k] * w[k]", "dX[2 * i + k] += dY[i] * w[k]"),  # not each once
        ("N * K", "N", "sum k: X[i * K + k] * w[k]", "dX[i * K + k] += dY[i] * w[k]"),  # no two points meet
    ],
)  # fmt: skip
def test_gradients_of_windows_are_gathered(operand: str, result: str, value: str, gradient: str) -> None:
    text = (
        f"op f(X: f32[{operand}], w: f32[K]; N, K) -> Y: f32[{result}]:\n"
        f"  index i: {result}\n  index j: N\n  index k: K\n  Y[i] = {value}\n"
    )
    module = load_text(text.replace("  index j: N\n", "") if "j" not in value else text)
    op = module.ops["f"]
    backward = derive(op, module)
    assert gradient in print_op(backward)
    sizes, random = {"N": 5, "K": 3}, np.random.default_rng(0)
    x = {p.name: random.standard_normal([int(evaluate_dim(e, sizes)) for e in p.shape]) for p in op.params}
    dy = {"dY": random.standard_normal(sizes[result])}
    got = evaluate(backward, module, {p.name: (x | dy)[p.name] for p in backward.params}, sizes)["dX"]
    want = [
        (dy["dY"] @ evaluate(op, module, x | {"X": np.eye(len(got))[at]}, sizes)["Y"]) for at in range(len(got))
    ]  # it is linear in X
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("g", [-1.0, 1.0])
@pytest.mark.parametrize("s", [-2, 0, 3])
def test_conditions_on_scalars_stay_where_gradients_are_gathered(s: int, g: float) -> None:
    """Of a dimension it is known that it is positive, of a scalar operand nothing."""
    text = (
        "op f(X: f32[N], w: f32[K], g: f32[], s: i32[]) -> Y: f32[N]:\n"
        "  z[i] = select(i + s >= 0 and i + s < N, X[i + s], 0.0)\n"
        "  Y[i] = sum k where k <= i: select(g >= 0.0, w[k], 0.5 * w[k]) * z[i - k]\n"
    )
    module, random = load_text(text), np.random.default_rng(0)
    op, sizes, dy = module.ops["f"], {"N": 5, "K": 3}, random.standard_normal(5)
    backward = derive(op, module)
    given: dict[str, Any] = {
        "w": random.standard_normal(3),
        "g": np.array(g),
        "s": np.array(s),
        "dY": dy,
        "X": np.zeros(5),
    }
    got = evaluate(backward, module, {p.name: given[p.name] for p in backward.params}, sizes)["dX"]
    want = [dy @ evaluate(op, module, given | {"X": np.eye(5)[at]}, sizes)["Y"] for at in range(5)]
    np.testing.assert_allclose(got, want, atol=1e-12)


N, M, n, scalar = Name("N"), Name("M"), Name("n"), Access("s", ())


@pytest.mark.parametrize(
    ("shift", "apart"),
    [(Num(0), True), (Binary("//", N, Num(2)), True), (Call("min", (N, M)), True),
     (scalar, False), (Binary("//", Binary("-", N, M), Num(2)), False), (Binary("*", N, scalar), False)],
)  # fmt: skip
def test_parts_are_apart_whatever_the_sign_of_a_scalar(shift: Expr, apart: bool) -> None:
    """`Y[n]` and `Y[s + N + n]` may meet: s may be negative."""
    behind = Binary("+", shift, Binary("+", N, n))
    assert disjoint((n,), (behind,), {"n": N}, ("N", "M")) is apart
