"""Dimension arithmetic: a number, or a refusal; never anything of unbounded size."""

from __future__ import annotations

import pytest

from tcomp.dsl.dims import Number, evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.parse import parse_expression


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 ** 10 ** 30", 1), ("(0 - 1) ** 9999999999", -1), ("2 ** 0.5", 2**0.5), ("2 ** 126", 1 << 126),
        ("9223372036854775807 * 2", (1 << 64) - 2), ("7 // 2 * 2 + 7 % 2", 7), ("2 < 3 and 3 < 2", 0),
        ("0000000000000000000000000000000001", 1),
    ],
)  # fmt: skip
def test_what_has_a_value(text: str, value: Number) -> None:
    assert evaluate_dim(parse_expression(text), {}) == value


@pytest.mark.parametrize(
    "text",
    [
        "10 ** 10 ** 10", "2 ** 2 ** 2 ** 2 ** 2 ** 2", "(0 - 1) ** 0.5", "1e300 * 1e300", "0 ** (0 - 1)", "exp(1000)",
        "1e308 * 10 - 1e308 * 10", "sqrt(0 - 1)", "1 // 0", "2.5 % 0", "9223372036854775807 ** 3", "floor(1e308)",
    ],
)  # fmt: skip
def test_what_has_none(text: str) -> None:
    with pytest.raises(TcError, match="has no value"):
        evaluate_dim(parse_expression(text), {})
