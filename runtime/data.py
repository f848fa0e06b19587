"""What a run trains on: `--data` paths (or nothing) to a training and a validation stream of batches.

Text and token files become windows for models of tokens and targets, safetensors files examples for any (examples.py).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tcomp.errors import UserError
from tcomp.runtime.batches import Batches, Segment, Stream, split
from tcomp.runtime.documents import parse_json, read_small
from tcomp.runtime.examples import SUFFIX, Inputs, described, open_examples
from tcomp.runtime.text_source import byte_tokens, standard_library_files, text_files
from tcomp.runtime.token_file import TokenFile, check_vocabulary, open_token_file

TOKENS = frozenset({"tokens", "targets"})
"""The inputs of a model that text is for."""


class Data(Protocol):
    """`text` is true when tokens are bytes. `fingerprint` tells whether two runs see the same data. A row of a batch
    has `each` of what is counted, `unit`s."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def text(self) -> bool: ...

    @property
    def unit(self) -> str: ...

    @property
    def each(self) -> int: ...

    def training_batches(self, seed: int) -> Stream: ...

    def validation_batches(self) -> Stream:
        """The same examples in the same order each time it is called."""
        ...


@dataclass(frozen=True)
class TokenData:
    """Windows of `length` tokens."""

    train: list[Segment]
    validation: list[Segment]
    fingerprint: str
    description: str
    text: bool
    length: int
    unit: str = "tokens"

    @property
    def each(self) -> int:
        return self.length

    def training_batches(self, seed: int) -> Batches:
        return Batches(self.train, self.length, seed)

    def validation_batches(self) -> Batches:
        return Batches(self.validation, self.length, seed=0)


def data_for(
    paths: list[Path], inputs: Inputs, batch: int, length: int, vocabulary: int, to_train: bool = True
) -> Data:
    """Open the data for a model with these inputs, of `batch` examples: by `open_examples` where the paths are such
    files (of a folder those in it, if the model takes other inputs than windows of tokens and targets), else by
    `open_data`."""
    windows = all(i.shape == (batch, length) and not i.dtype.is_float for i in inputs.values())
    own = inputs.keys() != TOKENS or not windows
    files = [q for p in paths for q in (sorted(p.glob(f"*{SUFFIX}")) if own and p.is_dir() else []) or [p]]
    other = [p for p in files if p.suffix != SUFFIX]
    if files and not other:
        return open_examples(files, inputs, batch, to_train)
    if own or len(other) < len(files):
        what = f"{other[0]}: no {SUFFIX} file" if other else f"no {SUFFIX} file is given"
        raise UserError(
            f"{what}, and the model takes {', '.join(inputs)}",
            f"give --data such files, with {described(inputs)}",
        )
    return open_data(paths, length, vocabulary, to_train)


def open_data(paths: list[Path], length: int, vocabulary: int, to_train: bool = True) -> TokenData:
    """Open the data for windows of `length` tokens and a model of `vocabulary` tokens.

    No paths: the standard library's sources. Text files and folders become byte tokens. A folder with
    `.bin` files stands for these. Among `.bin` files, those with "val" in their name are the validation part;
    without such, the end of each file is. Where nothing is `to_train` on, validation files may be all there is.
    """
    for p in paths:
        _check_prepared(p)
    paths = [q for p in paths for q in (sorted(p.glob("*.bin")) if p.is_dir() else []) or [p]]
    binary = [p for p in paths if p.suffix == ".bin"]
    if binary and len(binary) < len(paths):
        other = next(p for p in paths if p.suffix != ".bin")
        raise UserError(f"{other}: text and .bin token files cannot be mixed", "give one kind of --data")
    if binary:
        files = [open_token_file(p) for p in binary]
        for file in files:
            check_vocabulary(file, vocabulary)
        train, validation = _parts(files, length, to_train)
        count = sum(len(f.tokens) for f in files)
        description = f"{count:,} tokens of {len(files)} token file{'s' if len(files) > 1 else ''}"
        return TokenData(train, validation, _fingerprint(files), description, False, length)
    lost = ""
    if paths:
        found = text_files(paths)
        source = byte_tokens(found, frozenset(p for p in paths if not p.is_dir()))
        name = " ".join(str(p) for p in paths)
        if sum(p.stat().st_size for p in found) > len(source.tokens):  # (which have a newline more for some files)
            lost = ", files that are no UTF-8 text left out"
    else:
        source, name = byte_tokens(standard_library_files()), "the Python standard library's sources"
    check_vocabulary(source, vocabulary, name)
    first, last = split(source.tokens, length)
    description = f"{len(source.tokens):,} bytes of {name}{lost}"
    return TokenData([first], [last], _fingerprint([source]), description, True, length)


def _check_prepared(folder: Path) -> None:
    """UserError where a folder that `tcomp data prepare` made has not all of its token files, not yet or not any more:
    the rest of them, or the manifest itself as a text, would be taken for the data."""
    manifest = folder / "manifest.json"
    if not manifest.exists() and (folder / "plan.json").is_file() and (folder / ".parts").is_dir():
        raise UserError(
            f"{folder}: the data are not whole: their preparation was stopped",
            "give the same `tcomp data prepare` command again, which goes on where it was",
        )
    if not (folder / "tokenizer.json").is_file():
        return
    try:
        listed = parse_json(read_small(manifest))["files"]
        files = [(folder / str(f["file"]), int(f["bytes"])) for f in listed]
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as e:
        if manifest.exists() and _damaged(manifest):
            raise UserError(
                f"{manifest}: damaged: it cannot be read, so nothing says whether the data beside it are whole",
                "prepare the data again, put back a copy of the file, or name the .bin files to be used instead",
            ) from e
        return  # something else of that name
    for path, size in files:
        remedy = "prepare the data again, put back a copy of the file, or name the .bin files to be used instead"
        if not path.is_file():
            raise UserError(f"{path}: the manifest names it, but it is not there", remedy)
        if path.stat().st_size != size:
            raise UserError(f"{path}: damaged: its size is not the manifest's", remedy)


def _damaged(manifest: Path) -> bool:
    """Is it no JSON, or one of ours that is not whole?"""
    try:
        found = parse_json(read_small(manifest))
    except (OSError, ValueError):
        return True
    return isinstance(found, dict) and {"format", "files"} <= found.keys()


def _parts(files: list[TokenFile], length: int, to_train: bool) -> tuple[list[Segment], list[Segment]]:
    held_out = [f for f in files if "val" in f.path.stem.lower()]
    if held_out and (len(held_out) < len(files) or not to_train):
        whole = [Segment(f.tokens, 0, len(f.tokens)) for f in files if f not in held_out]
        return whole, [Segment(f.tokens, 0, len(f.tokens)) for f in held_out]
    parts = [split(f.tokens, length) for f in files]
    return [a for a, _ in parts], [b for _, b in parts]


def _fingerprint(files: list[TokenFile]) -> str:
    return hashlib.blake2b(os.fsencode("\n".join(f.fingerprint for f in files)), digest_size=12).hexdigest()
