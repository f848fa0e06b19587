"""A GPU's primary context, two streams in it, and all else that an executor makes there, given back in reverse order.

The primary context stays with the process, as the next executor needs it again; one that a fault has ended is let go,
so that the next executor gets a sound one.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver as cu

from tcomp.runtime.cuda.driver import CudaError, call, error_of
from tcomp.runtime.cuda.gpus import Gpu
from tcomp.runtime.values import Array

_GLANCE = 1e-4
"""Seconds between looks at a GPU that others may keep waiting"""
_kept: dict[int, Any] = {}
"""Primary contexts by GPU."""


class Context:
    """`compute` is the stream that programs run on, in order; `copies` carries batches beside it.

    `look` is called again and again while the host waits for the GPU, where that may wait for what never comes (another
    process): it raises what ends the wait."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.look: Callable[[], None] | None = None
        self._owned: list[tuple[Callable[..., Any], Any]] = []
        self.compute: Any = None
        self.copies: Any = None
        self.device = call(cu.cuDeviceGet, gpu.index)
        if gpu.index not in _kept:
            _kept[gpu.index] = call(cu.cuDevicePrimaryCtxRetain, self.device)
        try:
            call(cu.cuCtxSetCurrent, _kept[gpu.index])
            flags = cu.CUstream_flags.CU_STREAM_NON_BLOCKING
            self.compute = self.own(cu.cuStreamDestroy, call(cu.cuStreamCreate, flags))
            self.copies = self.own(cu.cuStreamDestroy, call(cu.cuStreamCreate, flags))
        except BaseException:
            self.close()
            raise

    def own(self, destroy: Callable[..., Any], handle: Any) -> Any:
        """Give `handle` to `destroy` when the context closes; the handle itself."""
        self._owned.append((destroy, handle))
        return handle

    def memory(self, size: int) -> int:
        """Device memory, 256-byte aligned; its address."""
        return int(self.own(cu.cuMemFree, call(cu.cuMemAlloc, max(size, 1))))

    def pinned(self, size: int) -> Array:
        """Host memory that the GPU copies from and to by itself, as bytes."""
        address = int(self.own(cu.cuMemFreeHost, call(cu.cuMemHostAlloc, max(size, 1), 0)))
        found: Array = np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))
        return found

    def event(self, timing: bool = False) -> Any:
        flags = cu.CUevent_flags.CU_EVENT_DEFAULT if timing else cu.CUevent_flags.CU_EVENT_DISABLE_TIMING
        return self.own(cu.cuEventDestroy, call(cu.cuEventCreate, flags))

    def free_memory(self) -> int:
        return int(call(cu.cuMemGetInfo)[0])

    def check(self) -> None:
        """CudaError where work has failed so far."""
        done(cu.cuStreamQuery, self.compute)

    def wait(self) -> None:
        """Until both streams have done all they were given."""
        self.finish(self.copies)
        self.finish(self.compute)

    def finish(self, stream: Any) -> None:
        """Until a stream has done all it was given."""
        self._until(cu.cuStreamSynchronize, cu.cuStreamQuery, stream)

    def until(self, event: Any) -> None:
        """Until an event has been reached."""
        self._until(cu.cuEventSynchronize, cu.cuEventQuery, event)

    def _until(self, synchronize: Callable[..., Any], query: Callable[..., Any], handle: Any) -> None:
        if self.look is None:
            call(synchronize, handle)
            return
        while not done(query, handle):
            self.look()
            time.sleep(_GLANCE)

    def close(self) -> None:
        """Wait for the work and give everything back. A context that a fault has ended refuses most of this, which
        then does not matter."""
        lost = False
        for stream in (self.copies, self.compute):
            try:
                if stream is not None:
                    call(cu.cuStreamSynchronize, stream)
            except CudaError as e:
                lost = lost or e.sticky
        while self._owned:
            destroy, handle = self._owned.pop()
            with contextlib.suppress(CudaError):
                call(destroy, handle)
        if lost and _kept.pop(self.gpu.index, None) is not None:
            with contextlib.suppress(CudaError):
                call(cu.cuDevicePrimaryCtxRelease, self.device)


def done(query: Callable[..., Any], handle: Any) -> bool:
    """What cuEventQuery or cuStreamQuery says. CudaError where work has failed."""
    (status,) = query(handle)
    if status == cu.CUresult.CUDA_ERROR_NOT_READY:
        return False
    if status != cu.CUresult.CUDA_SUCCESS:
        raise error_of(status, query.__name__)
    return True


def forget() -> None:
    """Give back the primary contexts that the process has kept; executors must be closed."""
    while _kept:
        index, _ = _kept.popitem()
        with contextlib.suppress(CudaError):
            call(cu.cuDevicePrimaryCtxRelease, call(cu.cuDeviceGet, index))
