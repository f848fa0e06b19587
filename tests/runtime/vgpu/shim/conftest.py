"""A virtual driver of each test's own, and small kernels for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tcomp.errors import UserError
from tcomp.runtime.vgpu.shim import ShimOptions, state
from tcomp.runtime.vgpu.shim.driver import VirtualDriver

HEAD = ".version 8.0\n.target {target}\n.address_size 64\n"
REGISTERS = ".reg .pred %p<8>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b64 %rd<20>;\n"

SCALE = (
    HEAD.format(target="sm_80")
    + f"""
.visible .entry scale(.param .u64 x, .param .f32 s, .param .u32 n)
{{ {REGISTERS}
ld.param.u64 %rd0, [x]; ld.param.f32 %f0, [s]; ld.param.u32 %r3, [n];
mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r0, %r1, %r2, %r0;
setp.ge.u32 %p0, %r0, %r3; @%p0 bra END;
mul.wide.u32 %rd1, %r0, 4; add.u64 %rd1, %rd0, %rd1;
ld.global.f32 %f1, [%rd1]; mul.f32 %f1, %f1, %f0; st.global.f32 [%rd1], %f1;
END: ret;
}}
"""
)


def kernel(body: str, head: str = "", target: str = "sm_80", params: str = ".param .u64 x", around: str = "") -> str:
    """PTX of a kernel `k` whose pointer x is in %rd0 and thread number in %r0."""
    start = "ld.param.u64 %rd0, [x];\n" if " x" in params else ""
    start += "mov.u32 %r0, %tid.x;\n"
    top = HEAD.format(target=target) + around
    return f"{top}\n.visible .entry k({params}) {head}\n{{ {REGISTERS}{start}{body}\nret;\n}}\n"


def ok(result: tuple[Any, ...]) -> Any:
    """The values of a cuda-bindings call that succeeded."""
    assert result[0].name == "CUDA_SUCCESS", result[0].name
    return result[1] if len(result) == 2 else result[1:]


def code(result: tuple[Any, ...]) -> str:
    """What a cuda-bindings call ended with, without CUDA_ERROR_."""
    return str(result[0].name).removeprefix("CUDA_ERROR_")


def make(**wanted: Any) -> VirtualDriver:
    from tcomp.runtime.vgpu.shim.load import install

    try:
        return install(**wanted)
    except UserError as e:
        if "another CUDA driver" in str(e) or "compiler" in str(e):
            pytest.skip(str(e))
        raise


@pytest.fixture
def virtual() -> Iterator[Callable[..., VirtualDriver]]:
    """Makes a virtual driver with its first device's primary context current; the old driver comes back after."""
    from tcomp.runtime.vgpu.shim.load import uninstall

    old = state.installed()
    state.set_driver(None)

    def start(machine: str = "h100", devices: int = 1, **options: Any) -> VirtualDriver:
        driver = make(machine=machine, devices=devices, options=ShimOptions(**options))
        from cuda.bindings import driver as cuda

        ok(cuda.cuInit(0))
        ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(ok(cuda.cuDeviceGet(0))))))
        return driver

    yield start
    uninstall()
    state.set_driver(old)


@pytest.fixture
def driver(virtual: Callable[..., VirtualDriver]) -> VirtualDriver:
    return virtual()


@pytest.fixture
def cuda(driver: VirtualDriver) -> Any:
    """cuda.bindings.driver on a virtual H100."""
    from cuda.bindings import driver as module

    return module


def function(cuda: Any, ptx: str, name: str = "k") -> Any:
    return ok(cuda.cuModuleGetFunction(ok(cuda.cuModuleLoadData(ptx.encode() + b"\0")), name.encode()))


def upload(cuda: Any, array: np.ndarray[Any, Any]) -> Any:
    address = ok(cuda.cuMemAlloc(array.nbytes))
    ok(cuda.cuMemcpyHtoD(address, array.ctypes.data, array.nbytes))
    return address


def download(cuda: Any, address: Any, count: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    out = np.empty(count, dtype)
    ok(cuda.cuMemcpyDtoH(out.ctypes.data, address, out.nbytes))
    return out


def pinned(cuda: Any, count: int, value: float = 0.0) -> tuple[int, np.ndarray[Any, Any]]:
    """Pinned host memory as an array of f32."""
    address = int(ok(cuda.cuMemHostAlloc(4 * count, 0)))
    array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
    array[:] = value
    return address, array


def launch(
    cuda: Any, f: Any, *args: Any, grid: Any = 1, block: Any = 32, shared: int = 0, stream: Any = 0
) -> tuple[Any, ...]:
    """One launch; args are (value, ctypes type) pairs, or addresses."""
    g, b = ((*(d if isinstance(d, tuple) else (d,)), 1, 1)[:3] for d in (grid, block))
    pairs = [a if isinstance(a, tuple) else (int(a), ctypes.c_uint64) for a in args]
    packed = (tuple(v for v, _ in pairs), tuple(t for _, t in pairs)) if pairs else 0
    result: tuple[Any, ...] = cuda.cuLaunchKernel(f, *g, *b, shared, stream, packed, 0)
    return result
