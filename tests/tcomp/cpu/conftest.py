"""Each instruction set level of this computer in turn."""

from __future__ import annotations

import pytest

from tests.tcomp.cpu.support import MACHINES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`machine`: every level, or those that the module names as ON, unless the test names its own."""
    if "machine" in metafunc.fixturenames and not any(map(_names_machines, metafunc.definition.iter_markers())):
        metafunc.parametrize("machine", getattr(metafunc.module, "ON", MACHINES), ids=lambda m: m.name)


def _names_machines(mark: pytest.Mark) -> bool:
    return mark.name == "parametrize" and "machine" in (
        mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
    )
