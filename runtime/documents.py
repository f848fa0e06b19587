"""Small files from outside: their text, and the JSON or TOML in it.

What is wrong with a file is an OSError (`strerror` says it), what is wrong with its text a ValueError, whatever the
text is: nesting without end and numbers of a million digits among it. No read waits for a writer or goes on for ever.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

LARGEST = 1 << 26
"""Bytes of a small file at most."""
_PIECE = 1 << 16
_DEEPEST = 100
_DEEP = f"tables and lists are nested deeper than {_DEEPEST}"


def check_regular(path: Path) -> None:
    """OSError for what is no regular file: one that does not exist, a folder, a named pipe, a device."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file, but a pipe or a device", str(path))


def read_small(path: Path, pipes: bool = False) -> str:
    """The UTF-8 text of a regular file (or, with `pipes`, of anything) of at most LARGEST bytes."""
    if not pipes:
        check_regular(path)
    content = bytearray()
    with open(path, "rb") as f:
        while piece := f.read(_PIECE):  # memory for what is there, not for what may be
            content += piece
            if len(content) > LARGEST:
                raise OSError(errno.EFBIG, f"more than {LARGEST >> 20} MiB", str(path))
    return content.decode("utf-8")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 has the text: JSON, and arguments that are not UTF-8, can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for any other text."""
    try:
        return _shallow(json.loads(text))
    except RecursionError:
        raise ValueError(_DEEP) from None


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text; ValueError for any other text."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    _shallow(found)
    return found


def _shallow(value: Any) -> Any:
    """The value, if printing and comparing it stays clear of Python's limit on nested calls."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        if not level:
            return value
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v) if isinstance(x, dict | list)]
    raise ValueError(_DEEP)
