"""Steps kept between starts: the same step comes back, anything that it depends on makes another, damage is found."""

from __future__ import annotations

import gc
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import tcomp.model.build
from tcomp.cli import common, kept_steps
from tcomp.cli.kept_steps import _Unpickler
from tcomp.codegen.cpu.compiled import kernel_key
from tcomp.dsl.files import source_texts
from tcomp.dsl.load import library, load
from tcomp.errors import UserError
from tcomp.model.request import StepRequest
from tests.cli.support import TINY, Tcomp

MODEL = """import ops.crossentropy
import parts.half

op constant(peak_lr: f32[]) -> lr: f32[]:
  lr = peak_lr

op sgd(inout p: f32[N], g: f32[N], lr: f32[]) -> w: real[N]:
  p[i] = p[i] - lr * g[i]
  w[i] = p[i]

model line(B, T):
  config small: C = 8
  param w: real[1, C] = normal(0.1)
  input x: real[B, C]
  forward:
    y = half(x, w)
    loss = mean(y as [B])
  loss loss
  logits y
  optimizer sgd:
    hyper peak_lr = 0.1
    lr by constant
"""
HALF = """op half(X: real[M, K], W: real[N, K]) -> Y: real[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k] * 0.5
"""
PARTS = "parts/half.tc"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The models that were really built, in a cache of this test alone."""
    monkeypatch.setenv("TCOMP_CACHE", str(tmp_path / "cache"))
    Path("line.tc").write_text(MODEL)
    Path("parts").mkdir()
    Path(PARTS).write_text(HALF)
    names: list[str] = []
    original = tcomp.model.build.build_step

    def build(module: Any, request: StepRequest, *args: Any, **named: Any) -> Any:
        names.append(request.model)
        return original(module, request, *args, **named)

    monkeypatch.setattr(tcomp.model.build, "build_step", build)
    return names


def step(**settings: Any) -> common.Built:
    device = common.device_for(threads=settings.pop("threads", 1))
    request = StepRequest("line.tc", "small", {"B": 2, "T": 16}, **{"recompute": "cheap", **settings})
    return common.build_step(request, device)


def test_a_second_start_has_the_same_step_without_building(built: list[str]) -> None:
    first, second = step(), step()
    assert built == ["line"]
    assert second.step == first.step and second.name == "line"
    keys = [[kernel_key(k, b.device.machine) for k in b.step.kernels.values()] for b in (first, second)]
    assert keys[0] == keys[1]


def test_garbage_is_collected_after_a_step_is_built_and_not_meanwhile(
    built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled: list[bool] = []
    build = tcomp.model.build.build_step
    monkeypatch.setattr(
        tcomp.model.build, "build_step", lambda *a, **k: enabled.append(gc.isenabled()) or build(*a, **k)
    )
    step()
    assert enabled == [False] and gc.isenabled()
    with pytest.raises(UserError):
        step(lock="missing.lock")
    assert gc.isenabled()


def test_training_goes_the_same_way(built: list[str], tcomp: Tcomp, text: str) -> None:
    losses = []
    for run in ("a", "b"):
        result = tcomp("train", *TINY, "--data", text, "--steps", "2", "--sample", "0", "--run", run)
        assert result.code == 0, result.error
        lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
        losses.append([(m.get("loss"), m.get("norm"), m.get("validation_loss")) for m in lines])
    assert built == ["gpt2"] and losses[0] == losses[1]


@pytest.mark.parametrize(
    "change",
    [{"dims": {"C": 32}}, {"accumulation": 2}, {"precision": "bf16"}, {"programs": ("forward",)},
     {"memory_limit": 10**9, "recompute": "to fit"}, {"threads": 2}, {"keep_logits": True}],
)  # fmt: skip
def test_other_settings_are_another_step(built: list[str], change: dict[str, Any]) -> None:
    step(), step(**change)
    assert len(built) == 2


def test_changed_text_is_another_step(built: list[str]) -> None:
    plain = step()
    Path(PARTS).write_text(HALF.replace("0.5", "0.25"))  # an imported file, of the same length
    changed = step()
    Path("ops").mkdir()  # a file beside the model's comes before the library's of the same name
    Path("ops/crossentropy.tc").write_text("op mean(X: real[M]) -> y: f32[]:\n  y = sum m: X[m]\n")
    other = step()
    assert len(built) == 3 and step().step == other.step and len(built) == 3
    assert len({repr(b.step.kernels) for b in (plain, changed, other)}) == 3


def test_a_changed_compiler_is_another_step(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    step()
    monkeypatch.setattr(kept_steps, "compiler_digest", lambda: "another")
    step()
    assert len(built) == 2


def test_a_lockfile_counts_by_its_content(built: list[str], tmp_path: Path) -> None:
    machine = common.device_for(threads=1).machine.name
    lock = tmp_path / f"line.{machine}.lock"
    text = f'format = 1\nmodel = "line"\nmachine = "{machine}"\nsteps = []\n'
    for content in (text, text, text + "# tuned again\n"):
        lock.write_text(content)
        assert step().lock == lock
    assert len(built) == 2


def test_what_does_not_fit_is_refused_as_before(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    step()
    monkeypatch.setattr("tcomp.runtime.device.memory_here", lambda: 100)
    with pytest.raises(common.UserError, match=r"needs .+ of memory"):
        step()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "other"])
def test_a_damaged_entry_is_built_again(
    damage: str, built: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = step()
    (entry,) = (tmp_path / "cache" / "steps").glob("*.step")
    content = entry.read_bytes()
    cache, name = kept_steps.ContentCache(entry.parent, kind="step-1", suffix=".step"), entry.stem
    match damage:
        case "cut":
            entry.write_bytes(content[:-5])
        case "flipped":
            entry.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
        case "empty":
            entry.write_bytes(b"")
        case "foreign":  # sound by its checksum, and would run a command if it were unpickled without care
            cache.store(name, pickle.dumps(Foreign()))
        case "other":
            cache.store(name, pickle.dumps(first.step))
    again = step()
    assert built == ["line"] * 2 and again.step == first.step
    assert not (tmp_path / "ran").exists() and capsys.readouterr().err == ""
    assert step().step == first.step and len(built) == 2  # the entry has been replaced


class Foreign:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("name", ["tcomp.cli.kept_steps\nPath", "tcomp.runtime.cpu.prefault\nThread", "pathlib\nPath"])
def test_an_entry_makes_classes_of_tcomp_only(name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"no (class of tcomp|part of a step)"):
        _Unpickler(io.BytesIO(f"c{name}\n.".encode())).load()


def test_a_step_whose_text_changes_while_it_is_built_is_not_kept(
    built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = common.load_module

    def load_changed(*args: Any) -> Any:
        Path(PARTS).write_text(HALF.replace("0.5", "0.25"))
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(common, "load_module", load_changed)
        changed = step()
    Path(PARTS).write_text(HALF)
    assert step().step != changed.step and len(built) == 2


def test_a_cache_that_cannot_be_written_is_done_without(built: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "steps").write_text("a file where the folder would be")
    assert step().step == step().step and len(built) == 2


@pytest.mark.parametrize("name", ["gpt2.tc", "llama.tc"])
def test_the_key_knows_every_text_that_is_read(name: str) -> None:
    assert source_texts(library() / name).keys() >= set(load(library() / name).sources)
