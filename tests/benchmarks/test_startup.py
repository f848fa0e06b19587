"""The benchmark of starts: its stages are there, and begin and end where `tcomp train` does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("cache")
STARTUP = Path(__file__).resolve().parents[2] / "benchmarks" / "startup.py"


@pytest.mark.slow
def test_a_start_is_timed_by_stages(tmp_path: Path) -> None:
    command = [sys.executable, str(STARTUP), "--config", "tiny", "-B", "2", "-T", "16", "--rounds", "1", "--no-eager"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    rows = [line.split("|")[1:3] for line in found.splitlines() if line.startswith("| ") and ".." in line]
    seconds = {name.strip(): float(value) for name, value in rows if value.strip() != "median, s"}
    *stages, start, later = seconds
    assert stages == ["Python", "command line", "find or build the step", "libraries, data, kernels", "initialise",
                      "first step"]  # fmt: skip
    assert (start, later) == ("**start to end of step 1**", "a later step")
    assert sum(seconds[name] for name in stages) == pytest.approx(seconds[start], abs=0.005)
    assert 0 < seconds[later] < seconds[start]
