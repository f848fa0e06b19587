"""`tcomp tune` as people run it: killed, started again, twice at once, checked in CI, used by a build."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcomp.autotune import storage
from tests.cli.support import Tcomp, refused

TINY = ["--dim", "L=1", "-B", "1", "-T", "24", "--threads", "1"]
TUNE = ["tune", "gpt2", *TINY, "--ops", "attention.backward"]


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tcomp", *arguments], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished_trials(folder: Path) -> list[tuple[str, str]]:
    """(kind, values) of all that ended, and are not repetitions."""
    import optuna

    path = folder / "trials.sqlite3"
    if not path.is_file():
        return []
    kept = storage.open_storage(path)
    studies = [optuna.load_study(study_name=n, storage=kept) for n in optuna.get_all_study_names(kept)]
    every = [t for s in studies for t in s.trials if t.state.is_finished()]
    found = [(t.user_attrs.get("kind", ""), t.user_attrs.get("values", "")) for t in every]
    return [f for f in found if f[0] != "repeated"]


@pytest.mark.slow(seconds=12)
def test_a_killed_search_loses_at_most_the_running_trial(tmp_path: Path) -> None:
    command = [*TUNE, "--trials", "4", "--storage", "trials.sqlite3"]
    process = started(tmp_path, *command)
    end = time.monotonic() + 300
    while len(finished_trials(tmp_path)) < 3 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.5)  # the look itself takes the storage
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    with sqlite3.connect(tmp_path / "trials.sqlite3") as kept:
        assert kept.execute("pragma integrity_check").fetchall() == [("ok",)]
    before = finished_trials(tmp_path)
    assert len(before) >= 3
    again = started(tmp_path, *command)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    after = finished_trials(tmp_path)
    assert after[: len(before)] == before or sorted(before) == sorted(t for t in after if t in before)
    assert sum(kind == "killed" for kind, _ in after) <= 1
    points = [values for kind, values in after if kind != "killed"]
    assert len(points) == len(set(points)) == 5, "four and the default, none of them twice"
    assert (tmp_path / "gpt2.avx2.lock").exists() or list(tmp_path.glob("gpt2.*.lock"))


@pytest.mark.slow(seconds=15)
def test_two_processes_share_one_study(tmp_path: Path) -> None:
    command = [*TUNE, "--trials", "5", "--storage", "trials.sqlite3"]
    both = [started(tmp_path, *command, "--seed", str(i)) for i in range(2)]
    for p in both:
        out, _ = p.communicate(timeout=300)
        assert p.returncode == 0, out
    found = finished_trials(tmp_path)
    judged = [values for kind, values in found if kind in ("timed", "slow")]
    assert len(set(judged)) >= 4 and len(judged) - len(set(judged)) <= 1, "at most the last point is tried by both"
    assert len(list(tmp_path.glob("gpt2.*.lock"))) == 1


@pytest.mark.slow(seconds=14)
def test_a_build_uses_the_lockfile_and_says_what_is_stale(tcomp: Tcomp, tmp_path: Path) -> None:
    made = tcomp(*TUNE, "--trials", "1", "--storage", "trials.sqlite3")
    assert made.code == 0 and "measured" in made.out, made
    assert "a step takes" in made.out and "whole step" in made.out, "the final was within steps"
    (lock,) = tmp_path.glob("gpt2.*.lock")
    assert tcomp("tune", "--check", "--threads", "1").out.endswith(": 1 entries hold\n")
    text = lock.read_text()
    key = "BQ" if "BQ" in text else None
    chosen = text.replace("values = {}", 'values = { "BK" = 32, "BQ" = 32 }') if key is None else text
    lock.write_text(chosen)
    built = tcomp("build", "gpt2", *TINY)
    assert built.code == 0 and f"tuned       1 op instances by {lock}" in built.out, built
    assert built.error == ""
    lock.write_text(chosen.replace('"BQ" = ', '"BQ" = 7'))
    built = tcomp("build", "gpt2", *TINY)
    assert built.code == 0 and "1 of 1 entries in use here are stale" in built.error, built
    assert "is not among its choices" in built.error
    checked = tcomp("tune", "--check", "--threads", "1")
    assert checked.code == 1 and "stale: attention.backward" in checked.out
    assert "no lockfile" in tcomp("build", "gpt2", *TINY, "--lock", "none").out
    refused(tcomp("build", "gpt2", *TINY, "--lock", "absent.lock"), "absent.lock", "cannot read the lockfile")
    lock.write_text("format = 1\n[")
    refused(tcomp("build", "gpt2", *TINY), "not a lockfile", "tune again")
    refused(tcomp("tune", "--check"), "not a lockfile")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "soon"], ["--budget soon", "20m"]),
        (["--budget", "0s"], ["not a duration"]),
        (["--ops", "linaer"], ["no op of this step is named 'linaer'", "linear"]),
        (["--trials", "0"], ["trials = 0"]),
        (["--until-within", "much"], ["not a percentage"]),
        (["--check"], ["there is no lockfile", "tcomp tune gpt2"]),
        (["--cpu", "--gpu", "h100"], ["--cpu excludes --gpu"]),
        (["--ask", "--check"], ["--check and --ask exclude each other"]),
        (["--tell", "missing.jsonl"], ["--tell missing.jsonl: no such file"]),
        (["--out", "there"], ["--out is for reports", "tcomp tune report"]),
        (["--gpu", "h1000"], ["no description of a GPU 'h1000'"]),
        (["--storage", "text.txt"], ["text.txt", "rm text.txt"]),
        (["--device", "virtual"], ["takes no time", "--gpu h100"]),
        (["--lock", "/proc/none.lock"], ["/proc/none.lock: no lockfile can be written there", "another by --lock"]),
    ],
)
def test_bad_requests_are_refused(tcomp: Tcomp, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "text.txt").write_text("not a database " * 100)
    refused(tcomp("tune", "gpt2", *arguments), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt"]


def test_without_a_driver_tuning_is_not_sent_to_the_virtual_gpu(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch) -> None:
    from tcomp.runtime.cuda import gpus
    from tcomp.runtime.cuda.driver import WITHOUT_GPU, CudaError

    def missing() -> None:
        raise CudaError("NO_DRIVER", "no NVIDIA driver", f"install it, or {WITHOUT_GPU}")

    monkeypatch.setattr(gpus, "gpus", missing)
    result = tcomp("tune", "gpt2", "--device", "cuda")
    refused(result, "no NVIDIA driver", "install it, or leave --device out, or give --gpu h100")
    assert "virtual" not in result.error


def test_durations() -> None:
    from tcomp.cli.limits import parse_duration
    from tcomp.cli.tune import _age

    assert _age() > 0, "a budget counts from the start of the process"
    assert [parse_duration(t) for t in ("90s", "20m", "1h30m", "45", "0.5m")] == [90, 1200, 5400, 45, 30]


@pytest.mark.slow
def test_a_run_keeps_its_lockfile(tcomp: Tcomp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has the kernels it began with, wherever it is resumed and whatever is tuned meanwhile."""
    (tmp_path / "text.txt").write_text("some text\n" * 400)
    made = tcomp(*TUNE, "--trials", "1", "--storage", "trials.sqlite3")
    assert made.code == 0, made
    (lock,) = tmp_path.glob("gpt2.*.lock")
    run = [*TINY, "--sample", "0", "--eval-batches", "1", "--data", "text.txt"]
    begun = tcomp("train", *run, "--steps", "2", "--run", "run")
    assert begun.code == 0, begun
    assert (tmp_path / "run" / "tuning.lock").read_text() == lock.read_text()
    lock.write_text("format = 1\n[")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    resumed = tcomp("train", "--resume", str(tmp_path / "run"), "--steps", "3")
    assert resumed.code == 0, resumed
    assert not [p for p in elsewhere.iterdir() if p.name != "run"]


def test_ops_without_a_choice_are_said_to_have_none(tcomp: Tcomp) -> None:
    made = tcomp("tune", "gpt2", "--dim", "L=1", "-B", "1", "-T", "8", "--ops", "layernorm", "--trials", "1")
    assert made.code == 0 and "there is nothing to tune" in made.out and not made.error
