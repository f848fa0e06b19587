"""Checkpoints: a folder per step, holding tensors.safetensors and manifest.json, whole or not there at all.

Both files are written under a temporary folder name, flushed to disk, and the folder is renamed; only then
are older ones removed. Tensors are streamed from the device piece by piece, so saving needs no second copy of them.
The manifest holds what else the next step depends on (step, data position, seeds) and a checksum of
everything, so that a torn or damaged checkpoint is recognised and the one before it is used.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcomp.dsl.dims import Number
from tcomp.errors import UserError
from tcomp.runtime.cache import sync_folder
from tcomp.runtime.documents import check_regular, parse_json, read_small
from tcomp.runtime.safetensors_file import CONVERTIBLE, PIECE, Array, Entry, Stored, as_floats, read_header, write_file

FORMAT = 1
TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Manifest:
    """`step` steps were done. `data` is the batch stream's (epoch, position)."""

    step: int
    model: str
    config: str
    dims: dict[str, Number]
    hyper: dict[str, float]
    seed: int
    data: tuple[int, int]
    data_fingerprint: str
    metrics: dict[str, float]
    version: str
    precision: str = "f32"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose manifest and checksums have been verified."""

    folder: Path
    manifest: Manifest

    def tensors(self) -> dict[str, Entry]:
        """Every tensor, from the file's header."""
        return read_header(self.folder / TENSORS)

    def trained(self) -> set[str]:
        """The parameters that the optimizer keeps anything for."""
        parts = (tensor.split(".") for tensor in self.tensors())
        return {p[2] for p in parts if p[0] == "state" and len(p) == 3}

    def kept(self, parameters: Collection[str], state: str) -> dict[str, str]:
        """Of each of the parameters that are trained the tensor of its shape that the optimizer keeps as its `state`,
        such as an average. UserError where it keeps none for some of them."""
        held = self.tensors()
        found: dict[str, dict[str, str]] = {}
        for tensor, entry in held.items():
            match tensor.split("."):
                case ["state", kind, name] if name in parameters and entry.shape == held[name].shape:
                    found.setdefault(kind, {})[name] = tensor
        own = found.get(state, {})
        lacking = [name for name in parameters if name not in own]
        if own and not lacking:
            return own
        if own:
            raise UserError(
                f"{self.folder}: the optimizer keeps '{state}' for {len(own)} of {len(parameters)} "
                f"parameters, not for {', '.join(lacking)}",
                f"let the op of every group keep it (`inout {state}: f32[N]`), or name a state of all",
            )
        raise UserError(
            f"{self.folder}: the optimizer keeps no state '{state}' of its parameters' shapes",
            f"it keeps: {', '.join(sorted(found))}" if found else "name a run that `tcomp train` made: this has none",
        )

    def parameters(self, names: Iterable[str], kind: str | None) -> dict[str, Entry]:
        """The named parameters: their master copies where there are such and another type than the parameters' own is
        asked for. UserError when one is missing."""
        held = self.tensors()
        found = {}
        for name in names:
            if name not in held:
                raise UserError(
                    f"{self.folder}: it has no tensor {name!r}: a checkpoint of another model",
                    "take a checkpoint of this model, or the model that it is of",
                )
            own = held[name]
            found[name] = held.get(f"master.{name}", own) if kind not in (None, own.kind) else own
        return found

    def check(self, wanted: Mapping[str, Stored], convert: bool = False) -> dict[str, Entry]:
        """The entries of the named tensors; UserError when one is missing or of another shape or type. With `convert`
        the type may be another one of those that weights are stored in."""
        header = self.tensors()
        for name, tensor in wanted.items():
            if name not in header:
                raise UserError(
                    f"{self.folder}: it has no tensor {name!r}: a checkpoint of another model",
                    "take a checkpoint of this model, or the model that it is of",
                )
            entry = header[name]
            same = entry.kind == tensor.kind or (convert and entry.kind in CONVERTIBLE)
            if entry.shape != tensor.shape or not same:
                raise UserError(
                    f"{self.folder}: tensor {name!r} is {entry.kind}{list(entry.shape)}, the model has "
                    f"{tensor.kind}{list(tensor.shape)}: a checkpoint of another model or config",
                    "leave out the --dim, --config, -B or -T that differs, or name a checkpoint of this model",
                )
        return {name: header[name] for name in wanted}

    def load(self, wanted: Mapping[str, Stored], write: Callable[[str, Array], None]) -> None:
        """Give the named tensors to `write`, one by one; UserError as `check`."""
        for name, entry in self.check(wanted).items():
            write(name, _read(entry))

    def values(self, name: str) -> Array:
        """A tensor of weights as floats: f32 where it is stored narrower."""
        entry = self.tensors()[name]
        held = _read(entry)
        return as_floats(held, entry.kind) if entry.kind in CONVERTIBLE else held


def _read(entry: Entry) -> Array:
    return entry.read().reshape(entry.shape)


def checkpoints_folder(run: Path) -> Path:
    return run / "checkpoints"


def save(run: Path, manifest: Manifest, tensors: Mapping[str, Stored], keep: int = 2) -> Path:
    """Write a checkpoint of `tensors`, then remove all but the newest `keep` up to it.

    UserError when it cannot be written (a full disk, say); checkpoints already there are left as they were.
    """
    base = checkpoints_folder(run)
    final = base / f"step-{manifest.step:06d}"
    partial = base / f"{_PARTIAL}{manifest.step:06d}"
    try:
        base.mkdir(parents=True, exist_ok=True)
        _remove_partial(base)
        partial.mkdir()
        checks = write_file(partial / TENSORS, tensors)
        _write_manifest(partial / MANIFEST, manifest, checks)
        sync_folder(partial)
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
        sync_folder(base)
    except OSError as e:
        shutil.rmtree(partial, ignore_errors=True)
        old = _steps(base)
        kept = f"{old[-1].name} is kept" if old else "there is no earlier one"
        raise UserError(
            f"cannot save the checkpoint of step {manifest.step} in {base}: {e.strerror or e}; {kept}",
            "free some disk space, then continue with: tcomp train --resume " + str(run),
        ) from e
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # Later steps than this one are damaged checkpoints that a resumed run passed over: they do not count.
    steps = _steps(base)
    for old_folder in steps[: steps.index(final) + 1][:-keep]:
        shutil.rmtree(old_folder, ignore_errors=True)
    return final


def newest(run: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The newest whole checkpoint of a run; damaged ones are passed over with a warning.

    UserError when the run has none.
    """
    base = checkpoints_folder(run)
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder", "a run folder is what `tcomp train` made, such as runs/gpt2")
    folders = _steps(base)
    if not folders:
        raise UserError(f"{run}: no checkpoint in it", "name the folder of a run that has saved at least once")
    damage: list[str] = []
    for folder in reversed(folders):
        try:
            found = verify(folder)
        except UserError as e:
            damage.append(e.message)
            continue
        for text in damage:
            warn(f"{text}; using the checkpoint before it, {found.folder.name}")
        return found
    raise UserError(f"{run}: no usable checkpoint:\n  " + "\n  ".join(damage), "start a new run")


def any_saved(run: Path) -> bool:
    """Whether the run has ever got as far as a checkpoint, whole or not."""
    return bool(_steps(checkpoints_folder(run)))


def verify(folder: Path) -> Checkpoint:
    """Open a checkpoint folder, checking every byte of it; UserError says what is wrong."""
    try:
        outer = parse_json(read_small(folder / MANIFEST))
        body, check = outer["manifest"], outer["crc32"]
    except OSError as e:
        raise UserError(f"{folder}: {MANIFEST}: {e.strerror or e}", "name a run that tcomp trained or imported") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{folder}: {MANIFEST} is damaged: not the JSON that tcomp writes",
            "restore the file from a copy, or start a new run",
        ) from e
    if zlib.crc32(_canonical(body)) != check:
        raise UserError(
            f"{folder}: {MANIFEST} is damaged: its checksum does not match",
            "restore the file from a copy, or start a new run",
        )
    try:
        if body["format"] != FORMAT:
            raise UserError(
                f"{folder}: checkpoint format {body['format']}, this tcomp reads format {FORMAT}",
                "use the tcomp that wrote it, or start a new run",
            )
        manifest, size, tensors_check = _manifest(body), int(body["bytes"]), int(body["tensors_crc32"])
    except (ValueError, KeyError, TypeError) as e:
        what = f"it has no {e}" if isinstance(e, KeyError) else e
        raise UserError(
            f"{folder}: {MANIFEST} is damaged: {what}", "restore the file from a copy, or start a new run"
        ) from e
    _verify_tensors(folder / TENSORS, size, tensors_check)
    return Checkpoint(folder, manifest)


def _manifest(body: dict[str, Any]) -> Manifest:
    """KeyError, TypeError or ValueError for what no Manifest has been written as."""
    for name, right in _WRITTEN.items():
        if not right(body.get(name, "f32") if name == "precision" else body[name]):  # older ones are f32
            raise ValueError(f"it gives as {name!r} what it cannot be")
    fields = {k: body[k] for k in _WRITTEN if k in body}
    return Manifest(**{**fields, "data": tuple(fields["data"])})


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _texts(value: object) -> bool:
    return isinstance(value, str)


def _numbers(value: object) -> bool:
    return isinstance(value, dict) and all(type(v) in (int, float) for v in value.values())


_WRITTEN: dict[str, Callable[[object], bool]] = {
    "step": _whole, "model": _texts, "config": _texts, "dims": _numbers, "hyper": _numbers, "seed": _whole,
    "data": lambda v: isinstance(v, list) and len(v) == 2 and all(map(_whole, v)), "data_fingerprint": _texts,
    "metrics": _numbers, "version": _texts, "precision": _texts,
}  # fmt: skip
"""Field of a Manifest -> whether it can be what a file has there."""


def check_same_model(
    checkpoint: Checkpoint, model: str, config: str, dims: Mapping[str, Number], precision: str
) -> None:
    """UserError when the checkpoint is of another model, config, size or precision."""
    have = checkpoint.manifest
    if have.model != model or have.config != config:
        raise UserError(
            f"{checkpoint.folder}: a checkpoint of {have.model} {have.config}, not of {model} {config}",
            f"use --config {have.config} with the model {have.model}",
        )
    if have.precision != precision:
        raise UserError(
            f"{checkpoint.folder}: trained with precision {have.precision}, not {precision}",
            f"go on with --precision {have.precision}, or start a new run",
        )
    for name, value in dims.items():
        if name in have.dims and have.dims[name] != value:
            raise UserError(
                f"{checkpoint.folder}: made with {name} = {have.dims[name]}, this model has {value}",
                "go on with the run's own sizes, or start a new run",
            )


def _steps(base: Path) -> list[Path]:
    return sorted(base.glob("step-*"), key=lambda p: (len(p.name), p.name)) if base.is_dir() else []


def _remove_partial(base: Path) -> None:
    for left in base.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def _write_manifest(path: Path, manifest: Manifest, checks: tuple[int, int]) -> None:
    body = {"format": FORMAT, **asdict(manifest), "bytes": checks[0], "tensors_crc32": checks[1]}
    with open(path, "wb") as out:
        out.write(json.dumps({"manifest": body, "crc32": zlib.crc32(_canonical(body))}, indent=1).encode())
        out.flush()
        os.fsync(out.fileno())


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _verify_tensors(path: Path, size: int, check: int) -> None:
    try:
        check_regular(path)
        found = path.stat().st_size
        if found != size:
            raise UserError(
                f"{path.parent}: {path.name} is {'truncated' if found < size else 'too long'}: {found} bytes of {size}",
                "restore the file from a copy, or start a new run",
            )
        crc = 0
        with open(path, "rb") as f:
            while block := f.read(PIECE):
                crc = zlib.crc32(block, crc)
    except OSError as e:
        raise UserError(
            f"{path.parent}: {path.name}: {e.strerror or e}", "restore the file from a copy, or start a new run"
        ) from e
    if crc != check:
        raise UserError(
            f"{path.parent}: {path.name} is damaged: its checksum does not match",
            "restore the file from a copy, or start a new run",
        )
