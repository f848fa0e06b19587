"""A loaded library's pages given back when it has done its work.

LLVM's library is 170 MB, of which Linux, where a file's cached pages are large, maps most at the first calls: about
95 MB that a run, whose kernels are machine code by then, does not touch again. They are copies of a file: whoever calls
the library later gets them again from the page cache.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path

_HEADER_FIELDS = 5  # of a mapping's first line without a path: addresses, permissions, offset, device, inode


def release_pages(library: str) -> int:
    """Give back the pages of the loaded file `library` that nothing wrote to; the bytes of its mappings among those.
    Nothing happens where the system is not Linux, or does not say."""
    released = 0
    if sys.platform != "linux":
        return released
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with suppress(OSError):
        for start, stop in _unwritten(os.path.realpath(library)):
            if madvise(start, stop - start, mmap.MADV_DONTNEED) == 0:
                released += stop - start
    return released


def _unwritten(library: str) -> list[tuple[int, int]]:
    """Addresses of the library's mappings that cannot be written to and hold no page of the process's own (the loader
    writes relocated addresses into some, which it protects afterwards)."""
    found: list[tuple[int, int]] = []
    current: tuple[int, int] | None = None
    for line in Path("/proc/self/smaps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=_HEADER_FIELDS)
        if not fields[0].endswith(":"):
            start, _, stop = fields[0].partition("-")
            ours = len(fields) > _HEADER_FIELDS and fields[_HEADER_FIELDS] == library and "w" not in fields[1]
            current = (int(start, 16), int(stop, 16)) if ours else None
        elif current is not None and fields[:2] == ["Anonymous:", "0"]:
            found.append(current)
    return found
