"""What the programs under measurement share: weights and batches that read back as written, the same schedule."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.load import load
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.oracle import evaluate
from tcomp.runtime.bench.build import workload_of, write_folder
from tcomp.runtime.bench.counterparts import check_counterpart
from tcomp.runtime.bench.workload import BATCHES, Weights, Workload, learning_rate, load as load_workload, read_batches

GPT2 = Path(__file__).resolve().parents[3] / "models" / "gpt2.tc"
SMALL = {"L": 2, "H": 2, "C": 16, "V": 61, "S": 16}


REQUEST = StepRequest("gpt2", "tiny", {"B": 2, "T": 8}, dims=SMALL, precision="f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("workload")
    request = REQUEST
    step = build_step(load(GPT2), request, detect())
    write_folder(workload_of(step, request), step, place)
    return place


@pytest.fixture(scope="module")
def workload(folder: Path) -> Workload:
    return load_workload(folder)


def test_the_workload_says_what_the_model_is(workload: Workload) -> None:
    assert workload.dims["C"] == 16 and workload.tokens == 16 and workload.vocabulary == 61
    assert workload.hyper["peak_lr"] == 6e-4 and workload.hyper["matrices.weight_decay"] == 0.1
    assert workload.request == REQUEST
    groups = {p.name: p.group for p in workload.parameters}
    assert groups["qkv_w"] == "matrices" and groups["ln1_b"] == "vectors"


def test_weights_are_those_that_the_model_declares(workload: Workload, folder: Path) -> None:
    weights = Weights(workload, folder)
    assert weights.path.stat().st_size == sum(p.bytes for p in workload.parameters)
    read = {p.name: np.empty(p.shape, np.float32) for p in workload.parameters}
    for name, array in read.items():
        weights.read(name, [array])
        last = np.empty(array.size // 3, np.float32)
        weights.read(name, [last], array.size - last.size)
        np.testing.assert_array_equal(last, array.reshape(-1)[array.size - last.size :])
    assert (read["ln1_w"] == 1).all() and not read["qkv_b"].any()
    assert read["wte"].std() == pytest.approx(0.02, rel=0.1)
    assert read["proj_w"].std() == pytest.approx(0.02 / 2, rel=0.2)
    layers = [np.empty(read["qkv_w"].shape[1:], np.float32) for _ in range(2)]
    weights.read("qkv_w", layers)
    np.testing.assert_array_equal(np.stack(layers), read["qkv_w"])


def test_targets_are_the_tokens_one_place_on(workload: Workload, folder: Path) -> None:
    batches = read_batches(workload, folder)
    assert len(batches) == BATCHES
    for tokens, targets in batches:
        np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])
        assert tokens.min() >= 0 and tokens.max() < 61


@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 57, 100, 101, 500])
def test_the_learning_rate_is_the_model_texts(step: int) -> None:
    module = load(GPT2)
    hyper = {"peak_lr": 3e-4, "final_lr": 0.2, "warmup": 10.0, "total": 100.0}
    inputs = {n: np.array(v) for n, v in {**hyper, "step": step}.items()}
    expected = float(evaluate(module.ops["cosine"], module, inputs, {})["lr"])
    assert math.isclose(learning_rate(hyper, step), expected, rel_tol=1e-12)


def test_a_model_without_a_counterpart_is_refused() -> None:
    check_counterpart("gpt2")
    with pytest.raises(UserError, match="no PyTorch counterpart of model 'mine'"):
        check_counterpart("mine")


def test_without_torch_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed(.|\n)*tcomp\[torch\]"):
        check_counterpart("gpt2")
