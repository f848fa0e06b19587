"""`tcomp train` and `generate`: runs, settings, data."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.cli import common
from tcomp.codegen import claims
from tcomp.dsl.files import library
from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tcomp.model.step import Step
from tcomp.runtime import checkpoint, train
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.executor import Executor
from tests.cli.support import TINY, Tcomp, refused


def test_train_generate_and_resume(tcomp: Tcomp, text: str) -> None:
    result = tcomp("train", *TINY, "--data", text, "--steps", "6", "--run", "r")
    assert result.code == 0, result.error
    assert "step 6/6" in result.out and "validation loss" in result.out and "tcomp generate r" in result.out
    first = tcomp("generate", "r", "--count", "20", "--prompt", "ab", "--threads", "1")
    assert first.code == 0 and first.out.startswith("ab")
    assert tcomp("generate", "r", "--count", "20", "--prompt", "ab", "--threads", "1").out == first.out
    more = tcomp("train", "--resume", "r", "--steps", "9")
    assert more.code == 0 and "step 9/9" in more.out and "step 6/9" not in more.out


def test_the_sample_does_not_run_beside_the_training_steps_memory(
    tcomp: Tcomp, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[Executor]] = []
    alive: list[bool] = []
    opening = CpuDevice.open

    def noted(device: CpuDevice, step: Step) -> Executor:
        alive.extend(e() is not None for e in opened)
        executor = opening(device, step)
        opened.append(weakref.ref(executor))
        return executor

    monkeypatch.setattr(CpuDevice, "open", noted)
    gc.disable()
    try:
        assert tcomp("train", *TINY, "--data", text, "--steps", "1").code == 0
    finally:
        gc.enable()
    assert alive == [False]


def test_the_run_folder_is_numbered(tcomp: Tcomp, text: str) -> None:
    for name in ("runs/gpt2-tiny", "runs/gpt2-tiny-2"):
        assert f"run folder {name}:" in tcomp("train", *TINY, "--data", text, "--steps", "1").out
    refused(tcomp("train", *TINY, "--data", text, "--run", "runs/gpt2-tiny"), "already holds a run", "--resume")


def test_run_file_values_and_flags(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f'steps = 2\nbatch = 1\nlength = 16\ndata = "{text}"\nsample = 0\nthreads = 1\nrun = "a"\n'
        "[dims]\nL = 1\nH = 2\nC = 16\n[hyper]\npeak_lr = 1e-3\nwarmup = 1\n"
    )
    result = tcomp("train", "--run-file", "run.toml", "--steps", "3")
    assert result.code == 0, result.error
    assert "step 3/3" in result.out and "lr 1.00e-03" in result.out
    assert "threads instead of 1" in tcomp("train", "--resume", "a", "--threads", "2").error


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("stesp = 3", ("unknown setting 'stesp'", "did you mean 'steps'?")),
        ("steps = 'three'", ("steps must be a whole number", "as in steps = 1500")),
        ("steps = ", ("not a TOML file",)),
        ("steps = 0", ("steps = 0: must be at least 1",)),
        ("[hyper]\npeak_lr = 'x'", ("hyper.peak_lr must be a number",)),
        ("[hyper]\npeek_lr = 1.0", ("unknown hyperparameter 'peek_lr'",)),
        ("[dims]\nS = 1.5", ("S = 1.5 of model 'gpt2' must be a whole number",)),
    ],
)
def test_bad_run_files(toml: str, words: tuple[str, ...], tcomp: Tcomp, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(toml)
    refused(tcomp("train", "--run-file", "run.toml", *TINY, "--data", text), *words)


def test_a_resumed_run_keeps_its_settings(tcomp: Tcomp, text: str) -> None:
    tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", "r")
    refused(tcomp("train", "--resume", "r", "--lr", "1"), "--hyper or --lr cannot change when a run is resumed")
    refused(tcomp("train", "--resume", "r", "--eval-batches", "1"), "error: --eval-batches cannot change")
    refused(tcomp("train", "--resume", "r", "llama"), "error: the model cannot change")
    refused(tcomp("train", "--resume", "nowhere"), "not a run folder")
    config = Path("r/run.json")
    config.write_text(config.read_text().replace('"threads": 1,', '"threads": 9999,'))
    refused(tcomp("train", "--resume", "r"), "threads = 9999: must be at most", "--threads")
    assert tcomp("train", "--resume", "r", "--threads", "1").code == 0
    config.write_text("{")
    refused(tcomp("train", "--resume", "r"), "run.json: damaged")
    refused(tcomp("generate", "r"), "run.json: damaged")


def test_bad_data(tcomp: Tcomp, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    refused(tcomp("train", *TINY, "--data", "missing.txt"), "missing.txt: no such file or folder")
    refused(tcomp("train", *TINY, "--data", str(empty)), "no text in it")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 99
    tokens = tmp_path / "t.bin"
    tokens.write_bytes(header.tobytes() + np.full(99, 300, "<u2").tobytes())
    refused(tcomp("train", *TINY, "--data", str(tokens)), "token 300 at position 0", "vocabulary of 256")
    assert not (tmp_path / "runs").exists(), "a refused run leaves no folder"


def test_an_executor_that_fails_leaves_no_run_folder(
    tcomp: Tcomp, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("tcomp.runtime.cpu.executor.CpuExecutor", failing)
    refused(tcomp("train", *TINY, "--data", text), "error: Cannot allocate memory", "use smaller sizes")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["train.initialise", "train.Metrics", "batches.Batches.fill"])
def test_a_run_that_fails_before_its_first_step_leaves_nothing(
    what: str, tcomp: Tcomp, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was there is as it was before, with the settings of a run that was killed as early."""

    def failing(*_: object) -> None:
        raise UserError("it does not load")

    monkeypatch.setattr(f"tcomp.runtime.{what}", failing)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "run.json").write_text("old")
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for run in ("new/run", "there"):
        refused(tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", run), "it does not load")
    assert not (tmp_path / "new").exists()
    left = {p.name: p.read_text() for p in (tmp_path / "there").iterdir()}
    assert left == {"run.json": "old", "notes.txt": "mine"}


def test_weights_that_do_not_load_leave_no_run_folder(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    tcomp("train", *TINY, "--data", text, "--steps", "1", "--run", "r")
    load = train.load_weights

    def shrunk(executor: Executor, saved: checkpoint.Checkpoint, *more: Any) -> None:
        os.truncate(saved.folder / checkpoint.TENSORS, 2000)
        load(executor, saved, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_weights", shrunk)
        refused(
            tcomp("train", *TINY, "--data", text, "--steps", "1", "--init-from", "r", "--run", "s"),
            "not a whole safetensors file",
        )
    assert not (tmp_path / "s").exists()


LORA = """import ops.embedding
import ops.linear
import ops.crossentropy
import ops.optim
{ops}
model own(B, T):
  config tiny: V = 256, C = 8, R = 2
  param wte: real[V, C] = normal(0.1) {base}
  param scales: {kind}[C] = uniform(1.0) {base}
{factors}
  input tokens: i32[B, T] below V
  input targets: i32[B, T] below V
  forward:
    x = lookup(tokens, wte)
    h = weigh(x as [B * T, C], scales)
{forward}
    logits = matmul(h, wte)
    losses, _ = crossentropy(logits, targets as [B * T], V = V)
    loss = mean(losses)
  loss loss
  logits logits
  optimizer adamw:
    hyper peak_lr = 1e-2, final_lr = 0.1, warmup = 1, total = 10
    hyper beta1 = 0.9, beta2 = 0.95, eps = 1e-8, clip = 1.0
    group all: weight_decay = 0.1
    lr by cosine
    norm by global_norm
"""
WEIGH = "op weigh(X: real[M, C], s: {kind}[C]) -> Y: real[M, C]:\n  Y[m, c] = X[m, c] * s[c]\n"
FACTORS = "  param down: real[R, C] = normal(0.1) in all\n  param up: real[C, R] = zeros in all"
BESIDE = "    d = matmul(h, down)\n    h = matmul_residual(d, up, h)"


def test_factors_beside_the_frozen_weights_of_another_run(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """Weights of a model that trains them, in a model that keeps them (one in 8 bits) and trains what the first has
    not. It goes on without the run that they came from."""
    quick = ["-B", "1", "-T", "8", "--threads", "1", "--sample", "0", "--eval-batches", "1", "--data", text]
    for name, values in {
        "base": {"base": "in all", "kind": "real", "factors": "", "forward": ""},
        "lora": {"base": "frozen", "kind": "e4m3", "factors": FACTORS, "forward": BESIDE},
    }.items():
        Path(f"{name}.tc").write_text(LORA.format(ops=WEIGH.format(**values), **values))
    assert tcomp("train", "base.tc", *quick, "--steps", "1", "--run", "b").code == 0
    found = tcomp("train", "lora.tc", *quick, "--steps", "1", "--run", "r", "--init-from", "b", "--precision", "bf16")
    assert found.code == 0 and "b has no down, up: they begin as the model's text says" in found.error, found
    shutil.rmtree("b")
    found = tcomp("train", "--resume", "r", "--steps", "2", "--keep", "2")
    assert found.code == 0 and "no down" not in found.error, found
    one, two = (checkpoint.verify(tmp_path / f"r/checkpoints/step-00000{n}") for n in (1, 2))
    tensors = two.tensors()
    assert {n: tensors[n].kind for n in ("wte", "scales", "down", "master.down")} == {
        "wte": "BF16", "scales": "F8_E4M3", "down": "BF16", "master.down": "F32",
    }  # fmt: skip
    assert not {n for n in tensors if n.endswith((".wte", ".scales"))}
    for name in ("wte", "scales"):
        np.testing.assert_array_equal(one.values(name), two.values(name))
    refused(tcomp("train", "base.tc", *quick, "--steps", "1", "--run", "s", "--init-from", "r"), "it holds weights of")


def test_a_rate_that_no_group_takes(tcomp: Tcomp, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would only change what is shown. Where one group of two takes it, it is one. No other process waits for the
    kernels that were begun."""
    monkeypatch.setenv("TCOMP_CACHE", str(tmp_path / "cache"))
    values = {"base": "in all", "kind": "real", "factors": "", "forward": ""}
    whole = LORA.format(ops=WEIGH.format(**values), **values)
    own = whole.replace("group all: weight", "group all: lr = 1e-3, weight")
    Path("own.tc").write_text(own)
    arguments = ["train", "own.tc", "-B", "1", "-T", "8", "--threads", "1", "--data", text, "--run", "r"]
    for flags in (["--lr", "0.1"], ["--hyper", "warmup=3"]):
        refused(
            tcomp(*arguments, *flags),
            "no parameter's update depends on it",
            "help: give the groups' own: --hyper all.lr",
        )
    assert not (tmp_path / "r").exists() and tmp_path / "cache" / "kernels" not in claims._files
    two = own.replace("uniform(1.0) in all", "uniform(1.0) in some").replace(
        "  lr by", "  group some: weight_decay = 0\n    lr by"
    )
    idle = {}
    for name, content in {"own": own, "two": two}.items():
        Path(f"{name}.tc").write_text(content)
        request = StepRequest(f"{name}.tc", "", {"B": 1, "T": 8})
        idle[name] = common.build_step(request, common.device_for(threads=1)).step.idle_hyper()
    assert idle == {"own": {"peak_lr", "final_lr", "warmup", "total"}, "two": set()}


def test_a_model_that_trains_nothing(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    """What trains it, or times its training, says what it lacks."""
    values = {"base": "frozen", "kind": "real", "factors": "", "forward": ""}
    whole = LORA.format(ops=WEIGH.format(**values), **values)
    Path("still.tc").write_text(whole.partition("  optimizer")[0])
    small = ["-B", "1", "-T", "8", "--threads", "1"]
    for command in (["train", "--data", text, "--run", "r"], ["roofline", "--measure"]):
        refused(tcomp(command[0], "still.tc", *command[1:], *small), "the model own has no optimizer", "add `optimizer")
    assert not (tmp_path / "r").exists()


def test_a_run_folder_that_cannot_be_made(tcomp: Tcomp, text: str, tmp_path: Path) -> None:
    arguments = ["train", *TINY, "--data", text, "--steps", "1", "--run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "build_step", None)  # known before any work
        for taken in (f"{text}/r", text):
            refused(tcomp(*arguments, taken), f"{taken}: cannot use it as run folder: Not a directory", "--run")

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcomp.runtime.run_folder.write_atomic", no_room)
        refused(tcomp(*arguments, "a/b"), "run.json: cannot write it: No space left")
    assert not (tmp_path / "a").exists()


def test_unwritable_cache_folder(tcomp: Tcomp, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCOMP_CACHE", text + "/below")
    refused(tcomp("train", *TINY, "--data", text), "cache folder", "cannot be written", "TCOMP_CACHE")


@pytest.mark.slow
def test_names_that_are_not_utf_8(tmp_path: Path, text: str) -> None:
    """Of the data, the model's file and the run."""
    odd = tmp_path / "\udcff"
    (odd / "data").mkdir(parents=True)
    (odd / "data" / "\udcfe.txt").write_text(Path(text).read_text())
    (odd / "mine.tc").write_text((library() / "gpt2.tc").read_text())
    command = [
        sys.executable,
        "-m",
        "tcomp",
        "train",
        "mine.tc",
        *TINY,
        "--steps",
        "1",
        "--data",
        "data",
        "--run",
        "\udcfd",
    ]
    found = subprocess.run(command, cwd=odd, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    assert b"Traceback" not in found.stderr and b"run folder" in found.stdout
