"""`tcomp build` for the CPU: the folder it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.cli.build import write_folder
from tcomp.errors import UserError
from tests.cli.support import TINY, Tcomp, refused


def test_build_leaves_every_stage_in_a_folder(tcomp: Tcomp, tmp_path: Path) -> None:
    sizes = TINY[: TINY.index("--eval-batches")]
    result = tcomp("build", "models/gpt2.tc", *sizes, "--out", "built")
    assert result.code == 0, result.error
    names = {p.name for p in (tmp_path / "built").iterdir()}
    assert names == {
        "ast.txt", "graph.txt", "grad.tc", "schedules.tc", "tile.txt", "llvm", "asm", "plan.txt",
        "launches.txt", "summary.txt",
    }  # fmt: skip
    assert "kernels" in result.out and "lower bound" in result.out


def test_only_a_build_folder_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "b", {"summary.txt": "1", "llvm/old.ll": ""})
    write_folder(tmp_path / "b", {"summary.txt": "2"})
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["summary.txt"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="not a build folder"):
        write_folder(tmp_path / "mine", {"summary.txt": "3"})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["precious.txt"]


def test_what_is_in_the_way_is_told_before_anything_is_built(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcomp.cli.common.build_step", lambda *_, **__: pytest.fail("built"))
    for folder, flags in (("build/gpt2-tiny", []), ("mine", ["--out", "mine"])):
        Path(folder).mkdir(parents=True)
        Path(folder, "precious.txt").write_text("x")
        refused(tcomp("build", "gpt2", *flags), f"{folder}: exists and is not a build folder", "another --out")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_built(
    tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcomp.cli.common.build_step", lambda *_, **__: pytest.fail("built"))
    Path("file").write_text("x")
    for folder in ("file/below", "file/far/below", "x" * 300, "/proc/none"):
        result = tcomp("build", "gpt2", "--out", folder)
        refused(result, f"{folder}: cannot write the build folder: ", "another by --out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ops_that_no_schedule_is_written_for_are_named(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "own.tc").write_text(
        "import ops.crossentropy\n\nop twice(X: real[N], w: real[N]) -> Y: real[N]:\n  Y[n] = 2.0 * X[n] * w[n]\n\n"
        "schedule twice on cpu:\n  n -> core / vec\n\n"
        "model own(N):\n  config one: C = 1\n  param w: real[N] = ones\n  input x: real[N]\n"
        "  forward:\n    y = twice(x, w)\n    loss = mean(y)\n  loss loss\n"
    )
    result = tcomp("build", "own.tc", "--dim", "N=8", "--threads", "1")
    assert "unscheduled mean.backward, twice.backward (the default" in result.out, result
