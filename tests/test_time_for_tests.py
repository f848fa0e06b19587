"""A run of the slow tests that must end by some time says what it left out (tests/conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILE = "tests/test_docs.py"


def test_what_there_is_no_time_for_is_named() -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", FILE, "-k", "first_example"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"TESTS_UNTIL": "1", "TESTS_TURN": "7"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"NOT RUN, out of time: 1 tests: {FILE} (1)" in done.stdout, done.stdout
    assert "TESTS_TURN=7 chose the cases" in done.stdout, done.stdout
