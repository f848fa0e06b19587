"""Entries about devices and their primary contexts."""

from __future__ import annotations

import ctypes
import re

from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context, VirtualDevice
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import entry, put_int, put_size, put_text, string
from tcomp.runtime.vgpu.shim.machines import attributes


@entry("cuDeviceGetCount", "p", 2000, needs="driver")
def cu_device_get_count(driver: VirtualDriver, count: int) -> None:
    put_int(count, len(driver.devices))


@entry("cuDeviceGet", "pi", 2000, needs="driver")
def cu_device_get(driver: VirtualDriver, device: int, ordinal: int) -> None:
    put_int(device, driver.device(ordinal).number)


@entry("cuDeviceGetName", "pii", 2000, needs="driver")
def cu_device_get_name(driver: VirtualDriver, name: int, size: int, device: int) -> None:
    put_text(name, size, f"{driver.device(device).model.label} (virtual)")


def _uuid(driver: VirtualDriver, uuid: int, device: int) -> None:
    found = driver.device(device).uuid
    if not uuid:
        raise fail("INVALID_VALUE")
    ctypes.memmove(uuid, found, 16)


entry("cuDeviceGetUuid", "pi", 9020, needs="driver")(_uuid)
entry("cuDeviceGetUuid_v2", "pi", 11040, needs="driver")(_uuid)


@entry("cuDeviceTotalMem_v2", "pi", 3020, needs="driver")
def cu_device_total_mem(driver: VirtualDriver, size: int, device: int) -> None:
    put_size(size, driver.device(device).model.memory_bytes)


@entry("cuDeviceGetAttribute", "pii", 2000, needs="driver")
def cu_device_get_attribute(driver: VirtualDriver, value: int, attribute: int, device: int) -> None:
    one = driver.device(device)
    known = attributes(one.model, one.number)
    if attribute not in known:
        raise fail("INVALID_VALUE")
    put_int(value, known[attribute])


@entry("cuDeviceComputeCapability", "ppi", 2000, needs="driver")
def cu_device_compute_capability(driver: VirtualDriver, major: int, minor: int, device: int) -> None:
    first, second = driver.device(device).model.capability
    put_int(major, first)
    put_int(minor, second)


@entry("cuDeviceGetPCIBusId", "pii", 4010, needs="driver")
def cu_device_get_pci_bus_id(driver: VirtualDriver, text: int, size: int, device: int) -> None:
    put_text(text, size, f"0000:{driver.device(device).number + 1:02X}:00.0")


@entry("cuDeviceGetByPCIBusId", "pp", 4010, needs="driver")
def cu_device_get_by_pci_bus_id(driver: VirtualDriver, device: int, text: int) -> None:
    found = re.fullmatch(r"(?:0{4,8}:)?([0-9a-fA-F]{1,2}):0{1,2}(?:\.0)?", string(text))
    number = int(found[1], 16) - 1 if found else -1
    if not 0 <= number < len(driver.devices):
        raise fail("INVALID_DEVICE")
    put_int(device, number)


@entry("cuDeviceCanAccessPeer", "pii", 4000, needs="driver")
def cu_device_can_access_peer(driver: VirtualDriver, can: int, device: int, peer: int) -> None:
    driver.device(device)
    driver.device(peer)
    put_int(can, 0)


@entry("cuDeviceGetP2PAttribute", "piii", 8000, needs="driver")
def cu_device_get_p2p_attribute(driver: VirtualDriver, value: int, attribute: int, one: int, other: int) -> None:
    driver.device(one)
    driver.device(other)
    if one == other:
        raise fail("INVALID_DEVICE")
    put_int(value, 0)


# --- primary contexts
def _primary(device: VirtualDevice) -> Context:
    if device.primary is None or device.primary.destroyed:
        device.primary = Context(device.driver, device, device.primary_flags, primary=True)
    return device.primary


@entry("cuDevicePrimaryCtxRetain", "pi", 7000, needs="driver")
def cu_device_primary_ctx_retain(driver: VirtualDriver, handle: int, device: int) -> None:
    one = driver.device(device)
    if not handle:
        raise fail("INVALID_VALUE")
    put_size(handle, _primary(one).handle)
    one.primary_count += 1


def _release(driver: VirtualDriver, device: int) -> None:
    one = driver.device(device)
    if not one.primary_count:
        raise fail("INVALID_CONTEXT")
    one.primary_count -= 1
    if not one.primary_count:
        _reset(driver, device)


def _reset(driver: VirtualDriver, device: int) -> None:
    one = driver.device(device)
    if one.primary is not None:
        one.primary.destroy()
        one.primary = None


entry("cuDevicePrimaryCtxRelease", "i", 7000, needs="driver")(_release)
entry("cuDevicePrimaryCtxRelease_v2", "i", 11000, needs="driver")(_release)
entry("cuDevicePrimaryCtxReset", "i", 7000, needs="driver")(_reset)
entry("cuDevicePrimaryCtxReset_v2", "i", 11000, needs="driver")(_reset)


def _set_flags(driver: VirtualDriver, device: int, flags: int) -> None:
    one = driver.device(device)
    if flags & ~0xFF:
        raise fail("INVALID_VALUE")
    one.primary_flags = flags
    if one.primary is not None:
        one.primary.flags = flags


entry("cuDevicePrimaryCtxSetFlags", "iu", 7000, needs="driver")(_set_flags)
entry("cuDevicePrimaryCtxSetFlags_v2", "iu", 11000, needs="driver")(_set_flags)


@entry("cuDevicePrimaryCtxGetState", "ipp", 7000, needs="driver")
def cu_device_primary_ctx_get_state(driver: VirtualDriver, device: int, flags: int, active: int) -> None:
    one = driver.device(device)
    put_int(flags, one.primary_flags)
    put_int(active, int(one.primary is not None))
