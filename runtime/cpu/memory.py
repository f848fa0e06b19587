"""The memory of a run, mapped once: the arena, each thread's scratch, the team region."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

from tcomp.errors import UserError

HUGE_PAGE = 2 << 20
ALIGNMENT = 64


class Region:
    """Zeroed anonymous memory, aligned to a huge page where it is large enough to fill one."""

    def __init__(self, size: int, what: str) -> None:
        self.size = max(size, ALIGNMENT)
        alignment = HUGE_PAGE if self.size >= HUGE_PAGE else mmap.PAGESIZE
        try:
            self._map = mmap.mmap(-1, self.size + alignment)
        except (OSError, OverflowError) as e:
            raise UserError(
                f"cannot map {self.size / 2**30:.2f} GiB for the {what}: {e}",
                "use a smaller batch or sequence, or a machine with more memory",
            ) from e
        if hasattr(mmap, "MADV_HUGEPAGE") and self.size >= HUGE_PAGE:
            with suppress(OSError):  # a kernel without huge pages: small ones do
                self._map.madvise(mmap.MADV_HUGEPAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = -(-start // alignment) * alignment
        self.buffer = memoryview(self._map)[self.address - start : self.address - start + self.size]
