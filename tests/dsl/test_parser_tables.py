"""The parser's tables: those that come with the package, and, where these are another lark's, those kept in a folder:
made once, read afterwards, made again where they are damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lark
import pytest

from tcomp.dsl import parse, shipped_tables

GRAMMAR = parse.GRAMMAR.read_text(encoding="utf-8")
PROGRAM = """
import sys
from pathlib import Path
from tcomp.dsl import parse
parse.shipped = lambda grammar: None
parse.keep_tables(Path(sys.argv[1]))
print(parse.parse("op f(x: f32[N]) -> y: f32[N]:\\n  y[i] = 2.0 * x[i]\\n").items)
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


def test_the_package_has_the_tables_of_its_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lark, "__version__", json.loads(shipped_tables.FILE.read_text())["made for"]["lark"])
    assert shipped_tables.shipped(GRAMMAR) is not None, "grammar.lark has changed: make tables"


def test_tables_of_another_grammar_or_lark_or_damaged_ones_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole = tmp_path / "tables.json", shipped_tables.FILE.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert shipped_tables.shipped(GRAMMAR, file) is None
    file.write_text("[]")
    assert shipped_tables.shipped(GRAMMAR, file) is None
    assert shipped_tables.shipped(GRAMMAR, tmp_path / "missing.json") is None
    assert shipped_tables.shipped(GRAMMAR + "\n") is None
    for part in ("parser", "options", "ignore"):  # still JSON, and made for this grammar, but not as it was written
        file.write_text(whole.replace(f'"{part}":', f'"{part}_":'))
        assert shipped_tables.shipped(GRAMMAR, file) is None, part
    monkeypatch.setattr(lark, "__version__", "0.0")
    assert shipped_tables.shipped(GRAMMAR) is None


def test_tables_that_were_written_parse_as_the_made_ones_do(tmp_path: Path) -> None:
    made, text = parse.made_parser(GRAMMAR), (Path(parse.__file__).parents[1] / "models/gpt2.tc").read_text()
    shipped_tables.write(made, GRAMMAR, tmp_path / "tables.json")
    found = shipped_tables.shipped(GRAMMAR, tmp_path / "tables.json")
    assert found is not None
    builder = parse._builder()
    read = shipped_tables.from_tables(*found, postlex=parse.Layout(), transformer=builder)
    trees = []
    for parser in (made, read):
        builder.begin("gpt2.tc", text)
        trees.append(parser.parse(text, start="file"))
    assert trees[0] == trees[1]
