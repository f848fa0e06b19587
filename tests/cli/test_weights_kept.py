"""`--weights NAME` of `eval`, `generate` and `export`: an average that the optimizer keeps, instead of parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.cli.support import TINY, Tcomp, refused

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
(AVERAGED,) = re.findall(r"^```tc gpt2_averaged.tc\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
STEADY = ("--hyper", "warmup=1", "--hyper", "final_lr=1", "--hyper", "total=9", "--sample", "0", "--eval-every", "0")


def weights(run: str) -> bytes:
    (saved,) = Path(run, "checkpoints").iterdir()
    return (saved / "tensors.safetensors").read_bytes()


def trained(tcomp: Tcomp, text: str, run: str, steps: int, file: str = AVERAGED, *more: str) -> None:
    Path("gpt2_averaged.tc").write_text(file)
    result = tcomp(
        "train", "gpt2_averaged.tc", "--config", "tiny", *TINY, *STEADY, "--data", text, "--steps", str(steps),
        "--run", run, *more,
    )  # fmt: skip
    assert result.code == 0, result.error


@pytest.mark.slow(seconds=6)
def test_the_documents_average_is_that_of_the_parameters(tcomp: Tcomp, text: str) -> None:
    """Of those after one step and after two, since an average of so few is of all alike."""
    trained(tcomp, text, "one", 1)
    trained(tcomp, text, "two", 2, AVERAGED, "--precision", "bf16")
    trained(tcomp, text, "f32", 2)
    for run, *more in (("one",), ("f32",), ("f32", "--weights", "average"), ("two", "--weights", "average")):
        result = tcomp("export", run, "--to-hf", "-".join(["hf", run, *more[1:]]), *more)
        assert result.code == 0, result.error
    first, second, both, narrow = (
        load_file(f"{n}/model.safetensors") for n in ("hf-one", "hf-f32", "hf-f32-average", "hf-two-average")
    )
    assert first.keys() == both.keys()
    for name, average in both.items():
        assert average == pytest.approx((first[name] + second[name]) / 2, rel=1e-5, abs=1e-7), name
        assert narrow[name].dtype == "float32" and narrow[name] == pytest.approx(average, abs=2e-3)


@pytest.mark.slow(seconds=5)
def test_it_is_evaluated_and_writes_and_what_is_not_kept_is_refused(tcomp: Tcomp, text: str) -> None:
    """An average that is what the parameters were after the first step, as a run of one step has them."""
    file = AVERAGED.replace("old = min(keep, step / (step + 1.0))", "old = min(keep, step * 1.0)")
    trained(tcomp, text, "one", 1, file)
    trained(tcomp, text, "three", 3, file, "--hyper", "keep=1")

    def used(run: str, *more: str) -> tuple[str, str]:
        measured = tcomp("eval", run, "-B", "2", "--batches", "2", "--threads", "1", *more)
        written = tcomp("generate", run, "-n", "8", "--threads", "1", *more)
        assert measured.code == written.code == 0, (measured.error, written.error)
        return measured.out, written.out

    assert used("three", "--weights", "average") == used("one") != used("three")
    start = (*TINY, *STEADY, "--data", text, "--steps", "1", "--seed", "2")
    for run, source in (("from one", ("one",)), ("from three", ("three", "--weights", "average"))):
        result = tcomp("train", *start, "--run", run, "--init-from", *source)
        assert result.code == 0, result.error
    assert weights("from one") == weights("from three")
    refused(tcomp("train", *start, "--run", "x", "--init-from", "one", "--weights", "w"), "it keeps: average, m, v")
    refused(tcomp("train", *start, "--run", "x", "--weights", "average"), "is about the run that another one starts")
    assert not Path("x").exists()

    refused(
        tcomp("eval", "one", "--weights", "averaged", "--threads", "1"),
        "the optimizer keeps no state 'averaged' of its parameters' shapes", "it keeps: average, m, v",
    )  # fmt: skip
    refused(tcomp("export", "one", "--to-hf", "hf", "--weights", "w"), "it keeps: average, m, v")
    assert not Path("hf").exists()
    some = AVERAGED.replace("group vectors:", "group vectors by adamw:")
    trained(tcomp, text, "some", 1, some)
    refused(
        tcomp("generate", "some", "--weights", "average", "--threads", "1"),
        "the optimizer keeps 'average' for 6 of 16 parameters, not for ln1_w", "let the op of every group keep it",
    )  # fmt: skip
    assert tcomp("export", "one", "--to-hf", "hf").code == 0
    assert tcomp("import", "--from-hf", "hf", "--out", "bare").code == 0
    refused(tcomp("eval", "bare", "--weights", "m", "--threads", "1"), "name a run that `tcomp train` made")
