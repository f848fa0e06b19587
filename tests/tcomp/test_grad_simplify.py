"""The simplifier keeps values, settles in one pass, and proves sums equal; the prover sees through equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from tcomp.dsl.ast import Binary, Call, Expr, Name, Num, Reduction, Unary
from tcomp.dsl.parse import parse_expression
from tcomp.dsl.printer import print_expression
from tcomp.grad.proof import Prover
from tcomp.grad.simplify import is_zero, simplify


def simple(text: str) -> str:
    return print_expression(simplify(parse_expression(text)))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("(a * x + x * b - b * x) / x", "a"),
        ("2 * a + 3.0 * a / 2", "3.5 * a"),
        ("exp(s - L + log(l)) / l", "exp(s - L)"),
        ("exp(2 * log(a)) * a", "a * a * a"),
        ("-(a - b) * c", "(b - a) * c"),
        ("2 * x - 2 * y", "2.0 * (x - y)"),
        ("(x - y) * (x - y)", "(x - y) * (x - y)"),
        ("x / 3", "x / 3.0"),
        ("D ** -0.5 * q * D ** -0.5", "q / D"),
        ("(x * y) ** 0.5", "(x * y) ** 0.5"),
        ("(x * y) ** 2", "x * x * y * y"),
        ("x ** 0", "1.0"),
        ("x - x", "0.0"),
        ("0 * log(x)", "0.0"),
        ("select(c > 0.0, x + x, 2 * x)", "2.0 * x"),
        ("tanh(x - x) + cos(y - y)", "1.0"),
        ("x * (i // 2)", "i // 2 * x"),
        ("1 - 1e-5 - x", "0.99999 - x"),
    ],
)
def test_examples(text: str, want: str) -> None:
    assert simple(text) == want


NAMES = ("a", "b", "x", "dy")


def expressions() -> st.SearchStrategy[Expr]:
    leaves = st.sampled_from([Name(n) for n in NAMES]) | st.sampled_from([Num(v) for v in (0, 1, 2, 0.5, -1.5, 3.3)])

    def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        binary = st.builds(Binary, st.sampled_from(["+", "-", "*", "/"]), inner, inner)
        power = st.builds(Binary, st.just("**"), inner, st.sampled_from([Num(2), Num(-1), Num(0.5), Num(3), Num(0)]))
        call = st.builds(lambda f, e: Call(f, (e,)), st.sampled_from(["exp", "tanh", "cos", "log"]), inner)
        chosen = st.builds(lambda c, d, e: Call("select", (Binary("<", c, d), d, e)), inner, inner, inner)
        return binary | binary | power | call | chosen | st.builds(lambda e: Unary("-", e), inner)

    return st.recursive(leaves, grow, max_leaves=12)


def value(e: Expr, names: dict[str, float]) -> float:
    match e:
        case Num(v):
            return float(v)
        case Name(n):
            return names[n]
        case Unary(_, x):
            return -value(x, names)
        case Call("select", (c, x, y)):
            return value(x, names) if value(c, names) else value(y, names)
        case Call(f, (x,)):
            return float(getattr(np, f)(value(x, names)))
        case Binary(op, x, y):
            a, b = np.float64(value(x, names)), np.float64(value(y, names))
            match op:
                case "+":
                    return float(a + b)
                case "-":
                    return float(a - b)
                case "*":
                    return float(a * b)
                case "/":
                    return float(a / b)
                case "**":
                    return float(a**b)
                case "<":
                    return float(a < b)
    raise TypeError(e)


POINT = {"a": 0.7, "b": 1.9, "x": 1.3, "dy": 0.41}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(expressions())
def test_simplify_keeps_the_value_and_settles(e: Expr) -> None:
    with np.errstate(all="ignore"):
        want = value(e, POINT)
        steps = [value(s, POINT) for s in _parts(e)]
        assume(np.isfinite(steps).all() and max(abs(s) for s in steps) < 1e6)
        s = simplify(e)
        got = value(s, POINT)
    assert abs(got - want) <= 1e-9 * max(1.0, *(abs(v) for v in steps))
    settled = simplify(s)  # a factor taken out may let the rest be ordered once more
    assert simplify(settled) == settled
    assert parse_expression(print_expression(s)) == s


def _parts(e: Expr) -> list[Expr]:
    from tcomp.dsl.ast import walk

    return [x for x in walk(e) if not (isinstance(x, Binary) and x.op == "<")]


def test_is_zero_multiplies_out() -> None:
    assert is_zero(parse_expression("(a + b) * (a - b) - a ** 2 + b ** 2"))
    assert is_zero(parse_expression("(a + b) / c - a / c - b / c"))
    assert not is_zero(parse_expression("(a + b) * (a - b) - a ** 2 + 1.0001 * b ** 2"))


@pytest.fixture
def prover() -> Prover:
    def total(indices: str, text: str, guard: str | None = None) -> Reduction:
        where = None if guard is None else parse_expression(guard)
        return Reduction("sum", tuple(indices.split()), where, None, (parse_expression(text),))

    return Prover(
        {
            "s": (("m",), total("c", "X[m, c]")),
            "mean": (("m",), parse_expression("s[m] / C")),
            "u": (("m",), total("k", "X[m, k] * w[m]")),
            "h": (("m",), total("c", "X[m, c]", "c <= m")),
            "t": (("m",), total("a b", "X[a, b] * X[m, b]")),
            "r": (("m",), total("b a", "X[m, b] * X[a, b]")),
        },
        {"m": Name("M"), "c": Name("C"), "k": Name("C"), "a": Name("M"), "b": Name("C")},
    )


def test_the_prover_sees_through_sums(prover: Prover) -> None:
    deviation = parse_expression("X[m, c] - mean[m]")
    assert prover.is_zero(prover.sum(("c",), deviation))
    assert not prover.is_zero(prover.sum(("c",), parse_expression("X[m, c] - 2 * mean[m]")))
    assert prover.is_zero(parse_expression("u[m] - w[m] * s[m]")), "bound names do not matter"
    assert not prover.is_zero(parse_expression("u[m] - w[m] * h[m]")), "guards do"
    assert not prover.is_zero(parse_expression("s[m] - s[n]"))
    assert prover.is_zero(parse_expression("t[m] - r[m]")), "nor their order"


def test_the_prover_does_not_capture_names(prover: Prover) -> None:
    assert prover.is_zero(prover.sum(("m",), parse_expression("s[c] - s[c]")))
    assert not prover.is_zero(parse_expression("s[c] - s[m]"))
