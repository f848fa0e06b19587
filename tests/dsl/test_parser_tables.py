"""The parser's tables kept in a folder: made once, read afterwards, made again where they are damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from tcomp.dsl.parse import keep_tables, parse
keep_tables(Path(sys.argv[1]))
print(parse("op f(x: f32[N]) -> y: f32[N]:\\n  y[i] = 2.0 * x[i]\\n").items)
"""


def run(folder: Path) -> str:
    """What a fresh process parses with tables from the folder."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=True)
    assert not result.stderr
    return result.stdout


def test_tables_are_kept_used_and_repaired(tmp_path: Path) -> None:
    first = run(tmp_path)
    (kept,) = tmp_path.iterdir()
    whole, made = kept.read_bytes(), kept.stat().st_mtime_ns
    assert run(tmp_path) == first
    assert (kept.read_bytes(), kept.stat().st_mtime_ns) == (whole, made), "made again"
    kept.write_bytes(whole[: len(whole) // 2])
    assert run(tmp_path) == first
    kept.write_bytes(b"nothing of the kind")
    assert run(tmp_path) == first
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


def test_a_folder_that_is_gone_costs_nothing_but_time(tmp_path: Path) -> None:
    assert "f" in run(tmp_path / "missing")


def test_a_folder_whose_name_is_no_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "\udcff"
    folder.mkdir()
    assert run(folder) == run(folder) and len(list(folder.iterdir())) == 1
