"""Each instruction set level of this computer in turn."""

from __future__ import annotations

import pytest

from tests.tcomp.cpu.support import MACHINES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`machine`: every level, or those that the module names as ON."""
    if "machine" in metafunc.fixturenames:
        metafunc.parametrize("machine", getattr(metafunc.module, "ON", MACHINES), ids=lambda m: m.name)
