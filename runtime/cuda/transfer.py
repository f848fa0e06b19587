"""What goes between host and device while programs run: batches in, results out, neither waiting for the other.

A batch is filled in one of two pinned host buffers and copied on a stream of its own into one of two device
buffers; the stream of programs waits for that copy only, and moves it into the input slots before the next program.
So the host fills, and the GPU copies, a batch while the step before is running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import driver as cu

from tcomp.model.step import Slot
from tcomp.runtime.cuda.context import Context, done
from tcomp.runtime.cuda.driver import call
from tcomp.runtime.executor import element_count
from tcomp.runtime.values import Array, numpy_type

_ALIGNMENT = 256
_CELL = 256
"""Bytes of pinned memory for a result that is read in the background."""


@dataclass(frozen=True)
class _Buffer:
    host: Array
    device: int
    copied: Any  # event: the copy into `device` is done
    used: Any  # event: `device` has been moved into the slots


class BatchFeed:
    """The input slots' next values. `arena` is the device address that slots' offsets count from."""

    def __init__(self, context: Context, slots: list[Slot], arena: int) -> None:
        self._context, self._slots, self._arena = context, slots, arena
        self._offsets: dict[str, int] = {}
        self.bytes = 0
        for slot in slots:
            self._offsets[slot.name] = self.bytes
            self.bytes += -(-slot.bytes // _ALIGNMENT) * _ALIGNMENT
        self._buffers = [
            _Buffer(context.pinned(self.bytes), context.memory(self.bytes), context.event(), context.event())
            for _ in range(2 if slots else 0)
        ]
        self._turn = 0

    @contextmanager
    def next(self) -> Iterator[dict[str, Array]]:
        """Arrays to fill; at the end they are on their way to the input slots."""
        if not self._buffers:
            yield {}
            return
        buffer = self._buffers[self._turn]
        self._context.until(buffer.copied)
        yield {slot.name: self._view(buffer, slot) for slot in self._slots}
        self._turn ^= 1
        copies, compute = self._context.copies, self._context.compute
        call(cu.cuStreamWaitEvent, copies, buffer.used, 0)
        call(cu.cuMemcpyHtoDAsync, buffer.device, buffer.host.ctypes.data, self.bytes, copies)
        call(cu.cuEventRecord, buffer.copied, copies)
        call(cu.cuStreamWaitEvent, compute, buffer.copied, 0)
        for slot in self._slots:
            source, target = buffer.device + self._offsets[slot.name], self._arena + slot.offset
            call(cu.cuMemcpyDtoDAsync, target, source, element_count(slot) * slot.dtype.bytes, compute)
        call(cu.cuEventRecord, buffer.used, compute)

    def _view(self, buffer: _Buffer, slot: Slot) -> Array:
        start = self._offsets[slot.name]
        size = element_count(slot) * slot.dtype.bytes
        return buffer.host[start : start + size].view(numpy_type(slot.dtype)).reshape(slot.shape)


@dataclass
class _Cell:
    host: Array
    copied: Any


class Results:
    """Small values read back in the background, through pinned cells that are used again once read."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._free: list[_Cell] = []

    def fetch(self, address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> PinnedReading:
        """Ask for an array at a device address, as the compute stream leaves it so far."""
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        cell = self._cell() if size <= _CELL else _Cell(self._context.pinned(size), self._context.event())
        call(cu.cuMemcpyDtoHAsync, cell.host.ctypes.data, address, size, self._context.compute)
        call(cu.cuEventRecord, cell.copied, self._context.compute)
        return PinnedReading(self, cell, dtype, shape, size)

    def wait(self, cell: _Cell) -> None:
        self._context.until(cell.copied)

    def give_back(self, cell: _Cell) -> None:
        if cell.host.size == _CELL:
            self._free.append(cell)

    def _cell(self) -> _Cell:
        if not self._free:
            page = self._context.pinned(16 * _CELL)
            for start in range(0, page.size, _CELL):
                self._free.append(_Cell(page[start : start + _CELL], self._context.event()))
        return self._free.pop()


class PinnedReading:
    """A value on its way into a pinned cell (`executor.Reading`)."""

    def __init__(self, results: Results, cell: _Cell, dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> None:
        self._results, self._dtype, self._shape, self._size = results, dtype, shape, size
        self._cell: _Cell | None = cell
        self._value: Array | None = None

    @property
    def ready(self) -> bool:
        return self._cell is None or done(cu.cuEventQuery, self._cell.copied)

    def value(self) -> Array:
        if self._value is None:
            cell = self._cell
            assert cell is not None
            self._results.wait(cell)
            self._value = cell.host[: self._size].view(self._dtype).reshape(self._shape).copy()
            self._cell = None
            self._results.give_back(cell)
        return self._value
