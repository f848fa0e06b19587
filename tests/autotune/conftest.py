"""Every test works in an empty folder of its own; `tcomp` runs the command line in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tcomp.cli.main import main
from tests.cli.support import Result, Tcomp


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; compiled kernels are shared between the tests of a session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TCOMP_CACHE", str(tmp_path_factory.getbasetemp() / "tcomp-cache"))
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
