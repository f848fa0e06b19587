"""The outcome of preparing data: token files, the tokenizer they were made with, and a manifest with checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tcomp
from tcomp.errors import UserError
from tcomp.runtime.cache import sync_folder, write_atomic
from tcomp.runtime.documents import parse_json, read_small
from tcomp.runtime.prepare.tokenise import KINDS, part_file
from tcomp.runtime.token_file import Tokens, open_token_file, write_tokens

MANIFEST, FORMAT = "manifest.json", 1


def _stream(folder: Path, count: int, kind: str) -> Iterator[Tokens]:
    for number in range(count):
        path = part_file(folder, number, kind)
        if path.stat().st_size:
            yield open_token_file(path).tokens


def _cut(stream: Iterator[Tokens], size: int) -> Iterator[Iterator[Tokens]]:
    """The stream in pieces of `size` tokens, each to be taken before the next."""
    rest: list[Tokens] = []

    def piece() -> Iterator[Tokens]:
        left = size
        while left:
            tokens = rest.pop() if rest else next(stream, None)
            if tokens is None:
                return
            if len(tokens) > left:
                rest.append(tokens[left:])
                tokens = tokens[:left]
            left -= len(tokens)
            yield tokens

    while True:
        if not rest:
            first = next(stream, None)
            if first is None:
                return
            rest.append(first)
        yield piece()


def write_shards(
    out: Path, parts: Path, count: int, shard_tokens: int, fraction: float, wide: bool, about: dict[str, Any]
) -> dict[str, Any]:
    """Join the parts' tokens in order into shards, and write the manifest last. With no document held out, the end of
    the training tokens becomes the validation part."""
    totals = {k: sum(len(t) for t in _stream(parts, count, k)) for k in KINDS}
    held = int(totals["train"] * fraction) if not totals["val"] else 0
    files: list[dict[str, Any]] = []

    def write(kind: str, stream: Iterator[Tokens]) -> None:
        for number, piece in enumerate(_cut(stream, shard_tokens)):
            path = out / f"{kind}-{number:05d}.bin"
            write_tokens(path, piece, wide)
            tokens = len(open_token_file(path).tokens)
            files.append({"file": path.name, "tokens": tokens, "bytes": path.stat().st_size, "blake2b": checksum(path)})

    train = _stream(parts, count, "train")
    if held:
        halves = _cut(train, totals["train"] - held)
        write("train", next(halves))
        write("val", next(halves))
    else:
        write("train", train)
        write("val", _stream(parts, count, "val"))
    manifest = {"format": FORMAT, "tcomp": tcomp.__version__, **about, "files": files}
    write_atomic(out / MANIFEST, lambda f: f.write(json.dumps(manifest, indent=1).encode() + b"\n"))
    sync_folder(out)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


def checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def check_shards(folder: Path) -> int:
    """Verify every file against the manifest; the number of tokens. UserError names the first that differs."""
    try:
        manifest = parse_json(read_small(folder / MANIFEST))
        files = [(str(f["file"]), int(f["bytes"]), str(f["blake2b"]), int(f["tokens"])) for f in manifest["files"]]
    except OSError as e:
        raise UserError(
            f"{folder}: no prepared data: {MANIFEST}: {e.strerror or e}", "make it: tcomp data prepare"
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder / MANIFEST}: damaged: {e}", "prepare the data again") from e
    for name, size, check, _ in files:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise UserError(f"{path}: the manifest names it, but it is not there", "prepare the data again")
        if path.stat().st_size != size or checksum(path) != check:
            raise UserError(f"{path}: damaged: its checksum is not the manifest's", "prepare the data again")
    return sum(t for *_, t in files)
