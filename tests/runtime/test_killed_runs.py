"""Real training in a process of its own: killed, interrupted, resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

STEPS = 60
PATIENCE = 300.0
"""seconds until something that should end counts as hanging, also on a busy machine"""
ARGUMENTS = [
    "--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "16", "--accumulation", "2",
    "--threads", "2", "--eval-batches", "2", "--sample", "0", "--save-every", "3", "--eval-every", "20",
    "--steps", str(STEPS),
]  # fmt: skip


def start(folder: Path, *arguments: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tcomp", "train", *arguments],
        cwd=folder, env={**os.environ, "TCOMP_CACHE": str(cache)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored under nohup, say
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"{i % 7} abcabd\n" for i in range(700)))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Path, kernels: Path) -> Path:
    """A run that nothing disturbed (which also fills the cache of compiled kernels)."""
    folder = tmp_path_factory.mktemp("whole")
    made = start(folder, *ARGUMENTS, "--data", str(corpus), "--run", "whole", cache=kernels)
    out, _ = made.communicate(timeout=PATIENCE)
    assert made.returncode == 0, out
    return folder / "whole"


def final_state(run: Path) -> tuple[dict[str, np.ndarray], list[float]]:
    tensors = load_file(run / "checkpoints" / f"step-{STEPS:06d}" / "tensors.safetensors")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return tensors, [m["loss"] for m in lines if "loss" in m]


def assert_same(a: Path, b: Path) -> None:
    (tensors, losses), (others, other_losses) = final_state(a), final_state(b)
    assert tensors.keys() == others.keys() and losses == other_losses
    for name, value in tensors.items():
        assert value.tobytes() == others[name].tobytes(), name


@pytest.mark.slow
def test_a_run_killed_at_random_points_ends_bitwise_the_same(
    tmp_path: Path, corpus: Path, whole: Path, kernels: Path
) -> None:
    draw = random.Random(7)
    arguments = [*ARGUMENTS, "--data", str(corpus), "--run", "killed"]
    kills = 0
    run = tmp_path / "killed"
    for _ in range(2):
        running = start(tmp_path, *arguments, cache=kernels)
        begun = len((run / "metrics.jsonl").read_text()) if (run / "metrics.jsonl").exists() else 0
        deadline = time.monotonic() + PATIENCE
        while running.poll() is None and time.monotonic() < deadline:
            metrics = run / "metrics.jsonl"
            if metrics.exists() and len(metrics.read_text()) not in (0, begun) and any(run.glob("checkpoints/step-*")):
                time.sleep(draw.uniform(0, 0.03))
                break
            time.sleep(0.002)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.communicate(timeout=PATIENCE)
        arguments = ["--resume", "killed"]
    ending = start(tmp_path, "--resume", "killed", cache=kernels)
    out, _ = ending.communicate(timeout=PATIENCE)
    assert ending.returncode == 0, out
    assert kills >= 1, "the run was over before it could be killed"
    assert_same(whole, run)


def test_ctrl_c_saves_and_the_run_goes_on_bitwise_the_same(
    tmp_path: Path, corpus: Path, whole: Path, kernels: Path
) -> None:
    arguments = [*ARGUMENTS, "--data", str(corpus), "--run", "stopped"]
    running = start(tmp_path, *arguments, cache=kernels)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while running.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130, out
    assert "saved; go on with: tcomp train --resume stopped" in out and "Traceback" not in out
    ending = start(tmp_path, "--resume", "stopped", cache=kernels)
    out, _ = ending.communicate(timeout=PATIENCE)
    assert ending.returncode == 0, out
    assert_same(whole, tmp_path / "stopped")


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_a_run_that_can_go_on(
    tmp_path: Path, corpus: Path, whole: Path, kernels: Path
) -> None:
    """While Python starts, the step is planned, the run trains or ends: whatever is hit, the end is the same."""
    draw = random.Random(11)
    run, first = tmp_path / "hit", [*ARGUMENTS, "--data", str(corpus), "--run", "hit"]
    began = time.monotonic()
    timed = start(tmp_path, *ARGUMENTS, "--data", str(corpus), "--run", "timed", cache=kernels)
    timed.communicate(timeout=PATIENCE)
    usual = time.monotonic() - began
    interrupted = 0
    for earliest, latest in ((0.05, 0.3), (0.4, 0.7), (0.7, 1.0)):
        running = start(tmp_path, *(["--resume", "hit"] if run.exists() else first), cache=kernels)
        try:
            running.communicate(timeout=usual * draw.uniform(earliest, latest))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
            interrupted += 1
            out, _ = running.communicate(timeout=PATIENCE)
            assert running.returncode in (0, 130, -signal.SIGINT), out
    assert interrupted >= 1
    ending = start(tmp_path, *(["--resume", "hit"] if run.exists() else first), cache=kernels)
    out, _ = ending.communicate(timeout=PATIENCE)
    assert ending.returncode == 0, out
    assert_same(whole, run)


def test_a_run_stopped_before_its_first_checkpoint_starts_again(
    tmp_path: Path, corpus: Path, whole: Path, kernels: Path
) -> None:
    run = tmp_path / "early"
    run.mkdir()
    settings = json.loads((whole / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**settings, "run": "early"}))
    again = start(tmp_path, "--resume", "early", cache=kernels)
    out, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, out
    assert "stopped before its first checkpoint; it starts again from step 0" in out
    assert_same(whole, run)
