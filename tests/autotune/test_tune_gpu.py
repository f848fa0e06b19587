"""`tcomp tune --gpu`: predicted, labelled so, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.autotune.instances import Instance
from tcomp.autotune.judge_predicted import PredictedJudge
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.machine.gpu import H100
from tests.autotune.support import gpt2, gpt2_instance
from tests.cli.support import Tcomp, refused

pytestmark = pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="nvdisasm is not installed")
TUNE = ["tune", "gpt2", "--dim", "L=1", "-B", "2", "-T", "64", "--gpu", "h100", "--ops", "linear", "--trials", "3"]
TUNE += ["--predicted"]  # (another test of this process may have brought a virtual GPU in the driver's place)


@pytest.mark.slow
def test_predictions_are_labelled_and_repeatable(tcomp: Tcomp, tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        made = tcomp(*TUNE, "--storage", f"{name}.sqlite3", "--lock", f"{name}.lock", "--seed", "3")
        assert made.code == 0, made
        assert "predicted" in made.out and "measured" not in made.out
        text = (tmp_path / f"{name}.lock").read_text()
        assert 'basis = "predicted"' in text and "measured" not in text
        texts.append("\n".join(line for line in text.splitlines() if not line.startswith("when")))
        assert tcomp("tune", "--check", "--gpu", "h100", "--lock", f"{name}.lock").code == 0
    assert texts[0] == texts[1]
    report = tcomp("tune", "report", "--gpu", "h100", "--storage", "one.sqlite3", "--lock", "one.lock").out
    assert "predicted" in report and "measured" not in report
    assert "rank correlation (Spearman) 0.972 with the published speeds of 14 matrix products" in report


def test_a_prediction_is_the_same_every_time(tmp_path: Path) -> None:
    instance = gpt2_instance("layernorm", gpt2())
    first, second = (PredictedJudge(gpt2(), H100, tmp_path / str(i), i).start(instance) for i in range(2))
    assert first == second and first[0] > 0


def test_a_wrong_choice_is_refused_by_the_virtual_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from tcomp.autotune import judge_predicted
    from tcomp.dsl.ast import Binary, Num

    module = gpt2()
    instance = gpt2_instance("linear", module)
    judge = PredictedJudge(module, H100, tmp_path, 0)
    assert judge.check(instance, {}) == ""
    right = judge_predicted.lower

    def wrong(op, *rest):  # type: ignore[no-untyped-def]
        last = op.equations[-1]
        return right(
            replace(op, equations=(*op.equations[:-1], replace(last, value=Binary("+", last.value, Num(0.01))))), *rest
        )

    monkeypatch.setattr(judge_predicted, "lower", wrong)
    assert "from the oracle" in judge.check(Instance(instance.op, {**instance.dims}), {})


@pytest.mark.slow(seconds=12)
def test_a_step_s_roofline(tcomp: Tcomp, tmp_path: Path) -> None:
    small = ["--dim", "L=1", "--dim", "H=1", "--dim", "C=16", "-B", "1", "-T", "16"]
    made = tcomp("roofline", "gpt2", *small, "--gpu", "a100", "--out", "out", "--json", "figures.json")
    assert made.code == 0, made
    assert "predicted, nothing is measured" in made.out and "predicted step:" in made.out and "adamw" in made.out
    assert (tmp_path / "out" / "roofline.png").stat().st_size > 10_000
    figures = (tmp_path / "out" / "roofline.json").read_text()
    assert '"basis": "predicted"' in figures and figures == (tmp_path / "figures.json").read_text()
    assert made.out.count("branches that depend") == 1 < made.out.count("  [1]"), "said once, below the table"
    assert "rank correlation (Spearman)" in tcomp("roofline", "--ladder").out
    refused(tcomp("roofline", "gpt2", "--gpu", "h1000"), "no description of a GPU 'h1000'")
