"""docs/language.md tells the truth: its examples check, its errors read as printed, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tcomp.dsl.ast import BUILTINS, DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import format_text
from tcomp.dsl.infer import dimensions
from tcomp.dsl.load import library, load_text
from tcomp.dsl.storage import bound
from tcomp.dsl.targets import CPU, CPU_TARGETS, GPU, GPU_TARGETS
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine, machine_for_target
from tcomp.schedule.lower import lower

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text()
GOOD = re.findall(r"^```tc\n(.*?)^```$", PAGE, re.S | re.M)
BAD = re.findall(r"^```tc-error\n(.*?)^```\n```text\n(.*?)^```$", PAGE, re.S | re.M)


def title(text: str) -> str:
    return re.sub(
        r"\W+", "_", next(line for line in text.splitlines() if line.startswith(("op", "fn", "model", "monoid")))
    )[:40]


def test_every_fence_is_run() -> None:
    assert len(GOOD) > 15 and len(BAD) > 5
    assert PAGE.count("```tc\n") == len(GOOD)
    assert PAGE.count("```tc-error\n") == len(BAD)


@pytest.mark.parametrize("text", GOOD, ids=title)
def test_an_example_checks_and_is_formatted(text: str) -> None:
    load_text(text, "example.tc")
    assert format_text(text) == text


def machine_of(target: str) -> CpuMachine | GpuMachine:
    if target.startswith("cpu"):
        name, lanes = target.removeprefix("cpu.").replace("cpu", "avx2"), 8 if target != "cpu.avx512bf16" else 16
        return CpuMachine(name, (), lanes, 32, 48 << 10, 1 << 20, 32 << 20, 2)
    return machine_for_target("sm_90a" if target == "gpu" else target)


@pytest.mark.parametrize("text", [t for t in GOOD if "\nschedule " in t], ids=title)
def test_a_schedule_of_an_example_can_be_lowered(text: str) -> None:
    """At 256 of everything: the page shows no line that looks well and means nothing."""
    module = load_text(text, "example.tc")
    here = [o for o in module.ops.values() if o.span.file == "example.tc"]
    for op in here:
        for target in [t for name, t in module.schedules if name == op.name]:
            machine = machine_of(target)
            assert target in machine.targets
            lower(bound(op, DType.F32), module, dict.fromkeys(dimensions(op), 256), machine)


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[title(t) for t, _ in BAD])
def test_a_faulty_example_gets_the_message_shown(text: str, expected: str) -> None:
    with pytest.raises(TcError) as caught:
        load_text(text, "example.tc")
    found = caught.value.render()
    for folder in (str(library().resolve()), str(library()), "models"):
        found = found.replace(folder + "/", "<library>/")
    assert found + "\n" == expected


@pytest.mark.parametrize(
    "word",
    [
        *BUILTINS, *(d.value for d in DType), *CPU_TARGETS, *GPU_TARGETS, *CPU.levels, *GPU.levels,
        *CPU.directives, *GPU.directives, *CPU.facts, *GPU.facts, *CPU.flags,
    ],
)  # fmt: skip
def test_every_word_of_the_language_is_on_the_page(word: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.S | re.M)
    code = " ".join(re.findall(r"`([^`]+)`", prose))
    assert re.search(rf"(?<![\w.]){re.escape(word)}(?![\w.])", code), f"'{word}' is not explained"
