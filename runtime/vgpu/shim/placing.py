"""Device addresses that no host pointer can equal, and host memory that kernels can reach.

The virtual GPU's global memory lies at addresses of its own. So that unified addressing can tell a device
pointer from a host one, each device's range is reserved in the process: nothing of the host is ever mapped
there, and a host program that dereferences a device pointer dies as it would beside a real GPU.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right

import numpy as np

from tcomp.runtime.vgpu.lanes import Array
from tcomp.runtime.vgpu.memory import GLOBAL_BASE, GUARD, GlobalMemory, Segment

_TOP = 1 << 47
_NORESERVE, _FIXED_NOREPLACE, _PRIVATE_ANONYMOUS = 0x4000, 0x100000, 0x22
_HEADROOM = 32 << 30
PAGE = mmap.PAGESIZE


def reserve(size: int, after: int = GLOBAL_BASE) -> int:
    """The start of `size` bytes of addresses from `after` on that are the device's; reserved where the system
    allows it."""
    mapped = ctypes.CDLL(None, use_errno=True).mmap
    mapped.restype = ctypes.c_uint64
    mapped.argtypes = [ctypes.c_uint64, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    base = after
    while base + size < _TOP:
        at = mapped(base, size, 0, _NORESERVE | _FIXED_NOREPLACE | _PRIVATE_ANONYMOUS, -1, 0)
        if at == base:
            return base
        if at != (1 << 64) - 1:  # an old kernel that took the address as a hint
            unmap = ctypes.CDLL(None).munmap
            unmap.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
            unmap(at, size)
        base += 8 << 30
    return after


class PlacedMemory(GlobalMemory):
    """Global memory in one reserved range: freed addresses come back only when the range is used up."""

    def __init__(self, capacity: int, after: int) -> None:
        super().__init__()
        self.size = capacity + _HEADROOM
        self.first = self.top = reserve(self.size, after)
        self.limit = self.first + self.size

    def allocate(self, size: int, name: str = "", align: int = 256) -> Segment:
        align = max(align, 256)
        base = (self.top + align - 1) // align * align
        if base + size + GUARD > self.limit:
            base = self._gap(size, align)
        else:
            self.top = base + size + GUARD
        segment = Segment("global", size, base, name)
        self._insert(segment)
        return segment

    def _gap(self, size: int, align: int) -> int:
        at = self.first
        for s in self.segments:
            if s.base < self.first or s.base >= self.limit:
                continue
            base = (at + align - 1) // align * align
            if base + size + GUARD <= s.base:
                return base
            at = s.end + GUARD
        base = (at + align - 1) // align * align
        if base + size > self.limit:
            raise MemoryError
        return base

    def adopt(self, address: int, size: int) -> Segment:
        """Makes whole pages of host memory reachable for kernels at their host address."""
        segment = Segment("global", 0, address, "pinned host memory", initialised=True)
        segment.size, segment.end = size, address + size
        segment.data = host_bytes(address, size)
        self._insert(segment)
        return segment

    def _insert(self, segment: Segment) -> None:
        self.segments.insert(bisect_right(self.bases, segment.base), segment)
        self._index()


def host_bytes(address: int, size: int) -> Array:
    """Host memory as an array that shares it."""
    found: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)) if size else np.zeros(0, "u1")
    return found
