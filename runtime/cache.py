"""The user's cache folder: compiled kernels and tokenised text, all of it safe to delete at any time.

$TCOMP_CACHE, else $XDG_CACHE_HOME/tcomp, else ~/.cache/tcomp. `write_atomic` is how files get into it: a
reader sees the old file or the whole new one, never part of one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tcomp.codegen.cache import default_folder
from tcomp.errors import UserError


def cache_folder(part: str = "") -> Path:
    """The cache folder (or the sub-folder `part` of it), made if need be. UserError when it cannot be."""
    folder = default_folder(part)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "" if writable else "permission denied"
    except OSError as e:
        reason = e.strerror or str(e)
    if reason:
        raise UserError(
            f"the cache folder {folder} cannot be written: {reason}",
            "set TCOMP_CACHE to a folder that you can write to, such as TCOMP_CACHE=/tmp/tcomp",
        )
    return folder


def write_atomic(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, flush it to disk, put it in place. On error nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")  # (others write it, too)
    try:
        with open(temporary, "wb") as out:
            fill(out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unwritable(path: Path) -> str:
    """Why nothing can be written at a path, whose missing folders would be made; "" where it can. It is tried:
    permissions do not tell of file systems that are full or read-only."""
    whole = path.absolute()
    try:
        folder = next((p for p in whole.parents if p.exists()), whole)
        probe = folder / f".{whole.name}.{os.getpid()}.partial"
        probe.mkdir()
        probe.rmdir()
    except OSError as e:
        return e.strerror or str(e)
    return ""


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
