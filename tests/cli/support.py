"""What the tests of the command line share: an empty folder for each, `tcomp` run in this process, its results."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tcomp.cli.main import main

TINY = [
    "--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "16",
    "--threads", "1", "--eval-batches", "2", "--sample", "8",
]  # fmt: skip


@dataclass
class Result:
    code: int
    out: str
    error: str


OP = "op double(X: f32[M, N]) -> Y: f32[M, N]:\n  Y[m, n] = X[m, n] * 2.0\n"

Tcomp = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    """Exit code 2, the words in the message, no traceback, nothing else."""
    assert result.code == 2, result
    flat = re.sub(r"[\s│]+", " ", result.error)
    for word in words:
        assert word in flat, result.error
    assert "Traceback" not in result.error


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; compiled kernels are those of the whole test run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tcomp(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tcomp:
    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["tcomp", *arguments])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i % 7} abcabd\n" for i in range(700)))
    return str(path)
