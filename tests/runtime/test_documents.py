"""Small files from outside: every text is a value or a ValueError, every file a text or an OSError."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tcomp.errors import UserError
from tcomp.runtime import checkpoint
from tcomp.runtime.documents import LARGEST, check_regular, parse_json, parse_toml, read_small
from tcomp.runtime.evaluate import read_questions
from tcomp.runtime.run_folder import read_config
from tcomp.runtime.safetensors_file import read_header
from tcomp.runtime.token_file import open_token_file

DEEP = 200_000


@pytest.mark.parametrize(
    "text",
    ["", "\0", "[" * DEEP, '{"a":' * DEEP, "[" * 900 + "]" * 900, '{"a": ' + "9" * 6000 + "}", '{"a": "\\ud8'],
)
def test_no_json_is_a_fault(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "a", "a = " + "[" * DEEP, "a = " + "{a=" * DEEP, "a" + ".a" * 2000 + " = 1", "a = " + "9" * 6000,
        "a = 1\na = 2", "a = 2020-99-99", '"\\ud800" = 1',
    ],
)  # fmt: skip
def test_no_toml_is_a_fault(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_toml(text)


def test_sound_texts_are_read() -> None:
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_json("3") == 3
    assert parse_toml("a = 1\n[b.c]\nd = [[2]]\n") == {"a": 1, "b": {"c": {"d": [[2]]}}}


def test_only_regular_files_of_a_modest_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as f:
        f.truncate(LARGEST + 1)
    (tmp_path / "latin").write_bytes(b"\xff")
    for name, reason in (("pipe", "not a regular file"), ("large", "more than 64 MiB"), (".", "directory")):
        with pytest.raises(OSError, match=reason):
            read_small(tmp_path / name)
    with pytest.raises(OSError, match="more than 64 MiB"):
        read_small(Path("/dev/zero"), pipes=True)
    with pytest.raises(ValueError, match="utf-8"):
        read_small(tmp_path / "latin")
    check_regular(tmp_path / "large")


def test_a_pipe_in_a_file_s_place_is_refused(tmp_path: Path) -> None:
    """Nobody writes to it: opening it would wait for ever."""
    for name in ("run.json", "manifest.json", "tensors.safetensors", "train.bin"):
        os.mkfifo(tmp_path / name)
    for read in (
        lambda: read_config(tmp_path),
        lambda: checkpoint.verify(tmp_path),
        lambda: read_header(tmp_path / "tensors.safetensors"),
        lambda: open_token_file(tmp_path / "train.bin"),
    ):
        with pytest.raises(UserError, match="not a regular file"):
            read()


@pytest.mark.parametrize("text", ["[" * DEEP, '{"manifest": ' + "[" * 900 + "]" * 900 + ', "crc32": 0}'])
def test_nesting_without_end_is_damage(tmp_path: Path, text: str) -> None:
    for name in ("run.json", "manifest.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"run\.json: damaged: .*nested"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        checkpoint.verify(tmp_path)
    (tmp_path / "t.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(UserError, match=r"a damaged safetensors file: .*nested"):
        read_header(tmp_path / "t.safetensors")


@pytest.mark.parametrize("label", ["²", "9" * 5000, "-1", "2", ""])
def test_a_label_in_other_digits_is_no_number(tmp_path: Path, label: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"ctx": "a", "endings": ["b", "c"], "label": label}))
    with pytest.raises(UserError, match=r"q\.jsonl:1"):
        read_questions(path)


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"ctx": "\\ud800", "endings": ["b", "c"], "label": 0}')
    with pytest.raises(UserError, match=r"q\.jsonl:1: a text has half of a surrogate pair"):
        read_questions(path)
