"""Checkpoints: whole or not there; damage is recognised; the newest whole one is found."""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tcomp.errors import UserError
from tcomp.runtime import checkpoint, safetensors_file
from tcomp.runtime.checkpoint import Manifest, Stored, check_same_model, newest, save, verify

ARRAYS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "state.m.w": np.ones((3, 4), np.float32),
    "n": np.array([1, -2], np.int32),
    "half": np.array([0x3F80, 0xC000], np.uint16),  # bf16, as its bits
}


def stored(array: np.ndarray[Any, Any], piece: int = 1 << 20) -> Stored:
    flat = array.reshape(-1)
    kind = next(kind for kind, dtype in safetensors_file.KINDS.items() if dtype == array.dtype)
    return Stored(kind, array.shape, lambda: (flat[at : at + piece] for at in range(0, flat.size, piece)))


TENSORS = {name: stored(array) for name, array in ARRAYS.items()}


def ignore(name: str, value: object) -> None:
    pass


def manifest(step: int) -> Manifest:
    return Manifest(step, "gpt2", "tiny", {"B": 2, "L": 1}, {"lr": 0.1}, 1, (0, 5), "abc", {"loss": 2.5}, "0.1.0")


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_a_checkpoint_reads_back_bitwise(tmp_path: Path) -> None:
    folder = save(tmp_path, manifest(7), TENSORS)
    found = newest(tmp_path, no_warning)
    assert found.manifest == manifest(7) and found.folder == folder
    into: dict[str, Any] = {}
    found.load(TENSORS, into.__setitem__)
    assert set(into) == set(ARRAYS)
    assert all((into[n] == a).all() and into[n].shape == a.shape for n, a in ARRAYS.items())


def test_a_tensor_may_come_in_pieces(tmp_path: Path) -> None:
    whole = save(tmp_path / "a", manifest(1), TENSORS)
    pieces = save(tmp_path / "b", manifest(1), {name: stored(array, 5) for name, array in ARRAYS.items()})
    for file in ("tensors.safetensors", "manifest.json"):
        assert (whole / file).read_bytes() == (pieces / file).read_bytes()


def test_tensors_are_a_plain_safetensors_file(tmp_path: Path) -> None:
    known = {n: a for n, a in ARRAYS.items() if n != "half"}  # NumPy has no bf16
    folder = save(tmp_path, manifest(7), {n: TENSORS[n] for n in known})
    found = load_file(folder / "tensors.safetensors")
    assert set(found) == set(known) and all((found[n] == a).all() for n, a in known.items())


def test_old_checkpoints_are_pruned_after_the_new_one_is_there(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, manifest(step), TENSORS, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def damage_truncate(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    os.truncate(path, path.stat().st_size - 5)


def damage_flip(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def damage_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"seed": 1', '"seed": 2'))


def damage_torn_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 40)


def damage_missing(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def damage_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


DAMAGES = {
    damage_truncate: "truncated",
    damage_flip: "checksum does not match",
    damage_manifest: "manifest.json is damaged: its checksum",
    damage_torn_manifest: "manifest.json is damaged: not the JSON",
    damage_missing: "tensors.safetensors: No such file",
    damage_no_manifest: "manifest.json: No such file",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, damage: Any) -> None:
    save(tmp_path, manifest(1), TENSORS)
    damage(save(tmp_path, manifest(2), TENSORS))
    with pytest.raises(UserError, match=DAMAGES[damage]):
        verify(tmp_path / "checkpoints" / "step-000002")
    warnings: list[str] = []
    assert newest(tmp_path, warnings.append).manifest.step == 1
    assert len(warnings) == 1 and DAMAGES[damage].split(":")[0] in warnings[0]


def test_no_whole_checkpoint_left(tmp_path: Path) -> None:
    damage_flip(save(tmp_path, manifest(1), TENSORS))
    damage_truncate(save(tmp_path, manifest(2), TENSORS))
    with pytest.raises(UserError, match="no usable checkpoint") as e:
        newest(tmp_path, lambda text: None)
    assert "truncated" in str(e.value) and "checksum" in str(e.value)


def test_no_run_folder_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        newest(tmp_path / "missing", no_warning)
    with pytest.raises(UserError, match="no checkpoint in it"):
        newest(tmp_path, no_warning)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, manifest(1), TENSORS)
    outer = json.loads((folder / "manifest.json").read_text())
    outer["manifest"]["format"] = 99
    outer["crc32"] = checkpoint.zlib.crc32(checkpoint._canonical(outer["manifest"]))
    (folder / "manifest.json").write_text(json.dumps(outer))
    with pytest.raises(UserError, match="format 99"):
        verify(folder)


def test_another_models_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, manifest(1), TENSORS)
    found = newest(tmp_path, no_warning)
    check_same_model(found, "gpt2", "tiny", {"L": 1}, "f32")
    with pytest.raises(UserError, match="a checkpoint of gpt2 tiny, not of llama 1B"):
        check_same_model(found, "llama", "1B", {}, "f32")
    with pytest.raises(UserError, match="made with L = 1, this model has 4"):
        check_same_model(found, "gpt2", "tiny", {"L": 4}, "f32")
    with pytest.raises(UserError, match="'w' is F32\\[3, 4\\], the model has F32\\[2, 2\\]"):
        found.load({"w": stored(np.zeros((2, 2), np.float32))}, ignore)
    with pytest.raises(UserError, match="no tensor 'other'"):
        found.load({"other": stored(np.zeros(2, np.float32))}, ignore)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    save(tmp_path, manifest(1), TENSORS)
    real_open, written = open, 0

    class Full:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.inner.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def write(self, data: Any) -> int:
            nonlocal written
            written += 1
            if written > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.inner.write(data))

    for module in (checkpoint, safetensors_file):
        monkeypatch.setattr(module, "open", lambda *a: Full(real_open(*a)), raising=False)
    with pytest.raises(UserError, match="No space left on device; step-000001 is kept") as e:
        save(tmp_path, manifest(2), TENSORS, keep=1)
    assert "tcomp train --resume" in e.value.hint
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert newest(tmp_path, no_warning).manifest.step == 1


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".partial-000009").mkdir(parents=True)
    save(tmp_path, manifest(1), TENSORS)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", None), ("step", None), ("step", "x"), ("step", -1), ("step", float("nan")), ("step", 1 << 63),
        ("data", 3), ("data", [1]), ("data", [-1, 0]), ("data", ["a", "b"]), ("dims", []), ("dims", {"L": "x"}),
        ("hyper", 5), ("metrics", [1]), ("model", 3), ("seed", "x"), ("precision", 7), ("version", []),
        ("data_fingerprint", 3), ("bytes", None), ("bytes", "x"), ("tensors_crc32", None),
    ],
)  # fmt: skip
def test_a_manifest_of_another_making_is_damage(tmp_path: Path, field: str, value: object) -> None:
    """With a checksum that is right: whoever made it made that as well. None leaves the field out."""
    folder = save(tmp_path, manifest(7), TENSORS)
    body = json.loads((folder / "manifest.json").read_text())["manifest"]
    body[field] = value
    if value is None:
        del body[field]
    check = zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    (folder / "manifest.json").write_text(json.dumps({"manifest": body, "crc32": check}))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        verify(folder)


def test_what_the_optimizer_keeps_may_take_the_parameters_place(tmp_path: Path) -> None:
    """A tensor of each parameter's shape: not of some of them, nor a number for each."""
    zeros = {"v": (2,), "state.m.v": (2,), "state.a.w": (3, 4), "state.r.w": (1,), "state.r.v": (1,)}
    tensors = TENSORS | {n: stored(np.zeros(shape, np.float32)) for n, shape in zeros.items()}
    found = verify(save(tmp_path, manifest(7), tensors))
    assert found.kept(["w", "v"], "m") == {"w": "state.m.w", "v": "state.m.v"}
    assert found.trained() == {"v", "w"}
    assert found.kept(["w"], "a") == {"w": "state.a.w"}, "what is frozen is not asked for"
    with pytest.raises(UserError, match="keeps 'a' for 1 of 2 parameters, not for v"):
        found.kept(["w", "v"], "a")
    for unknown in ("r", "n", ""):
        with pytest.raises(UserError, match=r"no state '.?' of its parameters' shapes") as refused:
            found.kept(["w", "v"], unknown)
        assert refused.value.hint == "it keeps: a, m"
    with pytest.raises(UserError) as refused:
        found.kept(["half"], "m")
    assert "name a run that `tcomp train` made" in refused.value.hint
    with pytest.raises(UserError, match="no state 'm'"):
        found.kept([], "m")
