"""Files and names that are wrong, for every command that takes them: one message, exit code 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcomp.cli.common import load_module
from tcomp.cli.run_model import numbers_of
from tcomp.cli.settings import TrainSettings
from tcomp.dsl.errors import TcError
from tests.cli.support import OP, Tcomp, refused

BAD_TEXT = {
    "syntax": ("op double(X: f32[M]) -> Y: f32[M]\n  Y[m] = X[m]\n", "bad.tc:1:"),
    "unknown name": (OP.replace("X[m, n]", "Z[m, n]"), "bad.tc:2:13: error:"),
    "shape mismatch": (OP.replace("X[m, n]", "X[m]"), "bad.tc:2:13: error:"),
    "unknown dtype": (OP.replace("X: f32", "X: f33"), "bad.tc:1:"),
    "wrong dtype": (
        "op pick(X: f32[M], i: f32[M]) -> Y: f32[M]:\n  Y[m] = X[i[m]]\n",
        "bad.tc:2:",
    ),
    "schedule of no op": (OP + "schedule tripel on cpu:\n  m -> core\n", "bad.tc:3:"),
    "missing schedule target": (OP + "schedule double on toaster:\n  m -> core\n", "bad.tc:3:"),
    "missing import": ("import ops.nothing\n", "bad.tc:1:"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_is_shown_with_its_place(case: str, tcomp: Tcomp, tmp_path: Path) -> None:
    text, place = BAD_TEXT[case]
    (tmp_path / "bad.tc").write_text(text)
    result = tcomp("check", "bad.tc", "--parse-only")
    refused(result, place)
    assert "^" in result.error, "no caret"


def test_files_and_names_that_do_not_exist(tcomp: Tcomp) -> None:
    refused(tcomp("plan", "gpt22"), "gpt22: no such file", "did you mean 'gpt2'?")
    refused(tcomp("plan", "gpt2", "--config", "125M"), "125M", "124M")
    refused(tcomp("plan", "ops/linear"), "declares no model")
    refused(tcomp("grad", "ops/linear", "linaer"), "no op 'linaer'", "did you mean 'linear'?")
    refused(tcomp("show", "gpt2"), "tell what to show")
    refused(tcomp("show", "ops/linear", "linear", "--tile"), "needs its dimensions", "--dim M=64")
    refused(tcomp("plan", "gpt2", "--dim", "Q=3"), "Q")
    refused(tcomp("plan", "gpt2", "--dim", "L"), "not NAME=NUMBER")
    refused(tcomp("plan", "gpt2", "--memory", "lots"), "not an amount of memory")


BAD_FILES = {
    "missing.tc": ("missing.tc: no such file", "tcomp's own files"),
    "syntax.tc": ("syntax.tc:1:14: error:",),
    "binary.tc": ("binary.tc is not UTF-8 text",),
    ".": ("a folder, not a .tc file",),
    "/dev/null": ("/dev/null: a pipe or a device, not a .tc file", "tcomp's own"),
    "": ("the file's name is empty",),
}


@pytest.mark.parametrize("file", BAD_FILES)
@pytest.mark.parametrize("command", ["train", "build", "plan", "show --ast", "grad", "check"])
def test_bad_files(command: str, file: str, tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "syntax.tc").write_text("op f(X: f32[M) -> Y:\n")
    (tmp_path / "binary.tc").write_bytes(b"\xff\xfe")
    name, *flags = command.split()
    refused(tcomp(name, file, *(["f"] if name == "grad" else flags)), *BAD_FILES[file])


def test_fmt_of_bad_files(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "binary.tc").write_bytes(b"\xff\xfe")
    refused(tcomp("fmt", "missing.tc"), "missing.tc: cannot read it: No such file")
    refused(tcomp("fmt", "binary.tc"), "binary.tc: cannot read it")


@pytest.mark.parametrize("command", ["train", "build gpt2", "plan gpt2", "show gpt2 --graph"])
def test_unknown_configs(command: str, tcomp: Tcomp) -> None:
    refused(tcomp(*command.split(), "--config", "125M"), "no config '125M'", "124M")


@pytest.mark.parametrize(
    "command", ["show gpt2 NAME --ast", "show gpt2 NAME --tile", "grad gpt2 NAME", "check gpt2 NAME"]
)
def test_unknown_ops(command: str, tcomp: Tcomp) -> None:
    refused(tcomp(*command.replace("NAME", "linaer").split()), "'linaer'", "did you mean 'linear'?")


@pytest.mark.parametrize("command", ["train", "build gpt2", "roofline gpt2"])
def test_lockfiles_that_are_none(command: str, tcomp: Tcomp, tmp_path: Path) -> None:
    """Nothing reads a device for ever, or waits for a pipe's writer."""
    os.mkfifo(tmp_path / "pipe.lock")
    (tmp_path / "deep.lock").write_text("a = " + "[" * 100_000)
    (tmp_path / "latin.lock").write_bytes(b"\xff")
    for name, words in {
        "/dev/zero": "not a regular file", "pipe.lock": "not a regular file", "missing.lock": "No such file",
        ".": "Is a directory", "deep.lock": "nested deeper", "latin.lock": "utf-8",
    }.items():  # fmt: skip
        refused(tcomp(*command.split(), "--lock", name), f"{name}: ", words)


def test_what_a_model_requires_of_a_saved_run_is_quoted() -> None:
    settings = TrainSettings(length=4096)
    with pytest.raises(TcError, match=r"\d+ \|   require T <= S\n *\| *\^{6}"):
        numbers_of(load_module(settings.model), settings)


def test_a_choice_without_a_value_is_quoted_by_what_only_looks_at_choices(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "small.tc").write_text(
        "op twice(X: real[M, N], s: real[N]) -> Y: real[M, N]:\n  Y[m, n] = X[m, n] * s[n]\n"
        "op total(X: real[M, N]) -> t: f32[]:\n  t = sum m, n: X[m, n]\n"
        "schedule twice on cpu:\n  tune A = 8 // (M - 8)\n  m -> core(A)\n"
        "model small(B):\n  config tiny: C = 8\n  param w: real[C] = ones\n  param x: real[B, C] = ones\n"
        "  input t: i32[B] below 3\n  forward:\n    y = twice(x, w)\n    loss = total(y)\n  loss loss\n"
    )
    refused(tcomp("tune", "small.tc", "-B", "8", "--trials", "1"), "6:12: error: 8 // 0 has no value", "6 | tune A = 8")
