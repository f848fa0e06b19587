"""Pages made present before they are used, by a thread that runs beside whatever else a start has to do.

The first touch of a page traps into the kernel, which clears it (and, in a virtual machine, may have to get it from the
host first): at 124M that takes as long as a step. Huge pages are made present six times as fast as small ones, but in a
virtual machine whose host has taken the memory back it takes eight times as long; so they are tried, and given up where
they are the slower ones. It only helps: where the system has no such call nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from threading import Thread
from time import perf_counter

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14: faults pages in as a write would, changing nothing
_CHUNK = 4 << 20  # while a chunk is made present, whoever maps memory waits
_TRIED = 4 << 20  # of each kind of page, at the end of the memory
SMALLEST = 64 << 20
"""Less than this is not worth a thread."""
_SLOW = 2
"""A chunk of huge pages that took so many times as long as one of small pages is the last: threads that share a
processor make single times longer, but not by this."""


class Prefault:
    """Touches `size` bytes from `address` (a huge page's) on, last chunk first: a start fills memory from its
    beginning. The memory must stay mapped until `finish` or `stop` has returned.

    `before` is done by the same thread before it (here and now where the memory is small), and has been done when
    `finish` or `stop` returns. What it raises is raised by `finish`.
    """

    def __init__(self, address: int, size: int, before: Callable[[], None] = lambda: None) -> None:
        self._address, self._size = address, size
        self._chunks: list[tuple[int, int]] = []
        self._pace = 0.0  # seconds that a byte of small pages takes
        self.huge = False
        """Whether the pages made present from now on are huge."""
        if sys.platform == "linux" and size >= SMALLEST:
            self._madvise = ctypes.CDLL(None).madvise  # releases the interpreter lock, as mmap's own does not
            self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            self._chunks = [(address + at, min(_CHUNK, size - at)) for at in range(0, size, _CHUNK)]
            self._try_huge()
        self._error: BaseException | None = None
        self._thread: Thread | None = None
        if self._chunks:
            self._thread = Thread(target=self._run, args=(before,), name="tcomp-prefault", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # not one thread more (a container's limit, say): `finish` does it all
                self._thread = None
        if self._thread is None:  # (a thread that never runs would hold on to `before`, and by it to the memory)
            before()

    def finish(self) -> None:
        """Help until all pages are there."""
        self._work()
        self._join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Leave the rest as it is."""
        self._chunks.clear()
        self._join()

    def _join(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _run(self, before: Callable[[], None]) -> None:
        try:
            before()
        except BaseException as e:  # whoever waits for it raises it
            self._error = e
            self._chunks.clear()
        self._work()

    def _try_huge(self) -> None:
        """Some small pages, some huge ones: `huge` where those took no longer."""
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return
        whole = self._size // _TRIED * _TRIED
        small, large = self._address + whole - _TRIED, self._address + whole - 2 * _TRIED
        self._madvise(small, _TRIED, mmap.MADV_NOHUGEPAGE)
        self._pace = self._populate(small, _TRIED) / _TRIED
        if not self._chunks:  # a kernel that makes no pages present: there was nothing to time
            return
        if self._madvise(large, _TRIED, mmap.MADV_HUGEPAGE) == 0:  # else a kernel without huge pages
            self.huge = self._populate(large, _TRIED) <= self._pace * _TRIED
            self._advise()

    def _advise(self) -> None:
        self._madvise(self._address, self._size, mmap.MADV_HUGEPAGE if self.huge else mmap.MADV_NOHUGEPAGE)

    def _populate(self, address: int, size: int) -> float:
        """The seconds it took."""
        began = perf_counter()
        if self._madvise(address, size, _POPULATE_WRITE):
            self._chunks.clear()
        return perf_counter() - began

    def _work(self) -> None:
        while self._chunks:
            try:
                address, size = self._chunks.pop()
            except IndexError:  # the other one took the last
                return
            huge = self.huge
            if self._populate(address, size) > _SLOW * self._pace * size and huge:
                self.huge = False
                self._advise()
