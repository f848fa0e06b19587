"""TCOMP_UPDATE_GOLDENS=1 rewrites the expected diagnostics beside their .tc files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def golden() -> object:
    """Compare a text with a file; rewrite the file instead when goldens are updated."""

    def compare(found: str, path: Path) -> None:
        if os.environ.get("TCOMP_UPDATE_GOLDENS"):
            path.write_text(found)
        assert path.exists(), f"{path.name} is missing: run with TCOMP_UPDATE_GOLDENS=1 and read it"
        assert found == path.read_text()

    return compare
