"""`--device` through the commands: refusals in one message; a run on the virtual GPU goes on elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.support import Tcomp, own_folders, refused, tcomp as in_process

__all__ = ["in_process", "own_folders"]

MICRO = ["--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "8", "--eval-batches", "1", "--sample", "0"]


@dataclass
class Result:
    code: int
    out: str
    error: str


def tcomp(folder: Path, kernels: Path, *arguments: str) -> Result:
    """The command in a process of its own: a process has one CUDA driver."""
    found = subprocess.run(
        [sys.executable, "-m", "tcomp", *arguments],
        cwd=folder, env={**os.environ, "TCOMP_CACHE": str(kernels), "COLUMNS": "200"}, text=True,
        capture_output=True, check=False, timeout=400,
    )  # fmt: skip
    return Result(found.returncode, found.stdout, found.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan gpt2 --device tpu", "--device tpu: there is no such device"),
        ("train --device cuda:", "--device cuda:: there is no such device"),
        ("check gpt2 --device cpu:1", "--device cpu:1: there is no such device"),
        ("train --gpu h100", "--gpu h100 is for --device virtual"),
        ("generate r --device virtual --gpu h10", "no description of a GPU 'h10' help: did you mean 'h100'?"),
        ("train --run-file run.toml", "graph must be true or false, not 3"),
    ],
)
def test_devices_that_are_none(tmp_path: Path, in_process: Tcomp, arguments: str, message: str) -> None:
    (tmp_path / "run.toml").write_text("graph = 3\n")
    refused(in_process(*arguments.split()), message)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [m["loss"] for m in lines if "loss" in m]


def tensors(run: Path, step: int) -> dict[str, bytes]:
    found = load_file(run / "checkpoints" / f"step-{step:06d}" / "tensors.safetensors")
    return {name: array.tobytes() for name, array in found.items()}


@pytest.mark.slow(seconds=15)
def test_a_run_on_the_virtual_gpu(tmp_path: Path, kernels: Path, text: Path) -> None:
    """Whole and resumed runs have the same bits; on the CPU it goes on from the same checkpoint, with a warning."""
    virtual = ["--device", "virtual", "--gpu", "a100", "--hyper", "total=2", "--hyper", "warmup=1"]
    whole = tcomp(tmp_path, kernels, "train", *MICRO, *virtual, "--data", str(text), "--run", "a", "--steps", "2")
    assert whole.code == 0, whole
    assert "virtual NVIDIA A100" in whole.out and "validation loss" in whole.out
    first = tcomp(tmp_path, kernels, "train", *MICRO, *virtual, "--data", str(text), "--run", "b", "--steps", "1")
    assert first.code == 0, first
    (tmp_path / "c").mkdir()
    subprocess.run(["cp", "-r", f"{tmp_path}/b/.", f"{tmp_path}/c"], check=True)
    second = tcomp(tmp_path, kernels, "train", "--resume", "b", "--steps", "2")
    assert second.code == 0 and "warning" not in second.error, second
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and tensors(tmp_path / "a", 2) == tensors(tmp_path / "b", 2)
    moved = tcomp(tmp_path, kernels, "train", "--resume", "c", "--steps", "2", "--device", "cpu")
    assert moved.code == 0 and "cpu instead of virtual a100" in moved.error, moved
    np.testing.assert_allclose(losses(tmp_path / "b"), losses(tmp_path / "c"), rtol=1e-4)
    sample = tcomp(tmp_path, kernels, "generate", "b", "--device", "virtual", "-n", "3")
    assert sample.code == 0 and len(sample.out.strip()) >= 4, sample
