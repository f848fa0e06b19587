"""Entries about events."""

from __future__ import annotations

import ctypes

from tcomp.runtime.vgpu.shim.codes import CudaError, fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, put, put_size
from tcomp.runtime.vgpu.shim.events import NO_TIMING, Event


@entry("cuEventCreate", "pu", 2000)
def cu_event_create(context: Context, handle: int, flags: int) -> None:
    if flags & ~7 or not handle or (flags & 4 and not flags & NO_TIMING):
        raise fail("INVALID_VALUE")
    put_size(handle, Event(context, flags).handle)


@entry("cuEventDestroy_v2", "p", 4000, needs="driver")
def cu_event_destroy(driver: VirtualDriver, event: int) -> None:
    driver.object(event, Event)
    driver.drop_handle(event)


@entry("cuEventRecord", "pp", 2000, stream=1)
def cu_event_record(context: Context, event: int, stream: int) -> None:
    context.driver.object(event, Event).record(context, stream)


@entry("cuEventRecordWithFlags", "ppu", 11010, stream=1)
def cu_event_record_with_flags(context: Context, event: int, stream: int, flags: int) -> None:
    if flags:
        raise fail("NOT_SUPPORTED" if flags == 1 else "INVALID_VALUE", "external event nodes")
    context.driver.object(event, Event).record(context, stream)


@entry("cuEventQuery", "p", 2000)
def cu_event_query(context: Context, event: int) -> None:
    if not context.driver.object(event, Event).query():
        raise CudaError(600)


@entry("cuEventSynchronize", "p", 2000)
def cu_event_synchronize(context: Context, event: int) -> None:
    context.driver.object(event, Event).synchronise()


def _elapsed(context: Context, milliseconds: int, start: int, end: int) -> None:
    first, last = (context.driver.object(h, Event) for h in (start, end))
    put(milliseconds, ctypes.c_float, last.milliseconds_since(first))


entry("cuEventElapsedTime", "ppp", 2000)(_elapsed)
entry("cuEventElapsedTime_v2", "ppp", 12080)(_elapsed)
