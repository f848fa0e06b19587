"""`tcomp train` and `eval` on files of examples, by the perceptron of the language's page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.cli.support import Tcomp, refused

PAGE = Path(__file__).parents[2] / "docs" / "language.md"
(PERCEPTRON,) = re.findall(r"^```tc\n([^`]*\nmodel perceptron.*?)^```$", PAGE.read_text(), re.S | re.M)


def losses(run: str) -> list[float]:
    return [m["loss"] for m in map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines()) if "loss" in m]


def predicted(run: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The classes that a run's perceptron gives its highest score."""
    (*_, newest) = sorted(Path(run, "checkpoints").iterdir())
    p = load_file(newest / "tensors.safetensors")
    h = x @ p["up_w"].T + p["up_b"]
    h *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return np.asarray((h @ p["out_w"].T)[:, :10].argmax(axis=1))


def test_a_classifier_learns_goes_on_and_is_measured(tcomp: Tcomp) -> None:
    Path("perceptron.tc").write_text(PERCEPTRON)
    random = np.random.default_rng(0)
    label = random.integers(0, 10, 400)
    x = random.standard_normal((10, 16))[label] + 0.2 * random.standard_normal((400, 16))
    save_file({"x": x[:360], "label": label[:360]}, "train.safetensors")
    save_file({"x": x[360:].astype(np.float16), "label": label[360:].astype(np.uint8)}, "val.safetensors")
    data = ("--data", "train.safetensors", "val.safetensors")
    common = (
        "perceptron.tc", "--config", "small", "-B", "16", "--threads", "1", "--hyper", "total=60", "--hyper",
        "warmup=6", "--lr", "1e-2",
    )  # fmt: skip
    whole = tcomp("train", *common, *data, "--steps", "60", "--run", "a")
    assert whole.code == 0, whole.error
    assert "16 examples a step" in whole.out and "400 examples of 2 files" in whole.out and "examples/s" in whole.out
    assert losses("a")[-1] < 0.5 < 2 < losses("a")[0] and "measure it with `tcomp eval a`" in whole.out
    assert tcomp("train", *common, *data, "--steps", "25", "--run", "b").code == 0
    assert tcomp("train", "--resume", "b", "--steps", "60").code == 0
    assert losses("a") == losses("b")
    measured = tcomp("eval", "a", "-B", "16", "--threads", "1")
    assert measured.code == 0 and "over 40 examples" in measured.out and "perplexity" not in measured.out
    save_file({"x": x[:40], "label": np.append(label[:33], 9 - label[33:40])}, "new val.safetensors")
    measured = tcomp("eval", "a", "-B", "16", "--threads", "1", "--data", "new val.safetensors")
    known = (predicted("a", x[:40]) == np.append(label[:33], 9 - label[33:40])).mean()
    assert 0.5 < known < 0.9 and f", accuracy {known:.1%}, over 40 examples" in measured.out, measured
    refused(tcomp("generate", "a"), "the model perceptron takes no tokens", "tcomp eval RUN")
    refused(tcomp("eval", "a", "--data", "perceptron.tc"), "no .safetensors file", "label: i32[examples] below 10")
    refused(tcomp("train", *common), "no .safetensors file is given, and the model takes x, label")
    save_file({"x": np.full((40, 16), np.nan, np.float32), "label": label[:40]}, "holes.safetensors")
    refused(
        tcomp("train", *common, "--data", "holes.safetensors", "--steps", "2", "--run", "c"),
        "the loss is nan at step 1", "or data of finite numbers",
    )  # fmt: skip
    assert not Path("c").exists()
    rows_as_given = PERCEPTRON.replace("perceptron(B)", "perceptron(N)").replace("[B", "[N")
    Path("perceptron.tc").write_text(rows_as_given)
    assert tcomp("train", *common, "--dim", "N=16", *data, "--steps", "1", "--run", "d").code == 0
    refused(tcomp("eval", "d", "-B", "4", "--threads", "1"), "has 16 rows whatever -B is, and 4 are to be measured")
