"""Allocation, copies and fills, and that asynchronous work is not done before it is waited for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import SCALE, code, download, function, kernel, launch, ok, pinned, upload


def test_allocation_rules(cuda: Any) -> None:
    free, total = ok(cuda.cuMemGetInfo())
    a = ok(cuda.cuMemAlloc(1000))
    assert int(a) % 256 == 0
    assert ok(cuda.cuMemGetInfo()) == (free - 1000, total)
    base, size = ok(cuda.cuMemGetAddressRange(int(a) + 10))
    assert (int(base), size) == (int(a), 1000)
    assert code(cuda.cuMemAlloc(0)) == "INVALID_VALUE"
    assert code(cuda.cuMemAlloc(total)) == "OUT_OF_MEMORY"
    assert code(cuda.cuMemFree(int(a) + 4)) == "INVALID_VALUE"
    ok(cuda.cuMemFree(a))
    assert code(cuda.cuMemFree(a)) == "INVALID_VALUE"
    assert code(cuda.cuMemGetAddressRange(a)) == "NOT_FOUND"
    ok(cuda.cuMemFree(0))


def test_an_address_is_not_given_again_at_once(cuda: Any) -> None:
    a = ok(cuda.cuMemAlloc(64))
    ok(cuda.cuMemFree(a))
    assert int(ok(cuda.cuMemAlloc(64))) != int(a)


def test_copies_stay_in_their_allocation(cuda: Any) -> None:
    x = np.arange(8, dtype=np.float32)
    a = upload(cuda, x)
    assert code(cuda.cuMemcpyHtoD(a, x.ctypes.data, 36)) == "INVALID_VALUE"
    assert code(cuda.cuMemcpyDtoH(x.ctypes.data, int(a) + 4, 32)) == "INVALID_VALUE"
    assert code(cuda.cuMemcpyHtoD(0x1000, x.ctypes.data, 4)) == "INVALID_VALUE"
    b = ok(cuda.cuMemAlloc(32))
    ok(cuda.cuMemcpyDtoD(b, a, 32))
    assert download(cuda, b, 8).tolist() == x.tolist()
    ok(cuda.cuMemcpyHtoD(a, x.ctypes.data, 0))
    y = np.zeros(8, np.float32)
    ok(cuda.cuMemcpy(y.ctypes.data, b, 32))  # unified addressing tells host from device
    assert y.tolist() == x.tolist()


def test_fills(cuda: Any) -> None:
    a = upload(cuda, np.zeros(4, np.uint32))
    ok(cuda.cuMemsetD32(a, 0x01020304, 2))
    ok(cuda.cuMemsetD16(int(a) + 8, 0x0506, 1))
    ok(cuda.cuMemsetD8Async(int(a) + 12, 7, 4, 0))
    assert download(cuda, a, 4, np.uint32).tolist() == [0x01020304, 0x01020304, 0x0506, 0x07070707]
    assert code(cuda.cuMemsetD32(int(a) + 2, 0, 1)) == "INVALID_VALUE"
    assert code(cuda.cuMemsetD32(a, 0, 5)) == "INVALID_VALUE"
    ok(cuda.cuMemsetD2D8(a, 8, 9, 2, 2))
    assert download(cuda, a, 16, np.uint8).tolist() == [9, 9, 2, 1, 4, 3, 2, 1, 9, 9, 0, 0, 7, 7, 7, 7]


def test_pitched_copies(cuda: Any) -> None:
    x = np.arange(24, dtype=np.uint8).reshape(4, 6)
    a = ok(cuda.cuMemAlloc(64))
    ok(cuda.cuMemsetD8(a, 0, 64))
    p = cuda.CUDA_MEMCPY2D()
    p.srcMemoryType, p.dstMemoryType = cuda.CUmemorytype.CU_MEMORYTYPE_HOST, cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
    p.srcHost, p.srcPitch, p.srcXInBytes, p.srcY = x.ctypes.data, 6, 1, 1
    p.dstDevice, p.dstPitch, p.WidthInBytes, p.Height = a, 16, 3, 2
    ok(cuda.cuMemcpy2D(p))
    got = download(cuda, a, 64, np.uint8).reshape(4, 16)
    assert got[:2, :3].tolist() == x[1:3, 1:4].tolist() and not got[2:].any() and not got[:, 3:].any()
    p.dstPitch = 2
    assert code(cuda.cuMemcpy2D(p)) == "INVALID_VALUE"


def test_pointer_attributes(cuda: Any) -> None:
    a = cuda.CUpointer_attribute
    device, (host, _) = ok(cuda.cuMemAlloc(100)), pinned(cuda, 4)
    get = cuda.cuPointerGetAttribute
    assert int(ok(get(a.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device))) == 2
    assert int(ok(get(a.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, host))) == 1
    assert ok(get(a.CU_POINTER_ATTRIBUTE_RANGE_SIZE, int(device) + 5)) == 100
    assert int(ok(get(a.CU_POINTER_ATTRIBUTE_DEVICE_POINTER, int(device) + 5))) == int(device) + 5
    plain = np.zeros(4)
    assert code(get(a.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, plain.ctypes.data)) == "INVALID_VALUE"
    values = ok(cuda.cuPointerGetAttributes(1, [a.CU_POINTER_ATTRIBUTE_MEMORY_TYPE], plain.ctypes.data))
    assert int(values[0]) == 0


def test_pinned_memory_is_reached_by_kernels(cuda: Any) -> None:
    address, array = pinned(cuda, 64, 2.0)
    f = function(cuda, SCALE, "scale")
    assert int(ok(cuda.cuMemHostGetDevicePointer(address, 0))) == address
    ok(launch(cuda, f, address, (3.0, ctypes.c_float), (64, ctypes.c_uint32), block=64))
    ok(cuda.cuCtxSynchronize())
    assert array.tolist() == [6.0] * 64
    ok(cuda.cuMemFreeHost(address))
    assert code(cuda.cuMemFreeHost(address)) == "INVALID_VALUE"


def test_registered_memory(cuda: Any) -> None:
    x = np.ones(5000, np.float32)
    ok(cuda.cuMemHostRegister(x.ctypes.data, x.nbytes, 0))
    assert code(cuda.cuMemHostRegister(x.ctypes.data + 64, 64, 0)) == "HOST_MEMORY_ALREADY_REGISTERED"
    f = function(cuda, SCALE, "scale")
    ok(launch(cuda, f, x.ctypes.data, (4.0, ctypes.c_float), (5000, ctypes.c_uint32), grid=40, block=128))
    ok(cuda.cuMemHostUnregister(x.ctypes.data))  # waits for the kernel
    assert (x == 4).all()
    assert code(cuda.cuMemHostUnregister(x.ctypes.data)) == "HOST_MEMORY_NOT_REGISTERED"


def test_a_copy_to_the_host_is_not_there_before_it_is_waited_for(cuda: Any) -> None:
    a = upload(cuda, np.full(4, 5, np.float32))
    stream = ok(cuda.cuStreamCreate(0))
    address, seen = pinned(cuda, 4)
    plain = np.zeros(4, np.float32)
    ok(cuda.cuMemcpyDtoHAsync(address, a, 16, stream))
    ok(cuda.cuMemcpyDtoHAsync(plain.ctypes.data, a, 16, stream))
    assert not seen.any() and not plain.any()
    ok(cuda.cuStreamSynchronize(stream))
    assert seen.tolist() == plain.tolist() == [5] * 4


def test_a_copy_from_pinned_memory_reads_it_late_and_from_pageable_at_once(cuda: Any) -> None:
    a, b = ok(cuda.cuMemAlloc(16)), ok(cuda.cuMemAlloc(16))
    address, source = pinned(cuda, 4, 1.0)
    plain = np.ones(4, np.float32)
    ok(cuda.cuMemcpyHtoDAsync(a, address, 16, 0))
    ok(cuda.cuMemcpyHtoDAsync(b, plain.ctypes.data, 16, 0))
    source[:] = plain[:] = 2  # a mistake for the first, allowed for the second
    assert download(cuda, a, 4).tolist() == [2] * 4
    assert download(cuda, b, 4).tolist() == [1] * 4


def test_streams_are_ordered_by_events_and_by_nothing_else(cuda: Any) -> None:
    a = upload(cuda, np.ones(4, np.float32))
    first, second = ok(cuda.cuStreamCreate(1)), ok(cuda.cuStreamCreate(1))
    event = ok(cuda.cuEventCreate(2))
    address, seen = pinned(cuda, 4)
    ok(cuda.cuMemsetD32Async(a, 0, 4, first))
    ok(cuda.cuMemcpyDtoHAsync(address, a, 16, second))  # nobody said that it comes after
    ok(cuda.cuStreamSynchronize(second))
    assert seen.tolist() == [1] * 4
    ok(cuda.cuEventRecord(event, first))
    ok(cuda.cuStreamWaitEvent(second, event, 0))
    ok(cuda.cuMemcpyDtoHAsync(address, a, 16, second))
    ok(cuda.cuStreamSynchronize(second))
    assert seen.tolist() == [0] * 4


def test_the_legacy_stream_keeps_order_with_blocking_streams(cuda: Any) -> None:
    a = upload(cuda, np.ones(4, np.float32))
    blocking = ok(cuda.cuStreamCreate(0))
    ok(cuda.cuMemsetD32Async(a, 0x40000000, 4, blocking))
    assert download(cuda, a, 4).tolist() == [2] * 4
    ok(cuda.cuMemsetD32Async(a, 0x40400000, 4, 0))
    address, seen = pinned(cuda, 4)
    ok(cuda.cuMemcpyDtoHAsync(address, a, 16, blocking))
    ok(cuda.cuStreamSynchronize(blocking))
    assert seen.tolist() == [3] * 4


def test_freeing_waits_for_work_that_uses_the_memory(cuda: Any) -> None:
    a = upload(cuda, np.ones(64, np.float32))
    address, seen = pinned(cuda, 64)
    stream = ok(cuda.cuStreamCreate(1))
    ok(launch(cuda, function(cuda, SCALE, "scale"), a, (7.0, ctypes.c_float), (64, ctypes.c_uint32), block=64,
              stream=stream))  # fmt: skip
    ok(cuda.cuMemcpyDtoHAsync(address, a, 256, stream))
    ok(cuda.cuMemFree(a))
    assert seen.tolist() == [7] * 64


def test_stream_ordered_allocation(cuda: Any) -> None:
    stream = ok(cuda.cuStreamCreate(1))
    pool = ok(cuda.cuDeviceGetDefaultMemPool(0))
    a = ok(cuda.cuMemAllocAsync(64, stream))
    used = cuda.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT
    assert int(ok(cuda.cuMemPoolGetAttribute(pool, used))) == 64
    ok(cuda.cuMemsetD32Async(a, 1, 16, stream))
    ok(cuda.cuMemFreeAsync(a, stream))
    ok(cuda.cuStreamSynchronize(stream))
    assert int(ok(cuda.cuMemPoolGetAttribute(pool, used))) == 0
    assert code(cuda.cuMemFreeAsync(a, stream)) == "INVALID_VALUE"


def test_a_copy_of_bytes_never_written_stays_uninitialised(driver: VirtualDriver, cuda: Any) -> None:
    a, b = ok(cuda.cuMemAlloc(128)), ok(cuda.cuMemAlloc(128))
    ok(cuda.cuMemcpyDtoD(b, a, 128))
    f = function(cuda, kernel("ld.global.f32 %f0, [%rd0]; st.global.f32 [%rd0], %f0;"))
    ok(launch(cuda, f, b, block=1))
    ok(cuda.cuCtxSynchronize())
    assert [x.kind for x in driver.findings] == ["uninitialised read of global memory"]


def test_blocking_option_runs_at_the_call(virtual: Callable[..., VirtualDriver]) -> None:
    virtual(blocking=True)
    from cuda.bindings import driver as cuda

    a = upload(cuda, np.ones(4, np.float32))
    address, seen = pinned(cuda, 4)
    ok(cuda.cuMemcpyDtoHAsync(address, a, 16, ok(cuda.cuStreamCreate(0))))
    assert seen.tolist() == [1] * 4
