"""What holds for every test: where compiled kernels are kept, how many threads the references have, and what hypothesis
looks for.

Hypothesis looks for new examples in a developer's run and repeats the same ones in CI. Of slow tests with many cases a
run has a part, another with each commit (turns.py).

TESTS_UNTIL (seconds since 1970) is when the slow tests must be over: one that would begin later, or take longer by its
mark, is skipped, and the run's last lines name how many those are, and of which files. Which files come first changes
from run to run then, so a machine that is too slow for all of them has run all of them after some runs.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import turns

# Once for all processes of a run, which must have the same tests.
os.environ["TESTS_TURN"] = turns.turn()

# Tests run beside each other, one process for each core: threads of PyTorch's and NumPy's own would wait for cores that
# others have, spinning (two processes of two threads on two cores took several times as long). Before either is loaded.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Compilers make trees by the million and few cycles: looking for those as often as usual takes a fifth of the time.
gc.set_threshold(1_000_000, 10, 100)

settings.register_profile("repeatable", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("repeatable")


UNTIL = float(os.environ.get("TESTS_UNTIL", "inf"))
NOT_RUN = "there is no time left for it"


def seconds(item: pytest.Item) -> float:
    """What a test says that it takes (`slow(seconds=30)`, of a processor)."""
    mark = item.get_closest_marker("slow")
    return mark.kwargs.get("seconds", 0.0) if mark is not None else 0.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the cases that other runs have (turns.py). The longest tests first, so that in the end no process
    waits for another; files in another order each time where there may not be time for all."""
    if left := turns.left_out(config, items):
        config.hook.pytest_deselected(items=left)
        without = set(left)
        items[:] = [item for item in items if item not in without]
    if "TESTS_UNTIL" in os.environ:
        files = sorted({item.nodeid.partition("::")[0] for item in items})
        random.Random(UNTIL).shuffle(files)
        place = {file: i for i, file in enumerate(files)}
        items.sort(key=lambda item: place[item.nodeid.partition("::")[0]])
    items.sort(key=seconds, reverse=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out slow tests for which there is no time."""
    if item.get_closest_marker("slow") is not None and time.time() + seconds(item) > UNTIL:
        pytest.skip(NOT_RUN)


def pytest_collection_finish() -> None:
    """What is loaded and collected by now stays to the end: cycles are looked for in what comes after it."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """At the end pytest looks for cycles five times, among millions of objects: these are left out."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How cases were chosen, and how many tests had no time, by file."""
    if terminalreporter.config.option.markexpr != "not slow":
        terminalreporter.write_line(f"TESTS_TURN={turns.turn()} chose the cases that are run in turns (tests/turns.py)")
    skipped = terminalreporter.stats.get("skipped", [])
    late = Counter(r.nodeid.partition("::")[0] for r in skipped if NOT_RUN in str(r.longrepr))
    if late:
        names = ", ".join(f"{file} ({n})" for file, n in sorted(late.items()))
        terminalreporter.write_line(f"NOT RUN, out of time: {late.total()} tests: {names}")


@pytest.fixture(scope="session", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of a test run, one for all of its processes; never the user's own."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    folder.mkdir(exist_ok=True)
    os.environ["TCOMP_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiler_in_memory() -> Iterator[None]:
    """A model's executor gives back the pages of LLVM's library, which the next test would have to map again."""
    from tcomp.runtime.cpu import executor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "release_pages", lambda library: 0)
        yield


@pytest.fixture(scope="session")
def objects(kernels: Path) -> Path:
    """The folder of the test run's compiled kernels: a kernel that several tests have is compiled once."""
    return kernels / "kernels"
