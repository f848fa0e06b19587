"""Text to train on, as one cached token file of its bytes.

Default: the standard library's sources of the Python that runs this, which every machine has. Folders are
walked for text files; their order is by a hash of each file's name, so that the end of the stream, which
becomes the validation part, is a fair sample of the whole. The token file is keyed by the files' names, sizes
and times: a second start reads no text at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tcomp.errors import UserError
from tcomp.runtime.cache import cache_folder
from tcomp.runtime.documents import check_regular
from tcomp.runtime.token_file import TokenFile, Tokens, check_vocabulary, open_token_file, write_tokens

BYTES = 256
"""Vocabulary of byte-level tokens."""
DEFAULT_CAP = 8_000_000
_NOT_SOURCES = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"})
_FORMAT = "bytes 1"


def standard_library_files(cap: int = DEFAULT_CAP) -> list[Path]:
    """The running Python's own sources, tests left out, up to about `cap` bytes in all."""
    root = Path(sysconfig.get_path("stdlib"))
    chosen, total = [], 0
    for path in _by_hash(root, (p for p in _walk(root, _NOT_SOURCES) if p.suffix == ".py")):
        size = path.stat().st_size
        if total + size <= cap:
            chosen.append(path)
            total += size
    return chosen


def text_files(paths: list[Path]) -> list[Path]:
    """The named files in the order given, folders replaced by the files in them."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = _by_hash(path, _walk(path))
            if not inside:
                raise UserError(
                    f"{path}: the folder holds no files to train on", "name one with text files, or the files"
                )
            found += inside
        elif path.exists():
            try:
                check_regular(path)
            except OSError as e:
                raise UserError(f"{path}: {e.strerror}", "save what it gives as a file first") from e
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder", "name files, or folders of files, that are there")
    return found


def byte_tokens(files: list[Path], named: frozenset[Path] = frozenset()) -> TokenFile:
    """The files' bytes as one token file in the cache, made now if it is not there.

    Files that are not UTF-8 text are left out, except that one in `named` (given by the user) is an error.
    """
    key = hashlib.blake2b(_FORMAT.encode(), digest_size=16)
    for path in files:
        try:
            stat = path.stat()
        except OSError as e:
            raise UserError(
                f"{path}: cannot read it: {e.strerror or e}", "name a file that exists and that you may read"
            ) from e
        key.update(os.fsencode(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{path in named}\n"))
    target = cache_folder("data") / f"{key.hexdigest()}.bin"
    if target.exists():
        try:
            kept = open_token_file(target)
            check_vocabulary(kept, BYTES)
            return kept
        except UserError:  # damaged: made again below
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    try:
        write_tokens(target, _encode(files, named))
    except OSError as e:
        raise UserError(
            f"{target}: cannot write the tokenised text: {e.strerror or e}",
            "make room there, or let TCOMP_CACHE name another folder",
        ) from e
    return open_token_file(target)


def _encode(files: list[Path], named: frozenset[Path]) -> Iterator[Tokens]:
    used = 0
    for path in files:
        try:
            data = path.read_bytes()
            data.decode("utf-8")
            if b"\0" in data:
                raise ValueError("it has zero bytes")
        except OSError as e:
            if path in named:
                raise UserError(
                    f"{path}: cannot read it: {e.strerror or e}", "name a file that exists and that you may read"
                ) from e
            continue
        except ValueError as e:
            if path in named:
                hint = "write it in UTF-8, as by `iconv -f LATIN1 -t UTF-8`; token files must be named .bin"
                raise UserError(f"{path}: not UTF-8 text: {e}", hint) from e
            continue
        if data:
            used += len(data)
            if not data.endswith(b"\n"):
                data += b"\n"
            yield np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
    if not used:
        raise UserError(
            f"{files[0] if len(files) == 1 else f'{len(files)} files'}: no text in it"
            if files
            else "no text files found",
            "--data takes text files, folders or .bin token files",
        )


def _walk(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files but hidden ones; folders named in `skip` are left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in skip and f != "__pycache__" and f[0] != ".")
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield path


def _by_hash(root: Path, files: Iterator[Path]) -> list[Path]:
    def order(path: Path) -> bytes:
        return hashlib.blake2b(os.fsencode(path.relative_to(root)), digest_size=8).digest()

    return sorted(files, key=order)
