"""`tcomp plan`, `show` and `grad`: what they print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import Tcomp, refused


def test_plan_prints_the_table_and_draws(tcomp: Tcomp, tmp_path: Path) -> None:
    result = tcomp("plan", "models/gpt2.tc", "-B", "2", "-T", "16", "--png", "plan.png")
    assert result.code == 0
    for word in ("parameter", "gradient", "state", "activation", "lower bound"):
        assert word in result.out
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_that_does_not_fit_is_refused_with_the_tensors_to_blame(tcomp: Tcomp) -> None:
    result = tcomp("plan", "gpt2", "-B", "2", "--memory", "3MB")
    refused(result, "the step needs", "at the least", "the limit is", "up_w (parameter)")


def test_a_plan_with_a_memory_budget_says_what_is_computed_again(tcomp: Tcomp) -> None:
    small = ["plan", "gpt2", "-B", "8", "-T", "64", "--threads", "1"]
    assert "Computed again" not in tcomp(*small, "--memory", "unlimited").out
    assert "since it costs next to nothing" in tcomp(*small).out
    result = tcomp(*small, "--memory", "27MB")
    assert result.code == 0, result.error
    for words in ("Computed again in the backward pass", "linear_gelu", "l0.u", "bytes not kept", "Predicted cost"):
        assert words in result.out, result.out


@pytest.mark.parametrize("stage", ["ast", "graph", "grad", "schedule", "tile", "llvm", "asm", "plan", "launches"])
def test_show_prints_each_stage(stage: str, tcomp: Tcomp) -> None:
    marks = {
        "ast": "Op name=linear", "graph": "backward:", "grad": "backward linear", "schedule": "schedule linear",
        "tile": "phase 0:", "llvm": "define", "asm": ".text", "plan": "arena", "launches": "program micro_first",
    }  # fmt: skip
    some = ["layernorm"] if stage in ("llvm", "asm") else []
    result = tcomp("show", "gpt2", *some, f"--{stage}", "-B", "1", "-T", "8", "--dim", "C=16", "--dim", "L=1")
    assert result.code == 0, result.error
    assert marks[stage] in result.out


def test_show_of_an_op_without_a_model(tcomp: Tcomp) -> None:
    dims = ["--dim", "M=8", "--dim", "N=16", "--dim", "K=4"]
    result = tcomp("show", "ops/linear", "linear.backward", "--schedule", "--tile", *dims)
    assert result.code == 0, result.error
    assert "kernel linear.backward" in result.out


def test_grad_prints_text_that_parses_again(tcomp: Tcomp) -> None:
    from tcomp.dsl.parse import parse

    result = tcomp("grad", "gpt2", "linear_gelu")
    assert result.code == 0 and result.out.startswith("backward linear_gelu(")
    assert parse(result.out, "grad.tc").items


def test_a_model_of_rows_alone_needs_no_length(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "rows.tc").write_text("""
op mix(X: f32[M, K], w: f32[K]) -> Y: f32[M, K]:
  Y[m, k] = X[m, k] * w[k]

op total(X: f32[M, K]) -> y: f32[]:
  y = sum m, k: X[m, k]

model rows(B):
  config one: C = 4
  param w: f32[C] = ones
  input x: f32[B, C]
  forward:
    a = mix(x, w)
    loss = total(a)
  loss loss
""")
    for command in (["plan"], ["build", "--out", "built"], ["show", "--graph"]):
        result = tcomp(command[0], "rows.tc", *command[1:], "-B", "3")
        assert result.code == 0, (command, result.error)
