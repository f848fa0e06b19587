"""Memory of the virtual GPU: byte arrays with a shadow that knows which bytes were ever written.

A Segment is one global allocation, or the shared (local, argument) memory of all blocks (lanes) of a wave
laid end to end. GlobalMemory places allocations with guard gaps between them, so that a step outside one
never lands in another.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, every
from tcomp.runtime.vgpu.races import RaceShadow, Sets
from tcomp.runtime.vgpu.watch import Watch

GLOBAL_BASE = 0x7F00_0000_0000
SHARED_WINDOW = 0x7A00_0000_0000
LOCAL_WINDOW = 0x7B00_0000_0000
ARGS_WINDOW = 0x7C00_0000_0000
PARAM_WINDOW = 0x7D00_0000_0000
CODE_WINDOW = 0x7E00_0000_0000  # where functions have their addresses, 16 bytes each
WINDOW = 0x0100_0000_0000
CLUSTER_STEP = 1 << 24  # in shared::cluster, rank r begins at (r + 1) steps; below lies the own block once more
GUARD = 4096


class Segment:
    def __init__(self, space: str, size: int, base: int = 0, name: str = "", initialised: bool = False) -> None:
        padded = (size + 15) // 16 * 16
        self.space, self.size, self.base, self.name = space, size, base, name
        self.end = base + size
        self.data = np.zeros(padded, np.uint8)
        self.initialised = initialised
        self.init = np.zeros(padded if not initialised else 0, np.uint8)
        self.read_only = False
        self.race: RaceShadow | None = None
        self.reader_sets: Sets | None = None
        self.watch: Watch | None = None  # bytes to leave alone, once something asynchronous has begun
        self._views: dict[Any, Array] = {}

    def view(self, dtype: Any) -> Array:
        found = self._views.get(dtype)
        if found is None:
            found = self._views[dtype] = self.data.view(dtype)
        return found

    def init_view(self, size: int) -> Array:
        return self.init.view(f"u{size}")

    def watched(self) -> Watch:
        if self.watch is None:
            self.watch = Watch(len(self.data), 4 if self.space == "shared" else 1)
        return self.watch

    def shadow(self) -> RaceShadow:
        if self.race is None:
            self.race = RaceShadow(len(self.data))
            self.race.sets = self.reader_sets
        return self.race

    def written(self, start: int, count: int) -> None:
        """The host wrote these bytes."""
        if self.initialised:
            return
        if count >= self.size:
            self.initialised = True
        else:
            self.init[start : start + count] = 1

    def settle(self) -> None:
        """After a launch: a segment whose every byte is written needs no more checks."""
        if not self.initialised and every(self.init[: self.size]):
            self.initialised = True


class GlobalMemory:
    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.bases: list[int] = []
        self.base_array: Array = np.zeros(0, np.int64)
        self.end_array: Array = np.zeros(0, np.int64)
        self.top = GLOBAL_BASE
        self.clock = 0  # when the last launch ended: kernels' machines count on from there

    def allocate(self, size: int, name: str = "", align: int = 256) -> Segment:
        align = max(align, 256)
        base = (self.top + align - 1) // align * align
        segment = Segment("global", size, base, name)
        self.top = base + size + GUARD
        self.segments.append(segment)
        self._index()
        return segment

    def free(self, address: int) -> None:
        self.segments.remove(self.at(address))
        self._index()

    def _index(self) -> None:
        self.bases = [s.base for s in self.segments]
        self.base_array = np.array(self.bases, np.int64)
        self.end_array = np.array([s.end for s in self.segments], np.int64)

    def find(self, address: int) -> Segment | None:
        n = bisect_right(self.bases, address) - 1
        if n < 0 or address >= self.segments[n].end:
            return None
        return self.segments[n]

    def at(self, address: int) -> Segment:
        found = self.find(address)
        if found is None:
            raise ValueError(f"address {address:#x} is in no allocation")
        return found
