"""Entries about streams."""

from __future__ import annotations

import ctypes

from tcomp.runtime.vgpu.shim.codes import CudaError, fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, put, put_int, put_size
from tcomp.runtime.vgpu.shim.events import Event
from tcomp.runtime.vgpu.shim.work import Stream, step

_DEFAULTS = (0, 1, 2)


def _create(context: Context, handle: int, flags: int, priority: int = 0) -> None:
    if flags & ~1 or not handle:
        raise fail("INVALID_VALUE")
    stream = Stream(context, flags, max(-5, min(0, priority)))
    stream.handle = context.driver.new_handle(stream)
    context.created.append(stream)
    put_size(handle, stream.handle)


entry("cuStreamCreate", "pu", 2000)(_create)
entry("cuStreamCreateWithPriority", "pui", 5050)(_create)


@entry("cuStreamDestroy_v2", "p", 4000, needs="driver")
def cu_stream_destroy(driver: VirtualDriver, handle: int) -> None:
    """Work that is queued still runs: at the next synchronisation of the context."""
    stream = driver.object(handle, Stream)
    if stream.branch is not None:
        stream.branch.capture.valid = False
    driver.drop_handle(handle)
    stream.abandoned = True
    if not stream.queue:
        stream.context.created.remove(stream)


@entry("cuStreamSynchronize", "p", 2000, stream=0)
def cu_stream_synchronize(context: Context, handle: int) -> None:
    stream = context.stream(handle)
    _refuse_captured(stream)
    stream.synchronise()
    context.raise_sticky()


@entry("cuStreamQuery", "p", 2000, stream=0)
def cu_stream_query(context: Context, handle: int) -> None:
    stream = context.stream(handle)
    _refuse_captured(stream)
    if step(stream):
        context.raise_sticky()
        raise CudaError(600)
    context.host_time = max(context.host_time, stream.end)


def _refuse_captured(stream: Stream) -> None:
    if stream.branch is not None:
        stream.branch.capture.valid = False
        raise fail("STREAM_CAPTURE_UNSUPPORTED", "a stream that is captured cannot be synchronised with")
    if stream.legacy:
        stream.context.refuse_implicit()


@entry("cuStreamWaitEvent", "ppu", 3020, stream=0)
def cu_stream_wait_event(context: Context, handle: int, event: int, flags: int) -> None:
    if flags not in (0, 1):
        raise fail("INVALID_VALUE")
    context.driver.object(event, Event).wait(context, handle)


@entry("cuStreamGetFlags", "pp", 5050, stream=0)
def cu_stream_get_flags(context: Context, handle: int, flags: int) -> None:
    put_int(flags, context.stream(handle).flags)


@entry("cuStreamGetPriority", "pp", 5050, stream=0)
def cu_stream_get_priority(context: Context, handle: int, priority: int) -> None:
    put_int(priority, context.stream(handle).priority)


@entry("cuStreamGetId", "pp", 12000, stream=0)
def cu_stream_get_id(context: Context, handle: int, number: int) -> None:
    put_size(number, context.stream(handle).number)


@entry("cuStreamGetCtx", "pp", 9020, stream=0)
def cu_stream_get_ctx(context: Context, handle: int, owner: int) -> None:
    one = context if handle in _DEFAULTS else context.driver.object(handle, Stream).context
    put_size(owner, one.handle)


@entry("cuStreamGetCtx_v2", "ppp", 12050, stream=0)
def cu_stream_get_ctx_v2(context: Context, handle: int, owner: int, green: int) -> None:
    cu_stream_get_ctx(context, handle, owner)
    if green:
        put_size(green, 0)


@entry("cuStreamGetDevice", "pp", 12080, stream=0)
def cu_stream_get_device(context: Context, handle: int, device: int) -> None:
    put(device, ctypes.c_int32, context.stream(handle).context.device.number)


@entry("cuStreamAddCallback", "pppu", 5000, stream=0)
def cu_stream_add_callback(context: Context, handle: int, function: int, data: int, flags: int) -> None:
    raise fail("NOT_SUPPORTED", "stream callbacks: use cuLaunchHostFunc")
