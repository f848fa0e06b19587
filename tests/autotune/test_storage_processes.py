"""Processes that make one storage file at the same moment, each with a cache folder of its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
from pathlib import Path

from tcomp.autotune import storage


def _open(folder: Path, number: int, together: multiprocessing.synchronize.Barrier) -> None:
    import optuna

    os.environ["TCOMP_CACHE"] = str(folder / f"cache{number}")
    together.wait(300)
    assert optuna.get_all_study_names(storage.open_storage(folder / "trials.sqlite3")) == []


def test_processes_with_caches_of_their_own_make_one_storage(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(3)
    processes = [spawn.Process(target=_open, args=(tmp_path, i, together)) for i in range(3)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
