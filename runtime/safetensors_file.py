"""Safetensors files: a length, a JSON header, the tensors' bytes. Read by memory map, written piece by piece.

A file from outside is data to be judged: the header's size, types, shapes and offsets are checked before any tensor is
looked at, and nothing in it is ever executed. Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import DType
from tcomp.errors import UserError
from tcomp.runtime.documents import check_regular, parse_json
from tcomp.runtime.values import stored, values

PIECE = 1 << 24
"""Bytes that are read, written and summed at a time."""
_LARGEST_HEADER = 100_000_000
KINDS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32), "I64": np.dtype(np.int64), "I16": np.dtype(np.int16), "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8), "U16": np.dtype(np.uint16), "U32": np.dtype(np.uint32), "U64": np.dtype(np.uint64),
    "F8_E4M3": np.dtype(np.uint8), "F8_E5M2": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
"""Element types by the format's names. What NumPy lacks is held as its bits."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """A tensor to be saved or loaded, of one of KINDS. `pieces` gives its elements in row-major order, as arrays in
    turn."""

    kind: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Array]]

    @property
    def bytes(self) -> int:
        return KINDS[self.kind].itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `start` counts bytes from the file's beginning."""

    path: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return KINDS[self.kind].itemsize * math.prod(self.shape)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Elements `start` to `stop` in row-major order (bits for types that NumPy lacks)."""
        dtype = KINDS[self.kind]
        count = (math.prod(self.shape) if stop is None else stop) - start
        found: Array = np.fromfile(self.path, dtype, count, offset=self.start + start * dtype.itemsize)
        if found.size != count:
            raise UserError(f"{self.path}: it ends within {self.name!r}", "copy or download the file again")
        return found


CONVERTIBLE = {"F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16}
"""The types between which weights are converted."""
KIND_OF = {DType.F64: "F64", DType.I32: "I32", DType.E4M3: "F8_E4M3", DType.E5M2: "F8_E5M2"} | {
    dtype: kind for kind, dtype in CONVERTIBLE.items()
}
"""The format's name of each of our types."""
REAL_KINDS = {kind: dtype for dtype, kind in KIND_OF.items() if dtype.is_float}


def as_floats(held: Array, kind: str) -> Array:
    """The values of elements of one of our real types, as f32."""
    return np.asarray(values(held, REAL_KINDS[kind]), dtype=np.float32)


def as_kind(floats: Array, kind: str) -> Array:
    """f32 values as elements of one of our real types, rounded to nearest even."""
    return stored(floats, REAL_KINDS[kind])


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of a file, in the header's order; UserError when it is not a well-formed safetensors file."""
    try:
        check_regular(path)
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise UserError(
                    f"{path}: not a whole safetensors file: a header of {length} bytes, a file of {size}",
                    "copy or download the file again",
                )
            text = f.read(length)
    except OSError as e:
        raise UserError(
            f"{path}: cannot read it: {e.strerror or e}", "name a file that exists and that you may read"
        ) from e
    try:
        header = parse_json(text)
        if not isinstance(header, dict):
            raise ValueError("the header is no table")
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, value, 8 + length, size) for name, value in header.items()}
    except ValueError as e:
        raise UserError(f"{path}: a damaged safetensors file: {e}", "copy or download the file again") from e
    spans = sorted((e.start, e.start + e.bytes, e.name) for e in entries.values())
    for (_, stop, a), (start, _, b) in pairwise(spans):
        if start < stop:
            raise UserError(
                f"{path}: a damaged safetensors file: tensors {a!r} and {b!r} overlap",
                "copy or download the file again",
            )
    return entries


def _entry(path: Path, name: str, value: Any, data: int, size: int) -> Entry:
    match value:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, stop]}:
            pass
        case _:
            raise ValueError(f"tensor {name!r} is described by other than dtype, shape and data_offsets")
    if kind not in KINDS:
        raise ValueError(f"tensor {name!r} is of the unknown type {kind!r}")
    whole = [*shape, start, stop]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in whole):
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no whole numbers")
    entry = Entry(path, name, kind, tuple(shape), data + start)
    if stop - start != entry.bytes or data + stop > size:
        raise ValueError(f"tensor {name!r} of shape {shape} does not lie in the file's bytes {start} to {stop}")
    return entry


def write_file(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Stream tensors into a new file and flush it to disk; its size and crc32."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.bytes
        header[name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    crc = 0
    with open(path, "wb") as out:
        for block in (len(text).to_bytes(8, "little"), text):
            out.write(block)
            crc = zlib.crc32(block, crc)
        for tensor in tensors.values():
            for piece in tensor.pieces():
                raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
                out.write(raw)
                crc = zlib.crc32(raw, crc)
        out.flush()
        os.fsync(out.fileno())
    return 8 + len(text) + at, crc
