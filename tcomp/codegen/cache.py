"""Compiled code kept between runs, by content.

A file's name is the hash of all that its content depends on, so an entry is never out of date, only missing.
Files are written under a temporary name and renamed; each carries a checksum, and one that is torn or damaged
counts as missing. Processes may share the folder, where one makes what others wait for (`claims.py`). A folder that
cannot be written is reported once, and the run goes on without it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import tcomp.dsl
from tcomp.codegen.claims import LOOK, PATIENCE, give_back, take

SHARED_SOURCES = (
    "codegen/*.py",
    "codegen/llvm/*.py",
    "instructions/*.py",
    "ir/*.py",
    "machine/*.py",
    *(f"dsl/{name}.py" for name in ("ast", "dims", "directives", "expressions", "extents", "statements", "targets")),
)
"""Files that all code generators use: what code depends on."""

_HEADER = struct.Struct("<32sQ")


@lru_cache(maxsize=4)
def sources_digest(*patterns: str) -> str:
    """A hash of the compiler's sources (such as `codegen/*.py`): a changed generator finds nothing of the old one's."""
    digest = hashlib.sha256()
    for name, path in sorted(source_files(*patterns).items()):
        digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def source_files(*patterns: str) -> dict[str, Path]:
    """The files of the package that patterns name, such as `dsl/ast.py`, wherever `dsl` has its folder."""
    compiler, language = Path(__file__).parents[1], Path(tcomp.dsl.__path__[0]).parent
    found: dict[str, Path] = {}
    for pattern in patterns:
        root = language if pattern.startswith("dsl/") else compiler
        found |= {path.relative_to(root).as_posix(): path for path in root.glob(pattern)}
    return found


class CacheWarning(UserWarning):
    """The cache folder cannot be used; the run goes on without it."""


def default_folder(part: str = "kernels") -> Path:
    """$TCOMP_CACHE, else $XDG_CACHE_HOME/tcomp, else ~/.cache/tcomp; then `part`."""
    named, base = os.environ.get("TCOMP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else (Path(base) if base else _home() / ".cache") / "tcomp") / part


def _home() -> Path:
    """The user's folder; a path in which nothing can be made for a user who has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


class ContentCache:
    """Byte strings by key in one folder. `kind` goes into every file's first line, `suffix` ends its name; `what` they
    are is for messages."""

    _warned: set[str] = set()  # noqa: RUF012

    def __init__(
        self, folder: Path | str | None = None, *, kind: str, suffix: str, what: str = "compiled kernels"
    ) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.magic = f"tcomp-{kind}\n".encode()
        self.suffix = suffix
        self.what = what

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"

    def load(self, key: str) -> bytes | None:
        """The content of that key; None where it is missing, cut short, or altered."""
        path = self.path(key)
        try:
            if not path.is_file():  # a pipe would be waited for
                return None
            content = path.read_bytes()
        except OSError:
            return None
        head = len(self.magic) + _HEADER.size
        if len(content) < head or not content.startswith(self.magic):
            return None
        digest, size = _HEADER.unpack_from(content, len(self.magic))
        body = content[head:]
        if len(body) != size or _digest(key, body) != digest:
            return None
        return body

    def made(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The content of that key, kept or made: by this process, unless another one is about it."""
        found, end = self.load(key), time.monotonic() + PATIENCE
        if found is not None:
            return found
        while not take(self.folder, key) and time.monotonic() < end:
            time.sleep(LOOK)
            if (found := self.load(key)) is not None:
                return found
        try:
            found = self.load(key)  # (it may have come before the claim)
            if found is None:
                found = make()
                self.store(key, found)
            return found
        finally:
            give_back(self.folder, key)

    def store(self, key: str, body: bytes) -> None:
        """Keep an entry; a folder that cannot be written is reported once and otherwise ignored."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{key}.", suffix=".partial", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(self.magic + _HEADER.pack(_digest(key, body), len(body)) + body)
                os.replace(temporary, self.path(key))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as e:
            self._warn(e)

    def _warn(self, error: OSError) -> None:
        if str(self.folder) in self._warned:
            return
        self._warned.add(str(self.folder))
        reason = error.strerror or str(error)
        warnings.warn(
            f"{self.what} cannot be kept in {self.folder}: {reason}\n"
            "  help: every start will make them again; set TCOMP_CACHE to a folder that you can write to",
            CacheWarning,
            stacklevel=4,
        )


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + body).digest()
