"""Who makes which content of a shared folder, so that of several processes one does, and the others wait for it.

A claim is a record lock on a byte of the folder's file `.claims`, the content's own: it goes with the process, however
that ends, it is no other's in a fork, and file systems of several machines know it. Nothing depends on claims but how
often content is made: where there can be none (a folder that is not ours to write to, a file system without locks), or
where a holder lets the others wait too long, everyone makes what they need.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 60.0
"""Seconds without anything new after which a process makes what another has claimed."""
LOOK = 0.2
"""Seconds between two looks at what another makes."""
_HELD = (errno.EAGAIN, errno.EACCES)


@dataclass
class _File:
    handle: int
    keys: set[str] = field(default_factory=set)


_files: dict[Path, _File] = {}
"""open where this process claims something; a file's locks go when any handle of it is closed, so there is one"""
_guard = threading.Lock()


def take(folder: Path, key: str) -> bool:
    """Whether this process is to make the content of that key (hexadecimal): nobody else does, or nobody can tell."""
    folder = _one(folder)
    with _guard:
        try:
            if folder not in _files:
                folder.mkdir(parents=True, exist_ok=True)
                _files[folder] = _File(os.open(folder / ".claims", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            fcntl.lockf(_files[folder].handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
        except OSError as e:
            held = folder in _files and e.errno in _HELD
            _close_unused(folder)
            return not held
        _files[folder].keys.add(key)
        return True


def give_back(folder: Path, key: str) -> None:
    """The content is there, or is not made; nothing where it was not claimed."""
    folder = _one(folder)
    with _guard:
        file = _files.get(folder)
        if file is None or key not in file.keys:
            return
        file.keys.discard(key)
        if file.keys:
            fcntl.lockf(file.handle, fcntl.LOCK_UN, 1, _byte(key))
        _close_unused(folder)


def _one(folder: Path) -> Path:
    """The folder's one name, of all that it may have (relative, by way of links)."""
    return Path(os.path.realpath(folder))


def _close_unused(folder: Path) -> None:
    if folder in _files and not _files[folder].keys:
        os.close(_files.pop(folder).handle)


def _byte(key: str) -> int:
    return int(key[:12], 16)
