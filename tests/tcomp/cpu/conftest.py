"""Each instruction set level of this computer in turn."""

from __future__ import annotations

import pytest

from tcomp.machine.cpu import CpuMachine
from tests.tcomp.cpu.support import MACHINES


@pytest.fixture(params=MACHINES, ids=lambda m: m.name)
def machine(request: pytest.FixtureRequest) -> CpuMachine:
    return request.param
