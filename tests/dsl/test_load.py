"""Loading files: what has not changed is not read into a module twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.dsl import infer as infer_module
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text

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


def test_an_unchanged_text_and_what_it_imports_give_the_module_of_the_last_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part.tc").write_text(DOUBLE)
    first = load_text("import part\n")
    assert load_text("import part\n") is first and load_text("import part\n", "other.tc") is not first
    (tmp_path / "part.tc").write_text(DOUBLE.replace("double", "twice"))
    assert list(load_text("import part\n").ops) == ["twice"]


@pytest.mark.parametrize(
    ("calls", "last", "what"),
    [
        ("fn g{i}(x) = g{j}(x)\n", "fn g{i}(x) = x\nop f(X: f32[M]) -> Y: f32[M]:\n  Y[m] = g0(X[m])\n", "functions"),
        (
            "op g{i}(X: f32[M]) -> Y: f32[M]:\n  Y = g{j}(X)\n",
            "op g{i}(X: f32[M]) -> Y: f32[M]:\n  Y[m] = X[m]\n",
            "ops",
        ),
    ],
)
def test_calls_have_a_depth(calls: str, last: str, what: str) -> None:
    def text(n: int) -> str:
        return "".join(calls.format(i=i, j=i + 1) for i in range(n)) + last.format(i=n)

    load_text(text(90))
    with pytest.raises(TcError, match=f"'g0' calls {what} more than 100 levels deep"):
        load_text(text(200))


def test_an_op_of_several_texts_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same functions beside it; what was found is each caller's own."""
    monkeypatch.chdir(tmp_path)
    Path("h.tc").write_text("op f(X: f32[N]) -> Y: i32[N]:\n  Y[n] = g(X[n])\n")
    Path("g.tc").write_text("fn g(x) = i32(x)\n")
    looked: list[str] = []
    inner = infer_module._infer
    monkeypatch.setattr(infer_module, "_infer", lambda op, module: (looked.append(op.name), inner(op, module))[1])
    first, second = (load_text(f"import g\nimport h\n# {i}\n") for i in range(2))
    assert looked == ["f"] and first is not second
    found = infer_module.infer(first.ops["f"], first)
    found.ranges["m"] = found.ranges["n"]
    assert list(infer_module.infer(second.ops["f"], second).ranges) == ["n"]
    with pytest.raises(TcError, match="assigned to 'Y', which is i32"):
        load_text("fn g(x) = x\nimport h\n")
    assert looked[1:] == ["f"]
