"""Each instruction set level of this computer in turn, and a folder for what is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.machine.cpu import CpuMachine
from tests.tcomp.cpu.support import MACHINES


@pytest.fixture(params=MACHINES, ids=lambda m: m.name)
def machine(request: pytest.FixtureRequest) -> CpuMachine:
    return request.param


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")
