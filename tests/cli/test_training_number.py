"""`training` through the commands: what drops elements in training drops none where a run is validated, or used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.cli.support import Tcomp, refused
from tests.runtime.test_training_number import EXAMPLE

SIZES = ("--dim", "C=16", "--dim", "H=32", "--dim", "rate=0.9", "-B", "2", "-T", "16", "--threads", "1")


def test_validation_evaluation_and_generation_drop_nothing(tcomp: Tcomp, text: str) -> None:
    file = Path("regular.tc")
    file.write_text(EXAMPLE)
    trained = tcomp(
        "train", "regular.tc", *SIZES, "--data", text, "--steps", "3", "--sample", "0", "--eval-batches", "2",
        "--run", "r",
    )  # fmt: skip
    assert trained.code == 0, trained.error
    (validation,) = re.findall(r"validation loss ([\d.]+)", trained.out)

    def used() -> tuple[str, str]:
        measured = tcomp("eval", "r", "-B", "2", "--batches", "2", "--threads", "1")
        written = tcomp("generate", "r", "-n", "12", "--temperature", "0", "--threads", "1")
        assert measured.code == written.code == 0, (measured.error, written.error)
        (loss,) = re.findall(r"loss ([\d.]+) nats", measured.out)
        return loss, written.out

    found = used()
    assert found[0] == validation
    file.write_text(EXAMPLE.replace("rate * training", "0.0"))
    assert used() == found
    file.write_text(EXAMPLE.replace("rate * training", "rate"))
    other = used()
    assert other[0] != found[0] and other[1] != found[1]


def test_a_model_without_logits_trains_and_writes_no_sample(tcomp: Tcomp, text: str) -> None:
    Path("silent.tc").write_text(EXAMPLE.replace("  logits logits\n", ""))
    trained = tcomp("train", "silent.tc", *SIZES, "--data", text, "--steps", "1", "--eval-batches", "1", "--run", "s")
    assert trained.code == 0 and "measure it with `tcomp eval s`" in trained.out, trained
    refused(tcomp("generate", "s"), "the model regular takes no tokens, or names no logits", "`logits NAME`")


def test_a_classifier_of_texts_is_measured_and_does_not_write(tcomp: Tcomp) -> None:
    text = EXAMPLE.replace("targets: i32[B, T]", "targets: i32[B]").replace("targets as [B * T]", "targets")
    text = text.replace("    logits =", "    x = first(x as [B, T, C])\n    logits =")
    Path("kinds.tc").write_text(text + "\nop first(X: real[B, T, C]) -> Y: real[B, C]:\n  Y[b, c] = X[b, 0, c]\n")
    save_file({"tokens": np.ones((9, 16), np.uint16), "targets": np.arange(9, dtype=np.uint8)}, "some.safetensors")
    common = (*SIZES, "--steps", "1", "--eval-batches", "1", "--run", "k")
    trained = tcomp("train", "kinds.tc", *common, "--data", "some.safetensors")
    assert trained.code == 0 and "measure it with `tcomp eval k`" in trained.out, trained
    refused(tcomp("generate", "k", "--threads", "1"), "the model regular takes no tokens, or names no logits for each")
    Path("asked.jsonl").write_text('{"ctx": "a", "endings": ["b", "c"], "label": 0}\n')
    refused(tcomp("eval", "k", "--choices", "asked.jsonl", "--threads", "1"), "names no logits for each")
