"""The memory of a run, mapped once: the arena, each thread's scratch, the team region."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from contextlib import suppress

from tcomp.amounts import bytes_text
from tcomp.errors import UserError
from tcomp.runtime.cpu.prefault import Prefault

HUGE_PAGE = 2 << 20
LARGE = 64 << 10
"""Scratch from this size on gets whole huge pages: in small ones, placed at random, a packed tile would meet itself on
the same sets of the second-level cache."""
ALIGNMENT = 64


class Region:
    """Zeroed memory of this process's own, on huge pages where it is large. With `ahead` pages are made present from
    `begin` on, beside what else is done, until `complete` or `stop` (`prefault.py`): huge ones as long as they come
    faster than small ones. In a virtual machine a huge page mostly has to come from the host (2.5 s for 2 GB where
    small ones took 0.6), and steps are no more than 1% faster on them.
    """

    def __init__(self, size: int, what: str, ahead: bool = False) -> None:
        self.size = max(size, ALIGNMENT)
        alignment = HUGE_PAGE if self.size >= LARGE else mmap.PAGESIZE
        mapped = -(-self.size // alignment) * alignment
        try:
            # Private: pages of shared memory take two to five times as long to become present, and are never huge.
            self._map = mmap.mmap(-1, mapped + alignment, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as e:
            raise UserError(
                f"cannot map {bytes_text(self.size)} for the {what}: {e}",
                "use a smaller batch or sequence, or a machine with more memory",
            ) from e
        if hasattr(mmap, "MADV_HUGEPAGE") and alignment == HUGE_PAGE and not ahead:
            with suppress(OSError):  # a kernel without huge pages: small ones do
                self._map.madvise(mmap.MADV_HUGEPAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = -(-start // alignment) * alignment
        self.buffer = memoryview(self._map)[self.address - start : self.address - start + self.size]
        self._prefault: Prefault | None = None

    def begin(self, before: Callable[[], None]) -> None:
        """Call `before`, and then make pages present, in a thread."""
        self._prefault = Prefault(self.address, self.size, before)

    def complete(self) -> None:
        """Wait until all that was to be done ahead is, and help with it; what failed in it is raised here."""
        if self._prefault is not None:
            self._prefault.finish()

    def stop(self) -> None:
        """Make no more pages present ahead. (What comes before them is waited for.)"""
        if self._prefault is not None:
            self._prefault.stop()
