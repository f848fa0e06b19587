"""What a model calls the sizes of its vocabulary and its context is its own affair: data are held against the bounds of
its inputs, and texts against what it requires of T."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.cli.common import load_module
from tcomp.cli.run_model import longest_text, vocabulary_of
from tcomp.cli.settings import TrainSettings
from tcomp.dsl.files import library
from tests.cli.support import Tcomp, refused


@pytest.fixture
def renamed(tmp_path: Path) -> str:
    """GPT-2 with other names for V and S."""
    text = (library() / "gpt2.tc").read_text()
    text = re.sub(r"\bV = V\b", "V = WORDS", re.sub(r"\bV\b(?! = V)", "WORDS", re.sub(r"\bS\b", "CONTEXT", text)))
    file = tmp_path / "renamed.tc"
    file.write_text(text)
    return str(file)


def test_texts_end_with_the_positions_of_the_model(renamed: str) -> None:
    settings = replace(TrainSettings(), model=renamed, length=16)
    module = load_module(renamed)
    assert [longest_text(module, settings, n) for n in (1, 127, 128, 129, 5000)] == [1, 127, 128, 128, 128]
    assert longest_text(load_module("gpt2"), TrainSettings(length=16), 5000) == 128


def test_words_of_data_are_below_what_the_inputs_say(renamed: str, tcomp: Tcomp, text: str) -> None:
    settings = replace(TrainSettings(), model=renamed, dims={"WORDS": 97})
    assert vocabulary_of(load_module(renamed), settings) == 97
    Path(text).write_text("abcabd\n" * 700)
    result = tcomp("train", renamed, "--dim", "WORDS=97", "-B", "1", "-T", "8", "--steps", "1", "--data", text)
    refused(result, "token 97 at position 0 is outside the model's vocabulary of 97", "256 words")


def test_words_of_data_have_a_bound(renamed: str, tcomp: Tcomp) -> None:
    file = Path(renamed)
    file.write_text(file.read_text().replace("targets: i32[B, T] below WORDS", "targets: i32[B, T]"))
    refused(tcomp("train", renamed, "-B", "1", "-T", "8", "--steps", "1"), "input 'targets'", "i32[B, T] below V")
