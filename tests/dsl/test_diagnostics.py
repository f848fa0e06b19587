"""Each faulty text in diagnostics/ is refused with the words in the .expected file beside it.

TCOMP_UPDATE_GOLDENS=1 rewrites the expected files; read the difference before committing it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import library, load_text

HERE = Path(__file__).parent / "diagnostics"
CASES = sorted(HERE.glob("*.tc"))


def shown(error: TcError) -> str:
    text = error.render()
    for folder in (str(library().resolve()), str(library()), "models"):
        text = text.replace(folder + "/", "<library>/").replace(f"in {folder}\n", "in <library>\n")
    return text + "\n"


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_faulty_text_gets_its_diagnostic(path: Path, golden: Callable[[str, Path], None]) -> None:
    """It points into the file and offers help."""
    with pytest.raises(TcError) as caught:
        load_text(path.read_text(), path.name)
    error = caught.value
    golden(shown(error), path.with_suffix(".expected"))
    assert error.span.file == path.name
    assert 1 <= error.span.line <= len(path.read_text().splitlines())
    assert "^" in error.render()
    assert error.hint


def test_every_expected_file_has_its_text() -> None:
    assert {p.stem for p in HERE.glob("*.expected")} == {p.stem for p in CASES}


SAMPLE = (library() / "ops" / "layernorm.tc").read_text()
PIECES = [
    *"()[],:;+-*/%<=>.#x2", "->", "**", "//", "+=", "==", "..", "\n", "\n  ", "\n    ", "2.5", "f32", "i32 ", " and ",
    " not ", " sum c: ", " where ", " by ", " in ", " op ", " schedule ", " kernel ", "select(", "exp(", "dX", " m ",
]  # fmt: skip
EDIT = st.tuples(st.integers(0, len(SAMPLE)), st.sampled_from([0, 0, 1, 3, 8]), st.sampled_from(["", *PIECES]))


@given(st.lists(EDIT, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_text_is_either_accepted_or_refused_with_a_place_and_a_remedy(edits: list[tuple[int, int, str]]) -> None:
    text = SAMPLE
    for at, removed, piece in edits:
        text = text[:at] + piece + text[at + removed :]
    try:
        load_text(text, "edited.tc")
    except TcError as error:
        assert error.span.file == "edited.tc"
        assert 1 <= error.span.line <= len(text.splitlines())
        assert error.hint
