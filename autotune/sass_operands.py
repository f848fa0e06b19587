"""The operands of a machine instruction, read in what is known of a warp: numbers, constants, registers, predicates.

Text is taken apart once: each operand becomes a function of the warp's `State`. A value that is not known is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from tcomp.autotune.sass_registers import REGISTER, is_predicate
from tcomp.autotune.sass_values import MASK, Value


@dataclass(slots=True)
class State:
    """`special` gives special registers (SR_TID.X, SR_CTAID.X, ...) and `constants` known words of the constant bank by
    offset."""

    special: Mapping[str, int]
    constants: Mapping[int, int]
    values: dict[str, Value] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    """registers that hold a place of a jump table -> its number there"""
    data: set[str] = field(default_factory=set)
    """registers and predicates that are unknown because they follow from data"""


Read = Callable[[State], Value]
Test = Callable[[State], "bool | None"]


@cache
def predicate(text: str) -> Test:
    """P0, !P0, PT."""
    negated, name = text.startswith("!"), text.lstrip("!")
    if name in ("PT", "UPT"):
        return lambda _: not negated

    def test(state: State) -> bool | None:
        value = state.values.get(name)
        return None if value is None else bool(value) != negated

    return test


@cache
def operand(text: str) -> Read:
    """A number, a word of the constant bank, a register."""
    t = text.strip().removesuffix(".reuse").removesuffix(".64")
    change = t[0] if t[:1] in ("-", "~") else ""
    t = t.lstrip("-~").removesuffix(".reuse").removesuffix(".H0_H0").strip("|")
    if t in ("RZ", "URZ", "SRZ") or re.fullmatch(r"0x[0-9a-f]+|\d+", t):
        number = _changed(0 if t[-1] == "Z" else int(t, 16 if t.startswith("0x") else 10), change)
        return lambda _: number
    if m := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", t):
        offset = int(m[1], 16)
        return lambda state: _changed(state.constants.get(offset), change)
    # (Of a register that was never written, code only keeps what it has put there since.)
    if not change:
        return lambda state: state.values.get(t, 0)
    return lambda state: _changed(state.values.get(t, 0), change)


def _changed(value: Value, change: str) -> Value:
    if value is None:
        return None
    return (-value if change == "-" else ~value if change == "~" else value) & MASK


def sources(o: tuple[str, ...]) -> list[Read]:
    """The operands that are read and no predicates."""
    return [operand(x) for x in o[1:] if not is_predicate(x)]


@cache
def is_register(text: str) -> bool:
    return REGISTER.fullmatch(text) is not None
