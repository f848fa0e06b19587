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


def bytes_apart(a: int, b: int) -> tuple[str, str]:
    """Two amounts as they are compared: to the byte, `1,234,567 B`, where they would read the same and are not."""
    texts = bytes_text(a), bytes_text(b)
    return (f"{a:,} B", f"{b:,} B") if a != b and texts[0] == texts[1] else texts
