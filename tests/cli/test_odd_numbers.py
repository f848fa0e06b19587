"""Every option of every command that takes a number refuses what is none, or out of range, in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcomp.cli.main import COMMANDS, command_line
from tests.cli.support import Tcomp, refused

SMALL = ["gpt2", "--config", "tiny", "-B", "1", "-T", "8"]
BASE = {
    "train": [*SMALL, "--run", "r", "--steps", "1"], "generate": ["r"], "eval": ["r"], "build": SMALL, "plan": SMALL,
    "show": SMALL, "check": ["ops/layernorm.tc"], "tune": [*SMALL, "--lock", "l.lock"],
    "bench": [*SMALL, "--against", "none"], "roofline": SMALL, "vgpu": ["k.ptx"],
    "data": ["a.txt", "--out", "prepared"],
}  # fmt: skip
INSIDE = {"vgpu": "run", "data": "prepare"}
ANY = {"vgpu --show"}
"""What takes every whole number."""
SLOW = {"train --lr"}
"""What is held to the model's own values, which is built for it."""


def numeric(command: str) -> list[str]:
    """The command's flags that take a number."""
    found: Any = command_line(command)
    found = found.commands[command]
    found = found.commands[INSIDE[command]] if command in INSIDE else found
    options = [p for p in found.params if p.param_type_name == "option" and not p.is_flag]
    return [p.opts[0] for p in options if p.type.name in ("int", "integer", "float")]


NUMBERS = [(command, flag) for command in COMMANDS if command in BASE for flag in numeric(command)]


def test_most_commands_take_numbers() -> None:
    assert len(NUMBERS) > 40 and {command for command, _ in NUMBERS} == set(BASE)


@pytest.mark.parametrize(
    ("command", "flag"),
    [pytest.param(c, f, marks=[pytest.mark.slow] if f"{c} {f}" in SLOW else [], id=f"{c} {f}") for c, f in NUMBERS],
)
def test_odd_numbers(tcomp: Tcomp, command: str, flag: str) -> None:
    Path("k.ptx").write_text(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { ret; }\n")
    Path("a.txt").write_text("some text")
    there = set(Path().iterdir())
    inside = [INSIDE[command]] if command in INSIDE else []
    odd = ["", "abc", "nan", "inf", "-inf", "1e99", "9" * 40, "-1"]
    for value in odd[:-2] if f"{command} {flag}" in ANY else odd:
        refused(tcomp(command, *inside, *BASE[command], flag, value))
        assert set(Path().iterdir()) == there, value
