"""Files of examples: each once an epoch, as the model's inputs take them; what they do not take is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.model.unroll import build_graph
from tcomp.runtime.batches import Stream
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.data import TokenData, data_for
from tcomp.runtime.evaluate import label_of
from tcomp.runtime.examples import ExampleData, Input, open_examples
from tcomp.runtime.roofline import ready
from tcomp.runtime.values import values

INPUTS = {
    "x": Input(DType.F32, (4, 3), 0),
    "low": Input(DType.BF16, (4,), 0),
    "label": Input(DType.I32, (4, 2), 10),
}


def tensors(first: int, count: int, **other: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Examples whose number is in each tensor."""
    numbers = np.arange(first, first + count)
    own = {
        "x": np.repeat(numbers[:, None], 3, 1).astype(np.float64),
        "low": numbers.astype(np.float16),
        "label": np.stack([numbers % 10, numbers // 10], 1).astype(np.int64),
        "further": np.zeros(1, np.float32),
    }
    return own | other


def save(path: Path, first: int, count: int, **other: Any) -> Path:
    save_file({n: t for n, t in tensors(first, count, **other).items() if t is not None}, path)
    return path


def drawn(stream: Stream, batches: int) -> list[int]:
    """The numbers of examples, which all inputs agree on."""
    found: list[int] = []
    for _ in range(batches):
        x, low, label = np.zeros((4, 3), np.float32), np.zeros(4, np.uint16), np.zeros((4, 2), np.int32)
        stream.fill({"x": x, "low": low, "label": label})
        numbers = x[:, 0]
        assert (x == numbers[:, None]).all() and (values(low, DType.BF16) == numbers).all()
        assert (label @ [1, 10] == numbers).all()
        found += numbers.astype(int).tolist()
    return found


def test_an_epoch_has_each_example_once_from_all_files(tmp_path: Path) -> None:
    data = open_examples([save(tmp_path / "a.safetensors", 0, 29), save(tmp_path / "b.safetensors", 29, 45)], INPUTS, 4)
    stream = data.training_batches(3)
    assert stream.count == 28 + 43 and data.description == "74 examples of 2 files"
    assert sorted(drawn(data.validation_batches(), 1)) == [28, 28, 72, 73], "and then the first of the next epoch"
    first = drawn(stream, 18)
    assert sorted(first[:71]) == [n for n in range(74) if n not in (28, 72, 73)]
    later = data.training_batches(3)
    later.state = stream.state
    assert drawn(stream, 20) == drawn(later, 20) != drawn(data.training_batches(4), 20)


@pytest.mark.parametrize(("to_train", "counts"), [(True, (17, 6)), (False, (17, 6))])
def test_validation_files(tmp_path: Path, to_train: bool, counts: tuple[int, int]) -> None:
    paths = [save(tmp_path / "train.safetensors", 0, 17), save(tmp_path / "val.safetensors", 17, 6)]
    data = open_examples(paths, INPUTS, 4, to_train)
    assert (data.training_batches(1).count, data.validation_batches().count) == counts
    assert open_examples(paths[1:], INPUTS, 4, to_train=False).validation_batches().count == 6
    assert open_examples(paths[1:], INPUTS, 4).validation_batches().count == 1
    assert open_examples(paths[1:], INPUTS, 4).fingerprint != data.fingerprint
    twice = open_examples([paths[1], *paths], INPUTS, 4, to_train)
    assert (twice.training_batches(1).count, twice.validation_batches().count) == (17, 12)


def test_a_file_that_becomes_the_validation_part_is_other_data(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{name}.safetensors", 9 * at, 9) for at, name in enumerate("ab")]
    before = open_examples(paths, INPUTS, 4).fingerprint
    assert open_examples([paths[0], paths[1].rename(tmp_path / "val.safetensors")], INPUTS, 4).fingerprint != before


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64])
def test_integers_of_each_type(tmp_path: Path, kind: Any) -> None:
    label = tensors(0, 29)["label"].astype(kind)
    path = save(tmp_path / "a.safetensors", 0, 29, label=label, further=np.zeros(1, np.uint16))
    drawn(open_examples([path], INPUTS, 4).training_batches(1), 2)
    with pytest.raises(UserError, match=r"'label' has 100 at \[0, 0\], where the model takes 0 to 9"):
        open_examples([save(tmp_path / "b.safetensors", 0, 29, label=np.full((29, 2), 100, kind))], INPUTS, 4)


def test_which_paths_are_files_of_examples(tmp_path: Path) -> None:
    file, text = save(tmp_path / "a.safetensors", 0, 29), tmp_path / "a.txt"
    text.write_text("abc" * 99)
    words = {n: Input(DType.I32, (4, 8), 256) for n in ("tokens", "targets")}
    assert isinstance(data_for([tmp_path], INPUTS, 4, 8, 256), ExampleData)
    assert isinstance(data_for([text], words, 4, 8, 256), TokenData)
    pairs = {n: np.ones((5, 8), np.uint8) for n in words}
    save_file(pairs, tmp_path / "words.safetensors")
    assert isinstance(data_for([tmp_path / "words.safetensors"], words, 4, 8, 256), ExampleData)
    labelled = words | {"targets": Input(DType.I32, (4,), 2)}
    with pytest.raises(UserError, match=r"no \.safetensors file, and the model takes tokens, targets") as refused:
        data_for([text], labelled, 4, 8, 2)
    assert "targets: i32[examples] below 2" in refused.value.hint
    for paths in ([], [text], [file, text]):
        with pytest.raises(UserError, match=r"no \.safetensors file") as refused:
            data_for(paths, INPUTS, 4, 8, 256)
        assert "x: f32[examples, 3], low: bf16[examples], label: i32[examples, 2] below 10" in refused.value.hint


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": None}, "it has no tensor 'x', but further, label, low"),
        ({"x": np.zeros((20, 4), np.float32)}, r"its tensor 'x' is F32\[20, 4\]"),
        ({"x": np.zeros((20, 3), np.int32)}, r"its tensor 'x' is I32\[20, 3\]"),
        ({"x": np.zeros((), np.float32)}, r"its tensor 'x' is F32\[\]"),
        ({"label": np.zeros((20, 2), np.float32)}, r"its tensor 'label' is F32\[20, 2\]"),
        ({"low": np.zeros(19, np.float32)}, "its tensors have examples 20 of 'x', 19 of 'low', 20 of 'label'"),
        ({"label": np.full((20, 2), 10, np.int8)}, r"'label' has 10 at \[0, 0\], where the model takes 0 to 9"),
        ({"label": np.eye(20, 2, -7, np.int64) * -1}, r"'label' has -1 at \[7, 0\], where the model takes 0 to 9"),
    ],
)
def test_what_the_model_does_not_take_is_named(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.safetensors: {message}") as refused:
        open_examples([save(tmp_path / "a.safetensors", 0, 20, **other)], INPUTS, 4)
    assert refused.value.hint


def test_what_cannot_be_trained_on_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 example, where one is to be trained on and one validated on"):
        open_examples([save(tmp_path / "a.safetensors", 0, 1)], INPUTS, 4)
    with pytest.raises(UserError, match=r"input 'mask' of the model is f32\[8\] with B = 4, not a row for each"):
        open_examples([tmp_path / "a.safetensors"], INPUTS | {"mask": Input(DType.F32, (8,), 0)}, 4)
    (tmp_path / "b.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(UserError, match=r"b\.safetensors: not a whole safetensors file"):
        open_examples([tmp_path / "b.safetensors"], INPUTS, 4)


def test_a_step_of_other_inputs_can_be_timed(objects: Path) -> None:
    """As `tcomp roofline --measure` and finals of `tcomp tune` do."""
    text = """
op pick(x: bf16[B, C], at: i32[B]) -> y: f32[]:
  y = sum b: x[b, at[b]]

model picking(B):
  config one: C = 3
  input x: bf16[B, C]
  input at: i32[B] below C
  input unused: i32[B]
  forward:
    loss = pick(x, at)
  loss loss
"""
    step = build_step(load_text(text), StepRequest("picking", "one", {"B": 5}, programs=("forward",)), detect(), 1)
    executor = CpuExecutor(step, detect(), 1, objects)
    ready(executor, 1)
    executor.run("forward")
    picked = np.take_along_axis(values(executor.read("x"), DType.BF16), executor.read("at")[:, None], 1)
    assert executor.read("loss") == pytest.approx(picked.sum(), rel=1e-5)
    executor.close()


def test_what_says_the_right_class_is_read_beside_the_logits() -> None:
    text = """
op score(x: f32[B, C]) -> Y: f32[B, C]:
  Y[b, c] = x[b, c] * x[b, c]

op wrong(scores: f32[B, C], label: i32[B]) -> losses: f32[B]:
  losses[b] = 1.0 - scores[b, label[b]]

op total(X: f32[B]) -> y: f32[]:
  y = sum b: X[b]

model classes(B):
  config one: C = 3
  input x: f32[B, C]
  input weight: i32[B] below 2
  input label: i32[B] below C
  forward:
    scores = score(x)
    losses = wrong(scores, label)
    loss = total(losses)
  loss loss
  logits scores
"""

    def label(text: str) -> str | None:
        return label_of(build_graph(load_text(text), "classes", "one", {"B": 5}))

    assert label(text) == "label"
    assert label(text.replace("  logits scores\n", "")) is None
    assert label(text.replace("logits scores", "logits losses")) is None
    both = text.replace("label: i32[B])", "label, weight: i32[B])")
    both = both.replace("1.0 - ", "f32(weight[b]) - ").replace("(scores, label)", "(scores, label, weight)")
    assert label(both) is None, "which of the two it is nobody knows"
