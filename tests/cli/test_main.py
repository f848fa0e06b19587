"""The command line as a whole: help, usage errors, errors of the system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tcomp import __version__
from tcomp.__main__ import limit_blas, main as start
from tcomp.cli.display import displays
from tcomp.cli.main import spread_data
from tests.cli.support import TINY, Tcomp, refused


def test_help_lists_the_commands_and_each_gives_examples(tcomp: Tcomp) -> None:
    listing = tcomp("--help")
    assert listing.code == 0
    for command in ("train", "generate", "build", "plan", "show", "grad", "check", "fmt"):
        assert f" {command} " in listing.out
        one = tcomp(command, "--help")
        assert one.code == 0 and f"tcomp {command}" in one.out.split("Examples")[1]


def test_version(tcomp: Tcomp) -> None:
    assert tcomp("--version").out == f"tcomp {__version__}\n"


def test_usage_errors_name_the_option(tcomp: Tcomp) -> None:
    refused(tcomp("train", "--stepz", "3"), "--stepz")
    refused(tcomp("trian"), "trian")


@pytest.mark.parametrize("local", [0, 1])
def test_of_several_processes_one_says_what_is_wrong_with_a_command_line(
    local: int, tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind that any may fail, and say why."""
    place = {"RANK": local, "LOCAL_RANK": local, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    for line, word in (("train --stepz 3", "--stepz"), ("plan gpt2 -B 0", "batch = 0"), ("trian", "trian")):
        found = tcomp(*line.split())
        assert found.code == 2 and (word in found.error) == (local == 0) and not found.out
    assert bool(tcomp("train", "--help").out) == (local == 0)
    refused(tcomp("plan", "nosuch"), "nosuch: no such file")


def test_ctrl_c_around_the_command_line_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str]) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("tcomp.cli.main.spread_data", interrupted)
    with pytest.raises(SystemExit) as e:
        start()
    assert e.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_starting_the_command_line_does_not_import_the_heavy_libraries() -> None:
    program = "import tcomp.cli.main, sys; print({'torch', 'matplotlib', 'optuna', 'llvmlite'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_full_disk_under_the_cache_is_one_warning_and_the_command_goes_on(tmp_path: Path) -> None:
    """Said as a message, not as Python says where in the code a warning was given."""
    program = (
        "import errno, sys, tempfile\n"
        "def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "tempfile.mkstemp = full\n"
        "from tcomp.cli.main import main\n"
        "sys.argv = ['tcomp', 'plan', 'gpt2', '--config', 'tiny', '-B', '1', '-T', '8']\n"
        "main()"
    )
    given = {**os.environ, "TCOMP_CACHE": str(tmp_path / "cache")}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=given)
    assert found.returncode == 0, found.stderr
    lines = [x for x in found.stderr.splitlines() if "cannot be kept" in x]
    assert lines and all(x.startswith("warning: ") and x.endswith("No space left on device") for x in lines)
    assert ".py" not in found.stderr and "help: " in found.stderr


def test_data_takes_several_paths() -> None:
    given = ["train", "gpt2", "--data", "a", "b", "c", "--steps", "3", "--data", "d"]
    wanted = "train gpt2 --data a --data b --data c --steps 3 --data d"
    assert spread_data(given) == wanted.split()
    assert spread_data(["eval", "--data", "a", "b"]) == ["eval", "--data", "a", "--data", "b"]
    assert spread_data(["fmt", "--data", "a", "b"]) == ["fmt", "--data", "a", "b"]


def test_an_error_without_a_file_name_is_one_message(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tcomp.cli.common.build_step", full)
    result = tcomp("plan", "gpt2")
    refused(result)
    assert result.error == "error: No space left on device\n  help: free some disk space\n"


def test_a_limit_of_threads_is_one_message(tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("tcomp.runtime.cpu.team.threading.Thread.start", refuse)
    arguments = [*TINY, "--threads", "2", "--data", "a.txt", "--steps", "1"]
    Path("a.txt").write_text("some text " * 100)
    refused(tcomp("train", "gpt2", *arguments), "can't start new thread", "fewer --threads")


def test_one_thread_is_enough_to_train_and_bars_are_drawn_where_there_is_a_second(
    tcomp: Tcomp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    assert displays(Console(force_terminal=True)) and not displays(Console(force_terminal=False))
    monkeypatch.setattr("threading.Thread.start", refuse)
    assert not displays(Console(force_terminal=True))
    arguments = [*TINY, "--data", "a.txt", "--steps", "1"]
    Path("a.txt").write_text("some text " * 100)
    assert tcomp("train", "gpt2", *arguments, "--sample", "0").code == 0


@pytest.mark.parametrize("allowed", [0, 2])
def test_numpy_is_loaded_with_the_threads_that_may_be_started(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenBLAS ends a process by SIGINT that may not start one per processor."""
    started: list[object] = []

    def start(*_: object) -> None:
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(_)

    monkeypatch.setattr("_thread.start_new_thread", start)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")  # put back afterwards
    del os.environ["OPENBLAS_NUM_THREADS"]
    limit_blas()
    assert os.environ["OPENBLAS_NUM_THREADS"] == str(1 + allowed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_finds_no_room_is_one_message() -> None:
    with open("/dev/full", "w") as out:
        found = subprocess.run(
            [sys.executable, "-m", "tcomp", "grad", "ops/linear", "linear"],
            stdout=out, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (found.returncode, found.stderr) == (2, "error: No space left on device\n  help: free some disk space\n")


def test_an_interrupt_while_the_command_line_loads_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    found = subprocess.run(
        [sys.executable, "-m", "tcomp", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "interrupted\n")


def test_an_empty_name_is_not_the_working_folder(tcomp: Tcomp) -> None:
    refused(tcomp("train", "--data", ""), "--data: the name is empty")
    refused(tcomp("train", "--data", "a", ""), "--data: the name is empty")
    refused(tcomp("eval", "run", "--data", ""), "--data: the name is empty")


def test_streams_that_the_caller_has_closed_are_no_traceback() -> None:
    told = f"{sys.executable} -m tcomp grad ops/linear linear --nothing >&- <&-"
    found = subprocess.run(["sh", "-c", told], stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2 and "Traceback" not in found.stderr and "--nothing" in found.stderr
    found = subprocess.run(["sh", "-c", "exec " + told.replace(" --nothing", "") + " 2>&-"], check=False)
    assert found.returncode == 0


def test_what_a_code_generator_refuses_is_shown_at_its_line(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "own.tc").write_text(
        "op f(X: f32[M, K]) -> y: f32[M]:\n  y[m] = sum k: X[m, k]\n\n"
        "schedule f on gpu:\n  m -> grid(64)\n  k -> pipe(64, 30) / lane\n  stage X in shared at k by cp.async\n"
    )
    found = tcomp("show", "own.tc", "f", "--ptx", "--dim", "M=64", "--dim", "K=4096")
    refused(found, "own.tc:4:1: error: kernel 'f' needs ", "4 | schedule f on gpu: | ^^^", "help: take smaller tiles")
