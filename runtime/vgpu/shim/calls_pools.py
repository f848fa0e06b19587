"""Entries about stream-ordered allocation: simple pools, from which memory is taken at the call."""

from __future__ import annotations

import ctypes

from tcomp.runtime.vgpu.shim.calls_memory import allocate
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context, VirtualDevice
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, put, put_size

_READ_WRITE = 3
_DEVICE_LOCATION = 1


class Pool:
    """`values`: the attributes 1 to 4, by number; 5 and 7 (reserved) and 6 and 8 (used) are counted."""

    def __init__(self, device: VirtualDevice) -> None:
        self.device = device
        self.handle = device.driver.new_handle(self)
        self.values = {1: 1, 2: 1, 3: 1, 4: 0}
        self.used = self.high = 0


class PoolFree:
    """The stream-ordered end of an allocation."""

    kind = 11

    def __init__(self, context: Context, address: int) -> None:
        self.context, self.address = context, address

    def run(self) -> float:
        one = self.context.driver.allocations.at(self.address)
        if one is not None:
            if one.pool:
                self.context.driver.object(one.pool, Pool).used -= one.size
            one.owner.release(one)
        return 0.0


def _default(device: VirtualDevice, key: str = "default") -> Pool:
    if key not in device.pools:
        device.pools[key] = Pool(device).handle if key == "default" else _default(device).handle
    return device.driver.object(device.pools[key], Pool)


@entry("cuDeviceGetDefaultMemPool", "pi", 11020, needs="driver")
def cu_device_get_default_mem_pool(driver: VirtualDriver, pool: int, device: int) -> None:
    put_size(pool, _default(driver.device(device)).handle)


@entry("cuDeviceGetMemPool", "pi", 11020, needs="driver")
def cu_device_get_mem_pool(driver: VirtualDriver, pool: int, device: int) -> None:
    put_size(pool, _default(driver.device(device), "current").handle)


@entry("cuDeviceSetMemPool", "ip", 11020, needs="driver")
def cu_device_set_mem_pool(driver: VirtualDriver, device: int, pool: int) -> None:
    one = driver.device(device)
    if driver.object(pool, Pool, "INVALID_VALUE").device is not one:
        raise fail("INVALID_VALUE")
    one.pools["current"] = pool


@entry("cuMemPoolCreate", "pp", 11020, needs="driver")
def cu_mem_pool_create(driver: VirtualDriver, pool: int, properties: int) -> None:
    if not properties or not pool:
        raise fail("INVALID_VALUE")
    allocation, handles, location, device = (ctypes.c_int32 * 4).from_address(properties)
    if allocation != 1 or location != _DEVICE_LOCATION or handles:
        raise fail("NOT_SUPPORTED", "only pools of unshared device memory")
    put_size(pool, Pool(driver.device(device)).handle)


@entry("cuMemPoolDestroy", "p", 11020, needs="driver")
def cu_mem_pool_destroy(driver: VirtualDriver, pool: int) -> None:
    one = driver.object(pool, Pool, "INVALID_VALUE")
    if pool == one.device.pools.get("default"):
        raise fail("INVALID_VALUE")
    driver.drop_handle(pool)
    if one.device.pools.get("current") == pool:
        del one.device.pools["current"]


@entry("cuMemPoolGetAttribute", "pip", 11020, needs="driver")
def cu_mem_pool_get_attribute(driver: VirtualDriver, pool: int, attribute: int, value: int) -> None:
    one = driver.object(pool, Pool, "INVALID_VALUE")
    found = {**one.values, 5: one.used, 6: one.high, 7: one.used, 8: one.high}.get(attribute)
    if found is None:
        raise fail("INVALID_VALUE")
    put(value, ctypes.c_int32 if attribute < 4 else ctypes.c_uint64, found)


@entry("cuMemPoolSetAttribute", "pip", 11020, needs="driver")
def cu_mem_pool_set_attribute(driver: VirtualDriver, pool: int, attribute: int, value: int) -> None:
    one = driver.object(pool, Pool, "INVALID_VALUE")
    if attribute in (6, 8):
        one.high = one.used
    elif attribute in one.values and value:
        one.values[attribute] = (ctypes.c_int32 if attribute < 4 else ctypes.c_uint64).from_address(value).value
    else:
        raise fail("INVALID_VALUE")


@entry("cuMemPoolTrimTo", "pp", 11020, needs="driver")
def cu_mem_pool_trim_to(driver: VirtualDriver, pool: int, keep: int) -> None:
    driver.object(pool, Pool, "INVALID_VALUE")


@entry("cuMemPoolSetAccess", "ppp", 11020, needs="driver")
def cu_mem_pool_set_access(driver: VirtualDriver, pool: int, access: int, count: int) -> None:
    driver.object(pool, Pool, "INVALID_VALUE")


@entry("cuMemPoolGetAccess", "ppp", 11020, needs="driver")
def cu_mem_pool_get_access(driver: VirtualDriver, flags: int, pool: int, location: int) -> None:
    one = driver.object(pool, Pool, "INVALID_VALUE")
    kind, number = (ctypes.c_int32 * 2).from_address(location)
    own = kind == _DEVICE_LOCATION and number == one.device.number
    put(flags, ctypes.c_int32, _READ_WRITE if own else 0)


def _allocate(context: Context, address: int, size: int, pool: Pool, stream: int) -> None:
    if context.stream(stream).branch is not None:
        raise fail("NOT_SUPPORTED", "allocation nodes in a captured graph: allocate before the capture")
    if not address:
        raise fail("INVALID_VALUE")
    put_size(address, allocate(context, size, "pool", pool.handle).base)
    pool.used += size
    pool.high = max(pool.high, pool.used)


@entry("cuMemAllocAsync", "ppp", 11020, stream=2)
def cu_mem_alloc_async(context: Context, address: int, size: int, stream: int) -> None:
    _allocate(context, address, size, _default(context.device, "current"), stream)


@entry("cuMemAllocFromPoolAsync", "pppp", 11020, stream=3)
def cu_mem_alloc_from_pool_async(context: Context, address: int, size: int, pool: int, stream: int) -> None:
    _allocate(context, address, size, context.driver.object(pool, Pool, "INVALID_VALUE"), stream)


@entry("cuMemFreeAsync", "pp", 11020, stream=1)
def cu_mem_free_async(context: Context, address: int, stream: int) -> None:
    one = context.driver.allocations.at(address)
    if one is None or not one.on_device:
        raise fail("INVALID_VALUE", f"{address:#x} is no device allocation, or was freed already")
    if context.stream(stream).branch is not None:
        raise fail("NOT_SUPPORTED", "free nodes in a captured graph")
    context.enqueue(stream, PoolFree(context, address))
