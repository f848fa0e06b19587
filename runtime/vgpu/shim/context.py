"""A virtual device and the contexts on it: streams, memory in use, limits, captures, and the sticky error."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from tcomp.runtime.vgpu.device import Device
from tcomp.runtime.vgpu.memory import GLOBAL_BASE
from tcomp.runtime.vgpu.shim import state
from tcomp.runtime.vgpu.shim.capture import Capture
from tcomp.runtime.vgpu.shim.codes import CudaError, fail
from tcomp.runtime.vgpu.shim.machines import Model
from tcomp.runtime.vgpu.shim.placing import PlacedMemory
from tcomp.runtime.vgpu.shim.work import Operation, Stream, Work

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.allocations import Allocation
    from tcomp.runtime.vgpu.shim.driver import VirtualDriver
    from tcomp.runtime.vgpu.shim.modules import Library, Module

LEGACY, PER_THREAD = 1, 2
_LIMITS = {0: 1024, 1: 8 << 20, 2: 8 << 20, 3: 2, 4: 2048, 5: 64, 6: 0}


class VirtualDevice:
    def __init__(self, driver: VirtualDriver, number: int, model: Model) -> None:
        self.driver, self.number, self.model = driver, number, model
        self.gpu = Device(model.sm, driver.options.device)
        taken: list[PlacedMemory] = [d.memory for d in driver.devices]
        self.memory: PlacedMemory = PlacedMemory(model.memory_bytes, max((m.limit for m in taken), default=GLOBAL_BASE))
        self.gpu.memory = self.memory
        self.uuid = hashlib.sha256(f"tcomp virtual {model.name} {number}".encode()).digest()[:16]
        self.primary: Context | None = None
        self.primary_count = 0
        self.primary_flags = 0
        self.used = 0
        self.pools: dict[str, int] = {}

    def take(self, size: int) -> None:
        if self.used + size > self.model.memory_bytes:
            left = self.model.memory_bytes - self.used
            raise fail("OUT_OF_MEMORY", f"{size} bytes asked for, {left} of {self.model.memory_bytes} are free")
        self.used += size


class Context:
    """`error` is the sticky result code: once a kernel has failed, every call gives it until the context ends."""

    def __init__(self, driver: VirtualDriver, device: VirtualDevice, flags: int, primary: bool = False) -> None:
        self.driver, self.device, self.flags, self.primary = driver, device, flags, primary
        self.number = driver.next_number()
        self.handle = driver.new_handle(self)
        self.error = 0
        self.destroyed = False
        self.host_time = 0.0
        self.limits = dict(_LIMITS)
        self.cache_config = 0
        self.default_stream = 0
        self.legacy = Stream(self, legacy=True)
        self.thread_streams: dict[int, Stream] = {}
        self.created: list[Stream] = []
        self.captures: list[Capture] = []
        self.modules: list[Module] = []
        self.loaded: dict[Library, Module] = {}

    # --- streams
    def streams(self) -> list[Stream]:
        return [*self.thread_streams.values(), *self.created]

    def stream(self, handle: int) -> Stream:
        """The stream of a handle; 0, 1 and 2 are the default streams."""
        if handle == 0:
            handle = self.default_stream
        if handle in (0, LEGACY):
            return self.legacy
        if handle == PER_THREAD:
            me = threading.get_ident()
            if me not in self.thread_streams:
                self.thread_streams[me] = Stream(self)
            return self.thread_streams[me]
        found = self.driver.object(handle, Stream)
        if found.context is not self:
            raise fail("INVALID_HANDLE")
        return found

    def enqueue(self, handle: int, operation: Operation) -> Work | None:
        """Work for a stream, or a node of the graph that the stream is captured into (then None)."""
        stream = self.stream(handle)
        if stream.branch is not None:
            stream.branch.add(operation)
            return None
        if stream.legacy:
            self.refuse_implicit()
        work = stream.submit(operation)
        self.raise_sticky()
        return work

    def refuse_implicit(self) -> None:
        """The legacy stream may not be used while a blocking stream is captured."""
        for s in self.streams():
            if s.blocking and s.branch is not None and s.branch.capture.valid:
                s.branch.capture.valid = False
                raise fail("STREAM_CAPTURE_IMPLICIT")

    def refuse_in_capture(self, name: str) -> None:
        """Calls that may synchronise or allocate are refused while a capture is on, as its mode says."""
        me = threading.get_ident()
        exchanged = self.driver.capture_mode
        if exchanged == 2:
            return
        for c in self.captures:
            if (c.mode == 0 and exchanged == 0) or (c.mode in (0, 1) and c.thread == me):
                c.valid = False
                raise fail("STREAM_CAPTURE_UNSUPPORTED", f"{name} is not allowed while a stream is captured")

    def synchronise(self) -> None:
        """Runs everything; the sticky error if some of it failed."""
        for s in [self.legacy, *self.streams()]:
            s.synchronise()
        self.raise_sticky()

    def raise_sticky(self) -> None:
        if self.error:
            raise CudaError(self.error)

    def lose(self, error: CudaError) -> None:
        """A kernel failed: the context is of no further use, and what is queued never runs."""
        self.error = error.code
        said = self.driver.describe_error(error.code)
        why = f": {error.note}" if error.note else ""
        state.log(f"context {self.number} is lost with {said}{why}; every later call in it fails with this code")

    # --- its end
    def destroy(self) -> None:
        """Finishes the work, frees memory and modules. The handle is invalid from here on."""
        if self.destroyed:
            return
        for s in [self.legacy, *self.streams()]:
            s.synchronise()
        for one in self.driver.allocations:
            if one.owner is self:
                self.release(one)
        for m in list(self.modules):
            m.unload()
        self.loaded.clear()
        for s in self.created:
            self.driver.drop_handle(s.handle)
        self.destroyed = True
        self.driver.drop_handle(self.handle)

    def release(self, one: Allocation) -> None:
        """Takes an allocation off the device; work that may use it has to be done."""
        self.driver.allocations.remove(one)
        device = one.owner.device
        for start in one.pages:
            device.gpu.free(start)
        if one.on_device:
            device.used -= one.size
