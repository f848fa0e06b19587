"""Loading files: what has not changed is not read into a module twice."""

from __future__ import annotations

from pathlib import Path

from tcomp.dsl.load import load

DOUBLE = "op double(X: f32[M]) -> Y: f32[M]:\n  Y[m] = X[m] * 2.0\n"


def test_unchanged_files_give_the_module_of_the_last_time(tmp_path: Path) -> None:
    part, whole = tmp_path / "part.tc", tmp_path / "whole.tc"
    part.write_text(DOUBLE)
    whole.write_text("import part\n")
    first = load(whole)
    assert load(whole) is first
    assert load(whole, "f32") is not first  # less may be read under one precision
    part.write_text(DOUBLE.replace("double", "twice"))
    assert list(load(whole).ops) == ["twice"]
    part.write_text(DOUBLE)
    assert load(whole) is first
