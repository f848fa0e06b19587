"""Each faulty text in diagnostics/ is refused with the words in the .expected file beside it.

TCOMP_UPDATE_GOLDENS=1 rewrites the expected files; read the difference before committing it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import library, load_text

HERE = Path(__file__).parent / "diagnostics"
CASES = sorted(HERE.glob("*.tc"))


def diagnostic(path: Path) -> str:
    with pytest.raises(TcError) as caught:
        load_text(path.read_text(), path.name)
    text = caught.value.render()
    for folder in (str(library().resolve()), str(library()), "models"):
        text = text.replace(folder + "/", "<library>/").replace(f"in {folder}\n", "in <library>\n")
    return text + "\n"


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_faulty_text_gets_its_diagnostic(path: Path, golden: Callable[[str, Path], None]) -> None:
    golden(diagnostic(path), path.with_suffix(".expected"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_every_diagnostic_points_into_its_file_and_offers_help(path: Path) -> None:
    with pytest.raises(TcError) as caught:
        load_text(path.read_text(), path.name)
    error = caught.value
    assert error.span.file == path.name
    assert 1 <= error.span.line <= len(path.read_text().splitlines())
    assert "^" in error.render()


def test_every_expected_file_has_its_text() -> None:
    assert {p.stem for p in HERE.glob("*.expected")} == {p.stem for p in CASES}
