"""Wording shared by diagnostics: the nearest known name, and lists of what would have been right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], kind: str) -> str:
    """A remedy for an unknown name: the nearest known one, else all of them when they are few."""
    names = list(dict.fromkeys(known))
    close = [n for n in names if n.startswith(f"{name}.")][:1] or get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        close = [n for n in names if n.lower() == name.lower()][:1]
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return f"there is no {kind} here"
    if len(names) == 1:
        return f"the only {kind} here is '{names[0]}'"
    return f"known: {listing(names)}" if len(names) <= 12 else f"no {kind} has a name like it"


def count(n: int, one: str, many: str = "") -> str:
    """`1 axis`, `2 axes`."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def listing(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`, each in quotes."""
    quoted = [f"'{n}'" for n in names]
    if len(quoted) <= 1:
        return "".join(quoted)
    return ", ".join(quoted[:-1]) + " and " + quoted[-1]
