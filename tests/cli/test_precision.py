"""`--precision` on the command line: training, resuming, generating, planning; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import TINY, Tcomp, refused

slow = pytest.mark.slow
RECIPES = ["bf16", *(pytest.param(p, marks=slow) for p in ("bf16_stochastic", "fp8", "fp8_block"))]


OWN = """
import ops.linear
import ops.crossentropy

op constant(peak_lr: f32[]) -> lr: f32[]:
  lr = peak_lr

op sgd(inout p: f32[N], g: f32[N], lr: f32[]):
  p[i] = p[i] - lr * g[i]

model line(B, T):
  config tiny: C = 8
  param w: real[1, C] = zeros
  input x: real[B, C]
  forward:
    y = matmul(x, w)
    loss = mean(y as [B])
  loss loss
  optimizer sgd:
    hyper peak_lr = 0.1
    lr by constant
"""


def tensors(run: str, step: int) -> bytes:
    return Path(run, "checkpoints", f"step-{step:06d}", "tensors.safetensors").read_bytes()


@pytest.mark.parametrize("precision", RECIPES)
def test_a_resumed_run_is_bitwise_the_same(precision: str, tcomp: Tcomp, text: str) -> None:
    given = [*TINY, "--data", text, "--precision", precision]
    assert tcomp("train", *given, "--steps", "5", "--hyper", "total=5", "--hyper", "warmup=1", "--run", "a").code == 0
    assert tcomp("train", *given, "--steps", "2", "--hyper", "total=5", "--hyper", "warmup=1", "--run", "b").code == 0
    assert tcomp("train", "--resume", "b", "--steps", "5").code == 0
    assert tensors("a", 5) == tensors("b", 5)
    manifest = json.loads(Path("a", "checkpoints", "step-000005", "manifest.json").read_text())["manifest"]
    assert manifest["precision"] == precision


def test_a_run_keeps_its_precision(tcomp: Tcomp, text: str) -> None:
    tcomp("train", *TINY, "--data", text, "--precision", "bf16", "--steps", "1", "--run", "r")
    refused(tcomp("train", "--resume", "r", "--precision", "f32"), "--precision cannot change when a run is resumed")
    config = Path("r", "run.json")
    config.write_text(config.read_text().replace('"bf16"', '"f32"'))
    refused(tcomp("train", "--resume", "r", "--steps", "2"), "trained with precision bf16, not f32")


def test_text_comes_from_narrow_logits(tcomp: Tcomp, text: str) -> None:
    given = ["--data", text, "--precision", "bf16", "--steps", "60", "--run", "r"]
    assert tcomp("train", *TINY, *given).code == 0
    out = tcomp("generate", "r", "--prompt", "1 ab", "--count", "30", "--temperature", "0", "--threads", "1").out
    assert set(out.strip()) <= set(Path(text).read_text()), out


def test_the_plan_names_master_copies(tcomp: Tcomp) -> None:
    sizes = ["--dim", "L=1", "--dim", "C=32", "-B", "1", "-T", "8"]
    wide, narrow = (tcomp("plan", "gpt2", *sizes, "--precision", p).out for p in ("f32", "bf16"))
    assert "master.wte" in narrow and "bf16[256, 32]" in narrow
    assert "master" not in wide and "bf16" not in wide


def test_what_is_refused(tcomp: Tcomp) -> None:
    for command in (["plan"], ["build"], ["check"], ["show", "--graph"]):
        result = tcomp(command[0], "gpt2", *command[1:], "--precision", "fp4")
        refused(result, "there is no precision 'fp4'", "bf16: tensors in bf16")
    Path("own.tc").write_text(OWN)
    refused(tcomp("plan", "own.tc", "--precision", "fp8"), "model 'line' says nothing about precision fp8")
    refused(
        tcomp("plan", "own.tc", "--precision", "bf16"),
        "precision bf16 keeps f32 master copies of the parameters, but op 'sgd' does not give the stored parameters",
        "add the result `w: real[N]`",
    )
    refused(
        tcomp("plan", "own.tc", "--precision", "bf16_stochastic"),
        "'p' of 'sgd' is f32, by precision bf16_stochastic it is bf16",
        "`under bf16_stochastic by OP`",
    )
