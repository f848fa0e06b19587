"""A lock between processes around a file that they change in turns; the lock itself lies in the cache folder."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcomp.runtime.cache import cache_folder


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Only one process at a time is inside for the same path."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with open(cache_folder("tuning") / f"{name}.guard", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
