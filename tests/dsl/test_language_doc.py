"""docs/language.md tells the truth: its examples check, its errors read as printed, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tcomp.dsl.ast import BUILTINS, DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import format_text
from tcomp.dsl.load import library, load_text
from tcomp.dsl.targets import CPU, CPU_TARGETS, GPU, GPU_TARGETS

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
