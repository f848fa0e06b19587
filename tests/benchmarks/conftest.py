"""Fixtures of the runtime's tests, for benchmarks that run steps."""

from pathlib import Path

import pytest

from tests.runtime.cuda.conftest import no_driver, virtual

__all__ = ["cache", "no_driver", "virtual"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TCOMP_CACHE", str(folder))
    return folder
