"""`torchrun -m tcomp train --device cuda`, with the virtual GPU behind the real cuda-python: ranks are stopped, go on,
and fail together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.test_torchrun import PATIENCE, begun, children, port

pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.slow

STEPS = 3
TRAIN = [
    "tcomp", "train", "--dim", "L=1", "--dim", "H=1", "--dim", "C=8", "-B", "1", "-T", "8", "--sample", "0",
    "--eval-batches", "1", "--hyper", f"total={STEPS}", "--hyper", "warmup=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def shim() -> str:
    """The folder of a libcuda.so.1 that is the virtual GPU's."""
    done = subprocess.run(
        [sys.executable, "-m", "tcomp.runtime.vgpu.shim"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(done.stderr)
    return done.stdout.strip()


def start(folder: Path, shim: str, *arguments: str, gpus: int = 2) -> subprocess.Popen[str]:
    """Two ranks of a command on a computer with so many GPUs, whose findings are faults."""
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port()), "-m"]
    virtual = {"TCOMP_VGPU_MACHINE": "h100", "TCOMP_VGPU_DEVICES": str(gpus), "TCOMP_VGPU_STRICT": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *arguments],
        cwd=folder, env={**os.environ, "LD_LIBRARY_PATH": shim, **virtual}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def said(running: subprocess.Popen[str], code: int = 0) -> str:
    text, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == code, text
    return text


@pytest.mark.slow(seconds=13)
def test_ranks_on_gpus_that_are_stopped_go_on(tmp_path: Path, text: Path, shim: str) -> None:
    train = [*TRAIN, "--data", str(text), "--device", "cuda"]
    parts = start(tmp_path, shim, *train, "--steps", "4000", "--run-folder", "parts")
    begun(parts, tmp_path / "parts", 1)
    parts.send_signal(signal.SIGINT)
    out = said(parts, 1)
    assert out.count("stopped at step") == 1
    assert out.count("2 ranks, exchange by gloo") == 1 and "GPU 0: NVIDIA H100" in out
    (saved,) = (tmp_path / "parts" / "checkpoints").iterdir()
    if int(saved.name.removeprefix("step-")) >= STEPS:
        return  # on a machine that is too busy it is beyond
    out = said(start(tmp_path, shim, "tcomp", "train", "--resume", "parts", "--steps", str(STEPS), "--zero", "1"))
    assert "warning: " not in out.partition("gpt2 tiny")[2]
    steps = [x["step"] for x in map(json.loads, (tmp_path / "parts" / "metrics.jsonl").open()) if "loss" in x]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow(seconds=10)
def test_a_rank_that_is_killed_ends_the_run(tmp_path: Path, text: Path, shim: str) -> None:
    """Also one that shares a GPU with another, as asked."""
    train = [*TRAIN, "--data", str(text), "--steps", "100000", "--run-folder", "run"]
    shared = start(tmp_path, shim, *train, "--device", "cuda:0", "--exchange", "gloo", gpus=1)
    begun(shared, tmp_path / "run", 2)
    os.kill(sorted(children(shared.pid))[-1], signal.SIGKILL)
    before = time.monotonic()
    out = said(shared, 1)
    assert time.monotonic() - before < 60 and out.count("error: rank 0 has lost another rank") == 1, out
