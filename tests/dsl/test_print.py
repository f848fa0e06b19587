"""Law: what is printed parses again to an equal tree. For random expressions and ops, and the whole library."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tcomp.dsl import ast
from tcomp.dsl.ast import Access, Binary, Call, DType, Equation, Expr, Name, Num, Op, Operand, Reduction, Target, Unary
from tcomp.dsl.format import print_expression, print_item, print_op
from tcomp.dsl.load import library
from tcomp.dsl.parse import parse, parse_expression

NAMES = st.sampled_from(["m", "n", "k", "M", "a.m", "lr_2"])
NUMBERS = st.one_of(
    st.integers(-100, 10**12), st.floats(allow_nan=False, allow_infinity=False), st.floats(-2, 2, width=32)
)


def combine(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    args = st.lists(inner, min_size=1, max_size=3).map(tuple)
    operators = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", *ast.COMPARISONS, *ast.LOGIC])
    return st.one_of(
        st.builds(Binary, operators, inner, inner),
        st.builds(Unary, st.sampled_from(["-", "not"]), inner),
        st.builds(Access, st.sampled_from(["X", "W"]), args),
        st.builds(Call, st.sampled_from(["exp", "select", "bf16", "gelu"]), args),
    )


EXPRESSIONS = st.recursive(st.one_of(st.builds(Num, NUMBERS), st.builds(Name, NAMES)), combine, max_leaves=12)


@given(EXPRESSIONS)
@settings(max_examples=400, deadline=None)
def test_a_printed_expression_parses_to_itself(e: Expr) -> None:
    assert parse_expression(print_expression(e)) == e


def without_dots(e: Expr) -> Expr:
    return ast.substitute(e, {"a.m": Name("j")})


VALUES = EXPRESSIONS.map(without_dots)
INDICES = st.lists(st.sampled_from(["i", "j", "m"]), unique=True, max_size=3).map(tuple)


@st.composite
def equations(draw: st.DrawFn) -> Equation:
    subscripts = tuple(Name(i) for i in draw(INDICES))
    dtype = draw(st.sampled_from([None, *DType]))
    target = Target(draw(st.sampled_from(["t", "u"])), (*subscripts, Num(0)), dtype)
    if draw(st.booleans()):
        guard = draw(st.none() | VALUES)
        value = Reduction("sum", draw(INDICES.filter(bool)), guard, None, (draw(VALUES),))
        return Equation((target,), draw(st.booleans()), value)
    return Equation((target,), draw(st.booleans()), draw(VALUES))


@st.composite
def ops(draw: st.DrawFn) -> Op:
    shape = st.lists(st.sampled_from([Name("M"), Num(3), Binary("*", Num(2), Name("K"))]), min_size=1, max_size=3)
    operand = st.builds(
        lambda n, d, s, io: Operand(n, d, tuple(s), io),
        st.sampled_from(["X", "Q", "long_operand_name"]), st.sampled_from(DType), shape, st.booleans(),
    )  # fmt: skip
    outputs = st.builds(
        lambda n, d, s: Operand(n, d, tuple(s)), st.sampled_from(["Y", "Z"]), st.sampled_from(DType), shape
    )
    return Op(
        name="f",
        params=tuple(draw(st.lists(operand, max_size=6))),
        outputs=tuple(draw(st.lists(outputs, max_size=3))),
        dims=tuple(draw(st.lists(st.sampled_from(["V", "S"]), unique=True))),
        ranges=tuple((n, Name("V")) for n in draw(INDICES)),
        requires=tuple(draw(st.lists(VALUES, max_size=2))),
        equations=tuple(draw(st.lists(equations(), min_size=1, max_size=4))),
        doc=draw(st.sampled_from(["", "One line.", "Two\n\n  lines."])),
    )


@given(ops())
@settings(max_examples=150, deadline=None)
def test_a_printed_op_parses_to_itself(op: Op) -> None:
    assert parse(print_op(op)).items == (op,)


@pytest.mark.parametrize("path", sorted(library().rglob("*.tc")), ids=lambda p: p.stem)
def test_every_item_of_the_library_prints_to_text_that_parses_to_it(path: Path) -> None:
    for item in parse(path.read_text(), path.name).items:
        assert parse(print_item(item)).items == (item,)


@pytest.mark.parametrize(
    "text",
    [
        "a + b * c", "(a + b) * c", "a - (b - c)", "a - b - c", "a / (b * c)", "(a ** b) ** c", "a ** b ** c",
        "-a ** 2", "(-a) ** 2", "a ** -b", "(-2) ** 2", "-2 ** 2", "-(2)", "-(-a)", "2 - -1", "not a < b and c < d",
        "not (a and b)", "(a or b) and c", "a // b % c * 2", "f(x, -1.5)[0]"[:10], "X[i + 1, 2 * j]",
        "(a < b) == (c < d)", "1e-05", "1e+16",
    ],
)  # fmt: skip
def test_parentheses_are_the_fewest_needed(text: str) -> None:
    assert print_expression(parse_expression(text)) == text


def test_a_group_may_have_no_values_of_its_own() -> None:
    """All that its op takes may be hyperparameters."""
    lines = "  optimizer sgd:\n    hyper rate = 0.1\n    group all\n    group rest by adam\n"
    (item,) = parse("model m(B):\n  config one: N = 2\n  forward:\n    y = f(N)\n  loss y\n" + lines, "m.tc").items
    assert lines in print_item(item) + "\n"
    assert parse(print_item(item) + "\n", "m.tc").items == (item,)


def test_a_long_header_is_broken_at_its_operands() -> None:
    params = tuple(Operand(f"operand_{n}", DType.F32, (Name("M"), Num(n + 1))) for n in range(8))
    op = Op("f", params, params[:1], (), (), (), (Equation((Target("t", ()),), False, Num(1)),))
    text = print_op(op)
    assert max(map(len, text.splitlines())) <= 110
    assert parse(text).items == (op,)
