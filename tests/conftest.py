"""What holds for every test: where compiled kernels are kept, how many threads the references have, and what hypothesis
looks for.

Hypothesis looks for new examples in a developer's run and repeats the same ones in CI.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

# Tests run beside each other, one process for each core: threads of PyTorch's and NumPy's own would wait for cores that
# others have, spinning (two processes of two threads on two cores took several times as long). Before either is loaded.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Compilers make trees by the million and few cycles: looking for those as often as usual takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)

settings.register_profile("repeatable", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first (`slow(seconds=30)`, of a processor), so that in the end no process waits for another."""

    def seconds(item: pytest.Item) -> float:
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("seconds", 0.0) if mark is not None else 0.0

    items.sort(key=seconds, reverse=True)


@pytest.fixture(scope="session", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of a test run, one for all of its processes; never the user's own."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    folder.mkdir(exist_ok=True)
    os.environ["TCOMP_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def objects(kernels: Path) -> Path:
    """The folder of the test run's compiled kernels: a kernel that several tests have is compiled once."""
    return kernels / "kernels"
