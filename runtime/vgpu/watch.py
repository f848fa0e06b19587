"""Bytes of a segment that ordinary accesses must leave alone for now: copies in flight, and live mbarriers.

A segment has a Watch only once a kernel has begun something asynchronous, so other kernels pay one test of
`segment.watch is None` for each access. Counts are per word of `grain` bytes (4 in shared memory, 1 in global).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, some

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.access import Access, Part


class Watch:
    def __init__(self, size: int, grain: int) -> None:
        self.size, self.grain = size, grain
        self.shift = grain.bit_length() - 1
        self.pending: Array | None = None  # bytes that a cp.async will write
        self.landing: Array | None = None  # words that bulk copies will write: how many
        self.leaving: Array | None = None  # words that asynchronous operations are reading: how many
        self.landing_count = 0
        self.leaving_count = 0
        self.barriers: Array | None = None  # per 8 bytes: a live mbarrier's number + 1

    def clear(self) -> None:
        self.pending = None
        self.landing_count = self.leaving_count = 0
        for a in (self.landing, self.leaving, self.barriers):
            if a is not None:
                a[:] = 0

    def begin(self, words: Array, writes: bool) -> None:
        """An operation begins to write (or read) these words."""
        if writes:
            if self.landing is None:
                self.landing = np.zeros(-(-self.size // self.grain), np.int16)
            self.landing[words] += 1
            self.landing_count += len(words)
        else:
            if self.leaving is None:
                self.leaving = np.zeros(-(-self.size // self.grain), np.int16)
            self.leaving[words] += 1
            self.leaving_count += len(words)

    def end(self, words: Array, writes: bool) -> None:
        if writes:
            assert self.landing is not None
            self.landing[words] -= 1
            self.landing_count -= len(words)
        else:
            assert self.leaving is not None
            self.leaving[words] -= 1
            self.leaving_count -= len(words)

    def touched(self, counts: Array, start: Array, size: int) -> Array:
        """Which accesses of `size` bytes at `start` touch a word with a count."""
        if size <= self.grain:
            hit: Array = counts[start >> self.shift] > 0
            return hit
        at = (start >> self.shift)[:, None] + np.arange(size >> self.shift)
        touched = counts[at]
        found: Array = (touched > 0).any(axis=1) if some(touched) else np.zeros(len(start), bool)
        return found


def check(access: Access, p: Part, lanes: Array, writes: bool) -> bool:
    """An ordinary access to a watched segment: reports what it should have waited for; has it found something?"""
    w, m = p.segment.watch, access.m
    assert w is not None
    found = False

    def report(bad: Array, kind: str, text: str) -> None:
        nonlocal found
        found = True
        m.finding(kind, access.i, lanes[bad], text, _place(access, p, bad))

    if w.pending is not None and not writes:
        bad = w.pending[p.start] != 0
        if some(bad):
            report(bad, "missing cp.async wait", "reads what a cp.async has yet to write")
    if w.landing_count and w.landing is not None:
        bad = w.touched(w.landing, p.start, access.size)
        if some(bad):
            kind = "write before completion" if writes else "read before completion"
            report(bad, kind, f"{'writes' if writes else 'reads'} what an asynchronous copy has yet to write")
    if writes and w.leaving_count and w.leaving is not None:
        bad = w.touched(w.leaving, p.start, access.size)
        if some(bad):
            report(bad, "write before completion",
                   "writes what an asynchronous operation in flight is still reading: wait for it first")  # fmt: skip
    if w.barriers is not None:
        bad = w.barriers[p.start >> 3] > 0
        if some(bad):
            report(bad, "mbarrier misuse",
                   "an ordinary access to a live mbarrier; mbarrier.inval it before using its memory")  # fmt: skip
    return found


def _place(access: Access, p: Part, bad: Array) -> int:
    first = int(p.start[bad][0])
    s: Any = p.segment
    return first % max(access.m.shared_stride, 1) if s.space == "shared" else int(s.base) + first
