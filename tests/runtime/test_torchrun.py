"""`tcomp train` under torchrun: real processes that train together, are stopped, go on, and fail together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tcomp.errors import UserError
from tcomp.runtime.distributed.group import Group
from tcomp.runtime.distributed.place import Place

pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.slow

PATIENCE = 240.0
STEPS = 30
ARGUMENTS = [
    "--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "16", "--eval-batches", "2", "--sample", "0",
    "--save-every", "10", "--eval-every", "20", "--threads", "1",
]  # fmt: skip


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """Two ranks of a command."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port())]
    return subprocess.Popen(
        [*launcher, "-m", *command], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def apart(folder: Path, *command: str) -> list[subprocess.Popen[str]]:
    """The same without torchrun, which loads torch once more. RANK in a word stands for the rank."""
    own = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *(word.replace("RANK", rank) for word in command)], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **own, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip


def ended(ranks: list[subprocess.Popen[str]]) -> str:
    """What ranks said that end well."""
    said = "".join(rank.communicate(timeout=PATIENCE)[0] for rank in ranks)
    assert not any(rank.returncode for rank in ranks), said
    return said


def port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def begun(running: subprocess.Popen[str], run: Path, lines: int) -> None:
    """Wait until a run has done some steps."""
    deadline = time.monotonic() + PATIENCE
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < lines:
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()[0]
        time.sleep(0.05)


def tensors(run: Path) -> bytes:
    return (run / "checkpoints" / f"step-{STEPS:06d}" / "tensors.safetensors").read_bytes()


@pytest.mark.slow(seconds=20)
def test_a_run_that_was_stopped_ends_as_one_that_was_not_and_zero_1_as_plain(tmp_path: Path, text: Path) -> None:
    train = ["tcomp", "train", *ARGUMENTS, "--data", str(text)]
    said = ended(apart(tmp_path, *train, "--steps", str(STEPS), "--run-folder", "whole"))
    assert said.count("2 ranks") == 1 and said.count("validation loss") == 2, "one rank speaks"
    total = ["--hyper", f"total={STEPS}", "--hyper", f"warmup={STEPS // 10}"]  # the schedule of the whole run
    parts = start(
        tmp_path, *train, *total, "--steps", "4000", "--zero", "1", "--run-folder", "parts", "--save-every", "0"
    )
    begun(parts, tmp_path / "parts", 3)
    parts.send_signal(signal.SIGINT)
    said, _ = parts.communicate(timeout=PATIENCE)
    assert said.count("stopped at step") == 1, said
    (saved,) = (tmp_path / "parts" / "checkpoints").iterdir()
    if int(saved.name.removeprefix("step-")) < STEPS:  # (on a machine that is too busy it is beyond)
        said = ended(apart(tmp_path, "tcomp", "train", "--resume", "parts", "--steps", str(STEPS)))
        assert "warning: " not in said.partition("gpt2 tiny")[2], said
        assert tensors(tmp_path / "parts") == tensors(tmp_path / "whole")


@pytest.mark.slow(seconds=15)
def test_virtual_gpus_exchange_what_cpus_do(tmp_path: Path, text: Path) -> None:
    train = ["tcomp", "train", "--dim", "L=1", "--dim", "H=1", "--dim", "C=8", "-B", "1", "-T", "8", "--sample", "0"]
    train += ["--eval-batches", "1", "--steps", "2", "--data", str(text)]
    runs = [apart(tmp_path, *train, "--zero", "1", "--run-folder", d, "--device", d) for d in ("cpu", "virtual")]
    for ranks in runs:
        ended(ranks)
    cpu, virtual = ([json.loads(x) for x in (tmp_path / d / "metrics.jsonl").open()] for d in ("cpu", "virtual"))
    assert len(cpu) == len(virtual) == 3
    for a, b in zip(cpu, virtual, strict=True):
        for name in {"loss", "norm", "validation_loss"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=1e-5)


@pytest.mark.slow(seconds=12)
def test_ranks_that_differ_or_lose_one_end_with_one_message(tmp_path: Path, text: Path) -> None:
    train = ["tcomp", "train", *ARGUMENTS, "--data", str(text)]
    others = apart(tmp_path, *train, "--run-folder", "other", "--seed", "1RANK")
    said = "".join(rank.communicate(timeout=PATIENCE)[0] for rank in others)
    assert all(rank.returncode for rank in others) and said.count("error: ") == 1, said
    assert "error: rank 1 and rank 0 do not have the same settings, seed" in said
    assert not (tmp_path / "other").exists()
    killed = start(tmp_path, *train, "--run-folder", "killed", "--steps", "100000")
    begun(killed, tmp_path / "killed", 3)
    ranks = sorted(children(killed.pid))
    os.kill(ranks[-1], signal.SIGKILL)
    before = time.monotonic()
    said, _ = killed.communicate(timeout=PATIENCE)
    assert killed.returncode and time.monotonic() - before < 60
    assert said.count("error: rank 0 has lost another rank") == 1, said


def test_ranks_that_are_started_again_do_not_hear_what_was_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    store = dist.HashStore()
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    groups = []
    for attempt in ("0", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        groups.append(Group(Place(len(groups) % 2, 2, 0, 2), timedelta(seconds=0.1)))
    assert groups[0].of_first("run", "a") == "a" == groups[1].of_first("run", "")
    assert groups[0].fails_first(UserError("no", "no")) and groups[2].fails_first(UserError("no", "no"))


def children(process: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
