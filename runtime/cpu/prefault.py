"""Pages made present before they are used, by a thread that runs beside whatever else a start has to do.

The first touch of a page traps into the kernel, which clears it (and, in a virtual machine, may have to get it from the
host first): at 124M that takes as long as a step. It only helps: where the system has no such call nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from threading import Thread

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14: faults pages in as a write would, changing nothing
_CHUNK = 16 << 20  # while a chunk is made present, whoever maps memory waits
SMALLEST = 64 << 20
"""Less than this is not worth a thread."""


class Prefault:
    """Touches `size` bytes from `address` (a page's) on, last chunk first: a start fills memory from its beginning. The
    memory must stay mapped until `finish` or `stop` has returned."""

    def __init__(self, address: int, size: int) -> None:
        self._chunks: list[tuple[int, int]] = []
        if sys.platform == "linux" and size >= SMALLEST:
            self._chunks = [(address + at, min(_CHUNK, size - at)) for at in range(0, size, _CHUNK)]
            self._madvise = ctypes.CDLL(None).madvise  # releases the interpreter lock, as mmap's own does not
            self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._thread = Thread(target=self._work, name="tcomp-prefault", daemon=True)
        if self._chunks:
            self._thread.start()

    def finish(self) -> None:
        """Help until all pages are there."""
        self._work()
        self._join()

    def stop(self) -> None:
        """Leave the rest as it is."""
        self._chunks.clear()
        self._join()

    def _join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while self._chunks:
            try:
                address, size = self._chunks.pop()
            except IndexError:  # the other one took the last
                return
            if self._madvise(address, size, _POPULATE_WRITE):
                self._chunks.clear()
