"""Entries about contexts: making, binding to threads, limits, synchronising."""

from __future__ import annotations

from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, put_int, put_size


def _create(driver: VirtualDriver, handle: int, flags: int, device: int) -> None:
    one = driver.device(device)
    if not handle or flags & ~0xFF:
        raise fail("INVALID_VALUE")
    context = Context(driver, one, flags)
    driver.stack.append(context)
    put_size(handle, context.handle)


entry("cuCtxCreate_v2", "pui", 3020, needs="driver")(_create)


@entry("cuCtxCreate_v3", "ppiui", 11040, needs="driver")
def cu_ctx_create_v3(driver: VirtualDriver, handle: int, affinity: int, count: int, flags: int, device: int) -> None:
    if count:
        raise fail("UNSUPPORTED_EXEC_AFFINITY")
    _create(driver, handle, flags, device)


@entry("cuCtxCreate_v4", "ppui", 12050, needs="driver")
def cu_ctx_create_v4(driver: VirtualDriver, handle: int, parameters: int, flags: int, device: int) -> None:
    if parameters:
        raise fail("NOT_SUPPORTED", "context creation parameters")
    _create(driver, handle, flags, device)


def _context(driver: VirtualDriver, handle: int) -> Context:
    return driver.object(handle, Context, "INVALID_CONTEXT")


@entry("cuCtxDestroy_v2", "p", 4000, needs="driver")
def cu_ctx_destroy(driver: VirtualDriver, handle: int) -> None:
    context = _context(driver, handle)
    if context.primary:
        raise fail("INVALID_CONTEXT")
    context.destroy()
    if driver.current() is context:
        driver.stack.pop()


@entry("cuCtxPushCurrent_v2", "p", 4000, needs="driver")
def cu_ctx_push_current(driver: VirtualDriver, handle: int) -> None:
    driver.stack.append(_context(driver, handle))


@entry("cuCtxPopCurrent_v2", "p", 4000, needs="driver")
def cu_ctx_pop_current(driver: VirtualDriver, handle: int) -> None:
    if not driver.stack:
        raise fail("INVALID_CONTEXT")
    context = driver.stack.pop()
    if handle:
        put_size(handle, context.handle)


@entry("cuCtxSetCurrent", "p", 4000, needs="driver")
def cu_ctx_set_current(driver: VirtualDriver, handle: int) -> None:
    context = _context(driver, handle) if handle else None
    if driver.stack:
        driver.stack.pop()
    if context is not None:
        driver.stack.append(context)


@entry("cuCtxGetCurrent", "p", 4000, needs="driver")
def cu_ctx_get_current(driver: VirtualDriver, handle: int) -> None:
    context = driver.current()
    put_size(handle, context.handle if context is not None else 0)


@entry("cuCtxGetDevice", "p", 2000)
def cu_ctx_get_device(context: Context, device: int) -> None:
    put_int(device, context.device.number)


@entry("cuCtxGetDevice_v2", "pp", 13000, needs="driver")
def cu_ctx_get_device_v2(driver: VirtualDriver, device: int, handle: int) -> None:
    context = _context(driver, handle) if handle else driver.usable_context()
    put_int(device, context.device.number)


@entry("cuCtxGetFlags", "p", 7000)
def cu_ctx_get_flags(context: Context, flags: int) -> None:
    put_int(flags, context.flags)


@entry("cuCtxSetFlags", "u", 12010)
def cu_ctx_set_flags(context: Context, flags: int) -> None:
    context.flags = flags


@entry("cuCtxGetId", "pp", 12000, needs="driver")
def cu_ctx_get_id(driver: VirtualDriver, handle: int, number: int) -> None:
    put_size(number, (_context(driver, handle) if handle else driver.usable_context()).number)


@entry("cuCtxSynchronize", "", 2000, unsafe=True)
def cu_ctx_synchronize(context: Context) -> None:
    context.synchronise()


@entry("cuCtxSynchronize_v2", "p", 13000, needs="driver")
def cu_ctx_synchronize_v2(driver: VirtualDriver, handle: int) -> None:
    context = _context(driver, handle) if handle else driver.usable_context()
    context.raise_sticky()
    context.refuse_in_capture("cuCtxSynchronize")
    context.synchronise()


@entry("cuCtxGetApiVersion", "pp", 3020, needs="driver")
def cu_ctx_get_api_version(driver: VirtualDriver, handle: int, version: int) -> None:
    if handle:
        _context(driver, handle)
    put_int(version, 3020)


@entry("cuCtxGetLimit", "pi", 3010)
def cu_ctx_get_limit(context: Context, value: int, limit: int) -> None:
    if limit not in context.limits:
        raise fail("UNSUPPORTED_LIMIT" if 0 <= limit < 16 else "INVALID_VALUE")
    put_size(value, context.limits[limit])


@entry("cuCtxSetLimit", "ip", 3010)
def cu_ctx_set_limit(context: Context, limit: int, value: int) -> None:
    if limit not in context.limits:
        raise fail("UNSUPPORTED_LIMIT" if 0 <= limit < 16 else "INVALID_VALUE")
    context.limits[limit] = value


@entry("cuCtxGetCacheConfig", "p", 3020)
def cu_ctx_get_cache_config(context: Context, value: int) -> None:
    put_int(value, context.cache_config)


@entry("cuCtxSetCacheConfig", "i", 3020)
def cu_ctx_set_cache_config(context: Context, value: int) -> None:
    context.cache_config = value


@entry("cuCtxGetStreamPriorityRange", "pp", 5050)
def cu_ctx_get_stream_priority_range(context: Context, least: int, greatest: int) -> None:
    if least:
        put_int(least, 0)
    if greatest:
        put_int(greatest, -5)


@entry("cuCtxResetPersistingL2Cache", "", 11000)
def cu_ctx_reset_persisting_l2_cache(context: Context) -> None:
    """Nothing persists."""


@entry("cuCtxEnablePeerAccess", "pu", 4000)
def cu_ctx_enable_peer_access(context: Context, peer: int, flags: int) -> None:
    raise fail("PEER_ACCESS_UNSUPPORTED")


@entry("cuCtxDisablePeerAccess", "p", 4000)
def cu_ctx_disable_peer_access(context: Context, peer: int) -> None:
    raise fail("PEER_ACCESS_NOT_ENABLED")
