"""Copies and fills: rows of bytes between host and device memory, checked at the call, done when the work runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tcomp.runtime.vgpu.lanes import Array
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.placing import host_bytes

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.memory import Segment
    from tcomp.runtime.vgpu.shim.driver import VirtualDriver

HOST, DEVICE, UNIFIED = "host", "device", "unified"
PCIE_BANDWIDTH = 55e9  # bytes per second, for the virtual clock
COPY_NS = 1500.0


@dataclass(frozen=True)
class Side:
    """One end of a copy: `rows` starts at `address + row * pitch + plane * plane_bytes`."""

    kind: str
    address: int
    pitch: int = 0
    plane_bytes: int = 0

    def row(self, y: int, z: int) -> int:
        return self.address + y * self.pitch + z * self.plane_bytes


def segment_at(driver: VirtualDriver, address: int, size: int) -> Segment | None:
    """The device memory that holds these bytes; None when no device has the address. INVALID_VALUE when it has
    only some of them."""
    for d in driver.devices:
        found = d.memory.find(address)
        if found is not None:
            if address + size > found.end:
                raise fail("INVALID_VALUE", f"{size} bytes at {address:#x} run {address + size - found.end} bytes past "
                           f"the end of the allocation of {found.size} bytes at {found.base:#x}")  # fmt: skip
            return found
    return None


def resolve(driver: VirtualDriver, side: Side, size: int) -> Side:
    """`side` with its kind known: an address of unified kind is the device's if a device has it."""
    if not side.address:
        raise fail("INVALID_VALUE")
    if side.kind == HOST:
        return side
    if segment_at(driver, side.address, size) is None:
        if side.kind == DEVICE:
            one = driver.allocations.find(side.address)
            if one is None:
                raise fail("INVALID_VALUE", f"{side.address:#x} is in no device allocation")
        return replace(side, kind=HOST)
    return replace(side, kind=DEVICE)


class Copy:
    """`width` bytes of each of `height` rows of each of `depth` planes."""

    kind = 1

    def __init__(
        self, driver: VirtualDriver, to: Side, source: Side, width: int, height: int = 1, depth: int = 1
    ) -> None:
        self.driver, self.width, self.height, self.depth = driver, width, height, depth
        self.to, self.source = (
            resolve(driver, s, (height - 1) * s.pitch + (depth - 1) * s.plane_bytes + width) for s in (to, source)
        )
        self.staged: list[Array] | None = None

    @property
    def empty(self) -> bool:
        return not self.width * self.height * self.depth

    @property
    def from_pageable(self) -> bool:
        return self.source.kind == HOST and self.driver.allocations.find(self.source.address) is None

    def stage(self) -> None:
        """Takes the source's bytes now: the driver reads pageable memory before the call returns."""
        self.staged = [host_bytes(self.source.row(y, z), self.width).copy() for y, z in self._rows()]

    def run(self) -> float:
        for n, (y, z) in enumerate(self._rows()):
            self._row(self.to.row(y, z), self.source.row(y, z), self.staged[n] if self.staged else None)
        size = self.width * self.height * self.depth
        host = HOST in (self.to.kind, self.source.kind)
        bandwidth = PCIE_BANDWIDTH if host else self.driver.model.memory_bandwidth / 2
        return COPY_NS + 1e9 * size / bandwidth

    def _rows(self) -> list[tuple[int, int]]:
        return [(y, z) for z in range(self.depth) for y in range(self.height)]

    def _row(self, to: int, source: int, staged: Array | None) -> None:
        n, init = self.width, None
        if staged is not None:
            data = staged
        elif self.source.kind == HOST:
            data = host_bytes(source, n)
        else:
            s = _held(self.driver, source, n)
            at = source - s.base
            data = s.data[at : at + n]
            init = None if s.initialised else s.init[at : at + n].copy()
        if self.to.kind == HOST:
            host_bytes(to, n)[:] = data
            return
        d = _held(self.driver, to, n)
        at = to - d.base
        d.data[at : at + n] = data.copy() if data.base is d.data else data
        if init is None:
            d.written(at, n)
        elif not d.initialised:
            d.init[at : at + n] = init


class Fill:
    """`count` elements of 1, 2 or 4 bytes in each of `height` rows."""

    kind = 2

    def __init__(
        self, driver: VirtualDriver, address: int, element: int, value: int, count: int, height: int = 1, pitch: int = 0
    ) -> None:
        self.driver, self.address, self.element, self.value = driver, address, element, value
        self.count, self.height, self.pitch = count, height, pitch
        if address % element or pitch % element:
            raise fail("INVALID_VALUE", f"{address:#x} or pitch {pitch} is no multiple of {element}")
        if height > 1 and pitch < count * element:
            raise fail("INVALID_VALUE", f"rows of {count * element} bytes at a pitch of {pitch}")
        if not self.empty:
            span = (height - 1) * pitch + count * element
            if not address or resolve(driver, Side(DEVICE, address), span).kind != DEVICE:
                raise fail("INVALID_VALUE", f"{address:#x} is in no device allocation")

    @property
    def empty(self) -> bool:
        return not self.count * self.height

    def run(self) -> float:
        pattern = np.full(self.count, self.value, f"u{self.element}").view(np.uint8)
        for y in range(self.height):
            address = self.address + y * self.pitch
            s = _held(self.driver, address, len(pattern))
            at = address - s.base
            s.data[at : at + len(pattern)] = pattern
            s.written(at, len(pattern))
        return COPY_NS + 1e9 * self.count * self.element * self.height / self.driver.model.memory_bandwidth


def _held(driver: VirtualDriver, address: int, size: int) -> Segment:
    found = segment_at(driver, address, size)
    if found is None:
        raise fail("ILLEGAL_ADDRESS", f"the memory at {address:#x} was freed before work that uses it had run")
    return found
