"""Entries about memory: device, pinned, managed; what a pointer is."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from tcomp.runtime.vgpu.shim.allocations import Allocation
from tcomp.runtime.vgpu.shim.codes import CudaError, fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, pointers, put_int, put_size
from tcomp.runtime.vgpu.shim.placing import PAGE


def allocate(context: Context, size: int, kind: str = "device", pool: int = 0) -> Allocation:
    """Device memory. INVALID_VALUE for no bytes, OUT_OF_MEMORY."""
    if not size:
        raise fail("INVALID_VALUE", "0 bytes of device memory were asked for")
    device = context.device
    device.take(size)
    try:
        address = device.gpu.allocate(size)
    except MemoryError:
        device.used -= size
        raise fail("OUT_OF_MEMORY", f"the host has no {size} bytes to hold them") from None
    one = Allocation(address, size, kind, context, context.driver.next_number(), pool=pool, pages=[address])
    context.driver.allocations.add(one)
    return one


def allocate_host(context: Context, size: int, flags: int, kind: str) -> Allocation:
    """Host memory that kernels reach at the same address."""
    if not size:
        raise fail("INVALID_VALUE")
    rounded = -(-size // PAGE) * PAGE
    try:
        mapping = mmap.mmap(-1, rounded)
    except (OSError, ValueError, OverflowError):
        raise fail("OUT_OF_MEMORY") from None
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    one = Allocation(address, size, kind, context, context.driver.next_number(), flags, mapping=mapping)
    context.device.memory.adopt(address, rounded)
    one.pages.append(address)
    context.driver.allocations.add(one)
    return one


@entry("cuMemAlloc_v2", "pp", 3020, unsafe=True)
def cu_mem_alloc(context: Context, address: int, size: int) -> None:
    if not address:
        raise fail("INVALID_VALUE")
    put_size(address, allocate(context, size).base)


@entry("cuMemAllocPitch_v2", "ppppu", 3020, unsafe=True)
def cu_mem_alloc_pitch(context: Context, address: int, pitch: int, width: int, height: int, element: int) -> None:
    if element not in (4, 8, 16) or not address or not pitch:
        raise fail("INVALID_VALUE")
    step = -(-width // 512) * 512
    put_size(address, allocate(context, step * height).base)
    put_size(pitch, step)


@entry("cuMemFree_v2", "p", 3020, unsafe=True)
def cu_mem_free(context: Context, address: int) -> None:
    if not address:
        return
    one = context.driver.allocations.at(address)
    if one is None or not (one.on_device or one.kind == "managed"):
        raise fail("INVALID_VALUE", f"{address:#x} is no device allocation, or was freed already")
    _free(one)


def _free(one: Allocation) -> None:
    """Work that is queued may use the memory: it runs first, as the driver's implicit synchronisation does."""
    try:
        one.owner.synchronise()
    finally:
        one.owner.release(one)


@entry("cuMemGetInfo_v2", "pp", 3020)
def cu_mem_get_info(context: Context, free: int, total: int) -> None:
    put_size(free, context.device.model.memory_bytes - context.device.used)
    put_size(total, context.device.model.memory_bytes)


@entry("cuMemGetAddressRange_v2", "ppp", 3020)
def cu_mem_get_address_range(context: Context, base: int, size: int, address: int) -> None:
    one = context.driver.allocations.find(address)
    if one is None:
        raise fail("NOT_FOUND")
    if base:
        put_size(base, one.base)
    if size:
        put_size(size, one.size)


# --- pinned host memory
@entry("cuMemHostAlloc", "ppu", 2020, unsafe=True)
def cu_mem_host_alloc(context: Context, address: int, size: int, flags: int) -> None:
    if flags & ~7 or not address:
        raise fail("INVALID_VALUE")
    put_size(address, allocate_host(context, size, flags, "host").base)


@entry("cuMemAllocHost_v2", "pp", 3020, unsafe=True)
def cu_mem_alloc_host(context: Context, address: int, size: int) -> None:
    if not address:
        raise fail("INVALID_VALUE")
    put_size(address, allocate_host(context, size, 0, "host").base)


@entry("cuMemFreeHost", "p", 2000, unsafe=True)
def cu_mem_free_host(context: Context, address: int) -> None:
    one = context.driver.allocations.at(address)
    if one is None or one.kind != "host":
        raise fail("INVALID_VALUE")
    _free(one)


@entry("cuMemHostRegister_v2", "ppu", 6050, unsafe=True)
def cu_mem_host_register(context: Context, address: int, size: int, flags: int) -> None:
    if not address or not size or flags & ~15:
        raise fail("INVALID_VALUE")
    everything = context.driver.allocations
    if everything.find(address) is not None or everything.find(address + size - 1) is not None:
        raise fail("HOST_MEMORY_ALREADY_REGISTERED")
    one = Allocation(address, size, "registered", context, context.driver.next_number(), flags)
    first, last = address // PAGE * PAGE, -(-(address + size) // PAGE) * PAGE
    memory = context.device.memory
    if memory.find(first) is None and memory.find(last - 1) is None:  # else a neighbour's registration has the pages
        memory.adopt(first, last - first)
        one.pages.append(first)
    everything.add(one)


@entry("cuMemHostUnregister", "p", 4000, unsafe=True)
def cu_mem_host_unregister(context: Context, address: int) -> None:
    one = context.driver.allocations.at(address)
    if one is None or one.kind != "registered":
        raise fail("HOST_MEMORY_NOT_REGISTERED")
    _free(one)


@entry("cuMemHostGetDevicePointer_v2", "ppu", 3020)
def cu_mem_host_get_device_pointer(context: Context, device: int, address: int, flags: int) -> None:
    one = context.driver.allocations.find(address)
    if one is None or one.on_device or flags:
        raise fail("INVALID_VALUE")
    put_size(device, address)


@entry("cuMemHostGetFlags", "pp", 2030)
def cu_mem_host_get_flags(context: Context, flags: int, address: int) -> None:
    one = context.driver.allocations.find(address)
    if one is None or one.on_device:
        raise fail("INVALID_VALUE")
    put_int(flags, one.flags | 2)


@entry("cuMemAllocManaged", "ppu", 6000, unsafe=True)
def cu_mem_alloc_managed(context: Context, address: int, size: int, flags: int) -> None:
    if flags not in (1, 2) or not address:
        raise fail("INVALID_VALUE")
    put_size(address, allocate_host(context, size, flags, "managed").base)


# --- what a pointer is
_ATTRIBUTES: dict[int, tuple[type[ctypes._SimpleCData[int]], Callable[[Allocation], int]]] = {
    1: (ctypes.c_uint64, lambda a: a.owner.handle),
    2: (ctypes.c_uint32, lambda a: 2 if a.on_device or a.kind == "managed" else 1),
    3: (ctypes.c_uint64, lambda a: a.base),
    4: (ctypes.c_uint64, lambda a: a.base),
    6: (ctypes.c_int32, lambda a: 0),
    7: (ctypes.c_uint64, lambda a: a.number),
    8: (ctypes.c_int32, lambda a: int(a.kind == "managed")),
    9: (ctypes.c_int32, lambda a: a.owner.device.number),
    10: (ctypes.c_int32, lambda a: 0),
    11: (ctypes.c_uint64, lambda a: a.base),
    12: (ctypes.c_uint64, lambda a: a.size),
    13: (ctypes.c_int32, lambda a: 1),
    14: (ctypes.c_uint64, lambda a: 0),
    15: (ctypes.c_int32, lambda a: 0),
    16: (ctypes.c_uint32, lambda a: 3),
    17: (ctypes.c_uint64, lambda a: a.pool),
}


def _pointer_attribute(driver: VirtualDriver, data: int, attribute: int, address: int) -> None:
    if attribute not in _ATTRIBUTES or not data:
        raise fail("INVALID_VALUE")
    one = driver.allocations.find(address)
    if one is None or (attribute == 4 and one.on_device):
        raise fail("INVALID_VALUE")
    kind, get = _ATTRIBUTES[attribute]
    offset = address - one.base if attribute in (3, 4) else 0
    kind.from_address(data).value = get(one) + offset


entry("cuPointerGetAttribute", "pip", 4000, needs="driver")(_pointer_attribute)


@entry("cuPointerGetAttributes", "uppp", 7000, needs="driver")
def cu_pointer_get_attributes(driver: VirtualDriver, count: int, which: int, data: int, address: int) -> None:
    """Unlike the single form, unknown pointers give zeros."""
    numbers = (ctypes.c_uint32 * count).from_address(which)
    for number, place in zip(numbers, pointers(data, count), strict=True):
        try:
            _pointer_attribute(driver, place, number, address)
        except CudaError:
            if number not in _ATTRIBUTES or not place:
                raise
            _ATTRIBUTES[number][0].from_address(place).value = 0xFFFFFFFE if number == 9 else 0


@entry("cuPointerSetAttribute", "pip", 6000, needs="driver")
def cu_pointer_set_attribute(driver: VirtualDriver, value: int, attribute: int, address: int) -> None:
    if attribute != 6 or driver.allocations.find(address) is None:
        raise fail("INVALID_VALUE")
