"""Errors quote the line that they are about, by whoever knows the texts."""

from __future__ import annotations

import pytest

from tcomp.dsl.ast import Span
from tcomp.dsl.errors import TcError, quoting


def test_an_error_quotes_its_line_where_the_texts_are_known() -> None:
    with (
        pytest.raises(TcError, match=r"2 \| second line\n.*\^{6}"),
        quoting({"a.tc": "first\nsecond line", "b.tc": "x"}),
    ):
        raise TcError("wrong", Span("a.tc", 2, 1, 2, 7), "write another")


def test_a_text_that_an_error_has_is_kept() -> None:
    with pytest.raises(TcError, match=r"1 \| own"), quoting({"a.tc": "other"}):
        raise TcError("wrong", Span("a.tc", 1, 1, 1, 4), text="own")
