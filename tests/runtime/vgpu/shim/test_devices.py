"""Devices, contexts, errors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tcomp.errors import UserError
from tcomp.runtime.vgpu.shim import ShimOptions, state
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import code, ok


@pytest.mark.parametrize(
    ("machine", "capability", "optin", "sms", "clusters"),
    [("h100", (9, 0), 232448, 132, 1), ("a100", (8, 0), 166912, 108, 0), ("rtx4090", (8, 9), 101376, 128, 0)],
)
def test_attributes(
    virtual: Callable[..., VirtualDriver],
    machine: str,
    capability: tuple[int, int],
    optin: int,
    sms: int,
    clusters: int,
) -> None:
    made = virtual(machine)
    from cuda.bindings import driver as cuda

    a = cuda.CUdevice_attribute

    def get(which: Any) -> int:
        return int(ok(cuda.cuDeviceGetAttribute(which, 0)))

    assert (
        get(a.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        get(a.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    ) == (capability)
    assert get(a.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) == optin
    assert get(a.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK) == 49152
    assert get(a.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) == sms
    assert (
        get(a.CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH) == get(a.CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED) == clusters
    )
    assert get(a.CU_DEVICE_ATTRIBUTE_WARP_SIZE) == 32 and get(a.CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING) == 1
    assert ok(cuda.cuDeviceTotalMem(0)) == made.model.memory_bytes
    assert made.model.label.encode() in ok(cuda.cuDeviceGetName(100, 0))


def test_every_attribute_of_the_binding_answers(cuda: Any) -> None:
    known = [a for a in cuda.CUdevice_attribute if 0 < a.value <= 145]
    assert [a.name for a in known if code(cuda.cuDeviceGetAttribute(a, 0)) != "CUDA_SUCCESS"] == []


def test_several_devices_have_their_own_memory_and_identity(virtual: Callable[..., VirtualDriver]) -> None:
    virtual(devices=2)
    from cuda.bindings import driver as cuda

    assert ok(cuda.cuDeviceGetCount()) == 2
    assert code(cuda.cuDeviceGet(2)) == "INVALID_DEVICE"
    assert bytes(ok(cuda.cuDeviceGetUuid(0)).bytes) != bytes(ok(cuda.cuDeviceGetUuid(1)).bytes)
    assert ok(cuda.cuDeviceGetPCIBusId(20, 1)).startswith(b"0000:02:00.0")
    assert int(ok(cuda.cuDeviceGetByPCIBusId(b"0000:02:00.0"))) == 1
    first = int(ok(cuda.cuMemAlloc(64)))
    ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(1))))
    second = int(ok(cuda.cuMemAlloc(64)))
    which = cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    assert [ok(cuda.cuPointerGetAttribute(which, p)) for p in (first, second)] == [0, 1]


def test_error_names_and_texts(cuda: Any) -> None:
    for number in cuda.CUresult:
        result, name = cuda.cuGetErrorName(number)
        assert (result, name) == (cuda.CUresult.CUDA_SUCCESS, number.name.encode())
    assert ok(cuda.cuGetErrorString(cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)) == (
        b"an illegal memory access was encountered"
    )


def test_nothing_works_before_init_nor_without_a_context(virtual: Callable[..., VirtualDriver]) -> None:
    made = virtual()
    from cuda.bindings import driver as cuda

    made.initialised = False
    assert code(cuda.cuDeviceGetCount()) == "NOT_INITIALIZED"
    assert code(cuda.cuDriverGetVersion()) == "CUDA_SUCCESS"
    assert code(cuda.cuInit(1)) == "INVALID_VALUE"
    ok(cuda.cuInit(0))
    ok(cuda.cuCtxSetCurrent(0))
    assert code(cuda.cuMemAlloc(4)) == "INVALID_CONTEXT"
    state.set_driver(None)
    assert code(cuda.cuInit(0)) == "NOT_INITIALIZED"
    state.set_driver(made)


def test_context_stack_and_limits(cuda: Any) -> None:
    primary = ok(cuda.cuCtxGetCurrent())
    own = ok(cuda.cuCtxCreate(None, 0, 0))
    assert int(ok(cuda.cuCtxGetCurrent())) == int(own) != int(primary)
    ok(cuda.cuCtxPushCurrent(primary))
    assert int(ok(cuda.cuCtxPopCurrent())) == int(primary)
    limit = cuda.CUlimit.CU_LIMIT_STACK_SIZE
    ok(cuda.cuCtxSetLimit(limit, 4096))
    assert ok(cuda.cuCtxGetLimit(limit)) == 4096
    address = ok(cuda.cuMemAlloc(1 << 20))
    ok(cuda.cuCtxDestroy(own))
    assert code(cuda.cuCtxSetCurrent(own)) == "INVALID_CONTEXT"
    ok(cuda.cuCtxSetCurrent(primary))
    assert code(cuda.cuMemFree(address)) == "INVALID_VALUE"  # it went with its context
    assert code(cuda.cuCtxDestroy(primary)) == "INVALID_CONTEXT"


def test_primary_context_lives_while_it_is_retained(cuda: Any) -> None:
    ok(cuda.cuDevicePrimaryCtxRetain(0))
    ok(cuda.cuDevicePrimaryCtxRelease(0))
    assert ok(cuda.cuDevicePrimaryCtxGetState(0))[1] == 1
    ok(cuda.cuDevicePrimaryCtxRelease(0))
    assert ok(cuda.cuDevicePrimaryCtxGetState(0))[1] == 0
    assert code(cuda.cuMemAlloc(4)) == "CONTEXT_IS_DESTROYED"
    assert code(cuda.cuDevicePrimaryCtxRelease(0)) == "INVALID_CONTEXT"


def test_driver_version_and_second_install(virtual: Callable[..., VirtualDriver]) -> None:
    made = virtual(driver_version=12040)
    from cuda.bindings import driver as cuda

    from tcomp.runtime.vgpu.shim import install

    assert ok(cuda.cuDriverGetVersion()) == 12040
    assert install("H100") is made
    with pytest.raises(UserError, match="already has a virtual driver"):
        install("a100")
    with pytest.raises(UserError, match="already has"):
        install("h100", options=ShimOptions(strict=True))
    with pytest.raises(UserError, match="no description of a GPU"):
        install("h1000")


def test_unknown_entries_are_not_found(cuda: Any) -> None:
    with pytest.raises(RuntimeError, match="not found"):
        cuda.cuMulticastCreate(cuda.CUmulticastObjectProp())
    assert code(cuda.cuGetProcAddress(b"cuNoSuchThing", 13000, 0)) == "CUDA_SUCCESS"
    _, address, status = cuda.cuGetProcAddress(b"cuNoSuchThing", 13000, 0)
    assert not int(address) and status.value == 1
    _, address, status = cuda.cuGetProcAddress(b"cuLaunchKernelEx", 11000, 0)
    assert not int(address) and status.value == 2
    per_thread = int(cuda.cuGetProcAddress(b"cuLaunchKernel", 13000, 2)[1])
    assert per_thread and per_thread != int(cuda.cuGetProcAddress(b"cuLaunchKernel", 13000, 0)[1])
