"""Amounts of memory as messages show them."""

from __future__ import annotations

import pytest

from tcomp.amounts import bytes_apart, bytes_text


@pytest.mark.parametrize(
    ("n", "text"), [(1023, "1023 B"), (1024, "1.0 KiB"), (1258291, "1.2 MiB"), (2**30 + 2**29, "1.50 GiB")]
)
def test_bytes(n: int, text: str) -> None:
    assert bytes_text(n) == text


@pytest.mark.parametrize(
    ("a", "b", "texts"),
    [
        (1258291, 1258291 + 64, ("1,258,291 B", "1,258,355 B")),
        (1258291, 1258291, ("1.2 MiB", "1.2 MiB")),
        (2**20, 2**21, ("1.0 MiB", "2.0 MiB")),
    ],
)
def test_two_amounts_that_differ_read_differently(a: int, b: int, texts: tuple[str, str]) -> None:
    assert bytes_apart(a, b) == texts
