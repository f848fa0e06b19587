"""Processes that make one storage file at the same moment, each with a cache folder of its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import threading
from pathlib import Path

from tcomp.autotune import storage
from tcomp.autotune.guard import guarded
from tcomp.autotune.instances import op_hash, schedule_hash
from tcomp.autotune.judge import Job
from tests.autotune.support import scale


def _open(folder: Path, number: int, together: multiprocessing.synchronize.Barrier) -> None:
    import optuna

    os.environ["TCOMP_CACHE"] = str(folder / f"cache{number}")
    together.wait(300)
    assert optuna.get_all_study_names(storage.open_storage(folder / "trials.sqlite3")) == []


def test_processes_with_caches_of_their_own_make_one_storage(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(2)
    processes = [spawn.Process(target=_open, args=(tmp_path, i, together)) for i in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    assert [p.exitcode for p in processes] == [0, 0]


def test_one_process_at_a_time_is_given_a_trial(tmp_path: Path) -> None:
    """Two that ask at the same moment would be given the same waiting trial."""
    module, instance, space = scale()
    hashes = op_hash(instance.op, module), schedule_hash(module.schedules["scale", "cpu"])
    job = Job(instance, instance.key, space, 0, *hashes, 1e-3)
    study = storage.open_study(storage.open_storage(tmp_path / "trials.sqlite3"), job, "avx2", "measured", 0)
    asking = threading.Thread(target=storage.ask, args=(study, space))
    with guarded(tmp_path / "trials.sqlite3"):
        asking.start()
        asking.join(0.3)
        assert asking.is_alive() and not study.get_trials()
    asking.join(30)
    assert len(study.get_trials()) == 1
