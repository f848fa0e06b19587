"""Amounts as people read them."""

from __future__ import annotations


def bytes_text(n: int) -> str:
    """`512 B`, `12.3 KiB`, `45.6 MiB`, `7.89 GiB`."""
    if n < 1024:
        return f"{n} B"
    for unit, size in (("KiB", 2**10), ("MiB", 2**20)):
        if n < size * 1024:
            return f"{n / size:,.1f} {unit}"
    return f"{n / 2**30:,.2f} GiB"
