"""`tcomp bench`: one small comparison with PyTorch, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import Tcomp, refused

SMALL = ["--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "2", "-T", "8", "--threads", "1", "--steps", "2"]


MINE = """
import torch
from tcomp.runtime.bench.torch_base import counterpart

class Program:
    def __init__(self, workload, weights):
        self.model = counterpart(workload)
        self.model.read_weights(weights)
        self.hyper = workload.hyper
        betas = self.hyper["beta1"], self.hyper["beta2"]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=betas, weight_decay=0.0)

    def step(self, tokens, targets, learning_rate):
        self.optimizer.param_groups[0]["lr"] = learning_rate
        loss = self.model(torch.from_numpy(tokens).long(), torch.from_numpy(targets).long())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.hyper["clip"])
        self.optimizer.step()
        return loss.detach()
"""


@pytest.mark.slow(seconds=19)
def test_tcomp_pytorch_and_a_program_of_one_s_own_compute_the_same_and_are_compared(
    tcomp: Tcomp, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "mine.py").write_text(MINE)
    out = tcomp("bench", "gpt2", *SMALL, "--rounds", "2", "--against", "eager,mine.py", "--json", "f.json")
    assert out.code == 0, out.error
    assert all(f"| {name} |" in out.out for name in ("tcomp", "eager", "mine")) and "fma f32" in out.out
    found = json.loads((tmp_path / "f.json").read_text())
    ours, *others = found["programs"]
    assert len(ours["losses"]) == 7 and 0 < ours["warm"] < ours["cold"] and len(others) == 2
    assert all(len(p["seconds"]) == 4 for p in (ours, *others)) and others[0]["loss_difference"] < 1e-5
    assert ours["losses"][0] != ours["losses"][4], "the weights have moved"
    assert ours["peak_rss"] > found["profile"]["plan"]["arena"]
    assert sum(k["share"] for k in found["profile"]["kernels"]) == pytest.approx(1)


@pytest.mark.slow(seconds=12)
def test_the_virtual_gpu_runs_the_same_without_claims_about_time(tcomp: Tcomp, tmp_path: Path) -> None:
    small = ["--dim", "L=1", "--dim", "H=2", "--dim", "C=16", "-B", "1", "-T", "8", "--rounds", "1", "--steps", "1"]
    out = tcomp("bench", "gpt2", *small, "--device", "virtual", "--against", "none", "--json", "f.json")
    assert out.code == 0, out.error
    assert "times say nothing" in out.out and "GFLOP/s" not in out.out
    assert "agree" not in out.out, "nothing is compared"
    (ours,) = json.loads((tmp_path / "f.json").read_text())["programs"]
    assert ours["seconds"] == [] and len(ours["losses"]) == 4 and ours["device_bytes"] > 0


@pytest.mark.slow(seconds=10)
def test_disagreeing_losses_are_refused(tcomp: Tcomp, tmp_path: Path) -> None:
    """Of a model whose text says something else, as of a program (of one's own) that does."""
    pytest.importorskip("torch")
    text = (Path(__file__).resolve().parents[2] / "models" / "gpt2.tc").read_text()
    changed = text.replace("layernorm(x, ln2_w[l], ln2_b[l])", "layernorm(a as [B * T, C], ln2_w[l], ln2_b[l])")
    assert changed != text
    (tmp_path / "other.tc").write_text(changed)
    (tmp_path / "mine.py").write_text(MINE)
    result = tcomp("bench", "other.tc", *SMALL, "--rounds", "1", "--against", "mine.py", "--json", "f.json")
    refused(result, "the losses of 'mine' differ from those of 'tcomp'", "they are not compared", "step 0: tcomp")
    assert "median" not in result.out and not (tmp_path / "f.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--against triton", ("--against triton: there is no such program", "eager, compile")),
        ("--against eager,eager", ("two of the programs are called 'eager'", "name each once")),
        ("--against ,", ("not a list of programs",)),
        ("--against no/such.py", ("--against no/such.py: cannot read it", "docs/comparison.md")),
        ("--dtype f16", ("--dtype f16: not one that both compute in", "f32 or bf16")),
        ("--rounds 0", ("rounds = 0: must be at least 1",)),
        ("--steps -1", ("steps = -1: must not be negative", "--steps")),
        ("--tolerance nan", ("tolerance = nan: must be a number",)),
        ("--json no/such/folder.json", ("no/such/folder.json: cannot write there",)),
        ("--html .", (".: cannot write there",)),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(arguments: str, words: tuple[str, ...], tcomp: Tcomp) -> None:
    refused(tcomp("bench", "gpt2", *SMALL, *arguments.split()), *words)


def test_files_named_as_another_program_are_refused(tcomp: Tcomp, tmp_path: Path) -> None:
    """They would have its caches, and its name in the report."""
    for name in ("tcomp.py", "eager.py"):
        (tmp_path / name).write_text(MINE)
    refused(tcomp("bench", "gpt2", *SMALL, "--against", "tcomp.py"), "two of the programs are called 'tcomp'")
    refused(tcomp("bench", "gpt2", *SMALL, "--against", "eager,./eager.py"), "are called 'eager'")


def test_a_group_that_is_trained_otherwise_is_told(tcomp: Tcomp) -> None:
    result = tcomp("bench", "gpt2_muon", *SMALL)
    refused(result, "train by AdamW alone, this model group 'matrices' by muon", "--against none")


def test_a_model_without_a_counterpart_is_told(tcomp: Tcomp, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "models" / "gpt2.tc").read_text()
    (tmp_path / "mine.tc").write_text(text.replace("model gpt2(", "model other("))
    refused(tcomp("bench", "mine.tc", *SMALL), "no PyTorch counterpart of model 'other'", "--against none")
