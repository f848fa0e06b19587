"""Examples that are no text: safetensors files whose tensors have the names of a model's inputs, an example a row.

    input x: f32[B, 28, 28]             x: F32 [60000, 28, 28]
    input label: i32[B] below 10        label: I64 [60000], all from 0 to 9

Files are memory-mapped. Shapes, types and every integer are held against the inputs before a run begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import DType
from tcomp.errors import UserError
from tcomp.runtime.batches import Stream
from tcomp.runtime.safetensors_file import KIND_OF, KINDS, PIECE, REAL_KINDS, Entry, read_header
from tcomp.runtime.values import store, values

Array = NDArray[Any]
SUFFIX = ".safetensors"
_INTEGERS = ("I32", "I64", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL")
_SAMPLE = 1 << 16
"""Bytes of a tensor's beginning and end that tell it from another."""


class Shaped(Protocol):
    """A slot of a step, or a tensor of a graph."""

    @property
    def dtype(self) -> DType: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Input:
    """What a model takes under a name: type and `shape` of a batch's tensor, and what integers are below (0: any)."""

    dtype: DType
    shape: tuple[int, ...]
    below: int

    def __str__(self) -> str:
        """`i32[examples, 4] below 10`"""
        extents = ", ".join(["examples", *map(str, self.shape[1:])])
        return f"{self.dtype}[{extents}]" + (f" below {self.below}" if self.below else "")


Inputs = Mapping[str, Input]


def inputs_of(tensors: Mapping[str, Shaped], bounds: Mapping[str, int]) -> dict[str, Input]:
    """The inputs of a step (slots and bounds) or of a graph."""
    return {name: Input(tensors[name].dtype, tensors[name].shape, below) for name, below in bounds.items()}


def described(inputs: Inputs) -> str:
    """`x: f32[examples, 28, 28], label: i32[examples] below 10`"""
    return ", ".join(f"{name}: {i}" for name, i in inputs.items())


@dataclass(frozen=True)
class Part:
    """Examples `start` to `stop` of one file's tensors, which are as they lie in the file."""

    entries: Mapping[str, Entry]
    arrays: Mapping[str, Array]
    start: int
    stop: int


class Examples(Stream):
    """Examples of `parts`, each once an epoch."""

    def __init__(self, parts: list[Part], inputs: Inputs, seed: int) -> None:
        self.parts, self.inputs = parts, inputs
        super().__init__(seed)

    def _lay_out(self) -> None:
        self.count = sum(p.stop - p.start for p in self.parts)

    def _put(self, number: int, arrays: Mapping[str, Array], row: int) -> None:
        for part in self.parts:
            if number < part.stop - part.start:
                break
            number -= part.stop - part.start
        at = part.start + number
        for name, array in arrays.items():
            kind, dtype = part.entries[name].kind, self.inputs[name].dtype
            held, out = part.arrays[name][at : at + 1], array[row : row + 1]
            if dtype.is_float and kind != KIND_OF[dtype]:
                store(values(held, REAL_KINDS[kind]), dtype, out)
            else:
                out[...] = held


@dataclass(frozen=True)
class ExampleData:
    """What `data.Data` says."""

    train: list[Part]
    validation: list[Part]
    inputs: Inputs
    fingerprint: str
    description: str
    text: bool = False
    unit: str = "examples"
    each: int = 1

    def training_batches(self, seed: int) -> Examples:
        return Examples(self.train, self.inputs, seed)

    def validation_batches(self) -> Examples:
        return Examples(self.validation, self.inputs, seed=0)


def open_examples(paths: list[Path], inputs: Inputs, batch: int, to_train: bool = True) -> ExampleData:
    """Open the files for a model with these inputs, of `batch` examples. Files with "val" in their names are the
    validation part; without such, the last 5% of each file (at least one example). Where nothing is `to_train` on, such
    files may be all.

    UserError where an input does not begin with the batch, or a file has not what the model takes.
    """
    for name, i in inputs.items():
        if i.shape[:1] != (batch,):
            raise UserError(
                f"input '{name}' of the model is {i.dtype}{list(i.shape)} with B = {batch}, not a row for each example",
                "let every input begin with the batch's size, such as `input x: f32[B, C]`",
            )
    files = [_open(p, inputs) for p in paths]
    held_out = ["val" in p.stem.lower() for p in paths]
    if any(held_out) and not (all(held_out) and to_train):
        train, validation = ([f for f, held in zip(files, held_out, strict=True) if held is v] for v in (False, True))
    else:
        cuts = [f.stop - max(1, f.stop // 20) for f in files]
        train = [Part(f.entries, f.arrays, 0, cut) for f, cut in zip(files, cuts, strict=True)]
        validation = [Part(f.entries, f.arrays, cut, f.stop) for f, cut in zip(files, cuts, strict=True)]
    if to_train and not sum(p.stop - p.start for p in train):
        raise UserError(
            f"{paths[0]}: {files[0].stop} example, where one is to be trained on and one validated on",
            "give more examples",
        )
    count = sum(f.stop for f in files)
    description = f"{count:,} examples of {len(files)} file{'s' if len(files) > 1 else ''}"
    return ExampleData(train, validation, inputs, _fingerprint(train, validation), description)


def _open(path: Path, inputs: Inputs) -> Part:
    """A file's tensors, all checked."""
    held = read_header(path)
    hint = f"a file for this model has {described(inputs)}"
    for name, wanted in inputs.items():
        if name not in held:
            raise UserError(f"{path}: it has no tensor '{name}', but {', '.join(sorted(held)) or 'none at all'}", hint)
        e = held[name]
        kinds = tuple(REAL_KINDS) if wanted.dtype.is_float else _INTEGERS
        if e.kind not in kinds or e.shape[1:] != wanted.shape[1:] or not e.shape:
            raise UserError(f"{path}: its tensor '{name}' is {e.kind}{list(e.shape)}", hint)
    entries = {name: held[name] for name in inputs}
    counts = {name: e.shape[0] for name, e in entries.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        found = ", ".join(f"{n} of '{name}'" for name, n in counts.items())
        raise UserError(f"{path}: its tensors have examples {found}", "every tensor has a row for each example")
    arrays = {
        name: np.memmap(path, KINDS[e.kind], mode="r", offset=e.start, shape=e.shape) for name, e in entries.items()
    }
    for name, wanted in inputs.items():
        if not wanted.dtype.is_float:
            _check_values(path, name, arrays[name], wanted)
    return Part(entries, arrays, 0, next(iter(counts.values())))


def _check_values(path: Path, name: str, array: Array, wanted: Input) -> None:
    """UserError for an integer that the model does not take: what it picks would be another tensor's."""
    low, high = (0, wanted.below - 1) if wanted.below else (-(1 << 31), (1 << 31) - 1)
    for start, piece in _pieces(array):
        wrong = np.argwhere((piece < low) | (piece > high)) if piece.dtype != np.bool_ else np.argwhere(piece > high)
        if wrong.size:
            at = tuple(int(i) for i in wrong[0])
            place = ", ".join(map(str, (start + at[0], *at[1:])))
            raise UserError(
                f"{path}: '{name}' has {int(piece[at])} at [{place}], where the model takes {low} to {high}",
                "choose a config with room for it, or give other data",
            )


def _pieces(array: Array) -> Iterator[tuple[int, Array]]:
    """Some examples at a time, with the number of the first."""
    step = max(1, PIECE // max(1, array[0].nbytes))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _fingerprint(train: list[Part], validation: list[Part]) -> str:
    """Of names, types, shapes, what tensors begin and end with, and which examples are trained on."""
    digest = hashlib.blake2b(digest_size=12)
    for f in (*train, *validation):
        digest.update(f"{f.start} {f.stop} of {len(train)}\n".encode())
        for name, e in f.entries.items():
            digest.update(f"{name} {e.kind} {e.shape}\n".encode())
            flat = f.arrays[name].reshape(-1).view(np.uint8)
            digest.update(flat[:_SAMPLE].tobytes() + flat[-_SAMPLE:].tobytes())
    return digest.hexdigest()
