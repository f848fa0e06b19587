"""Modules, functions and launches: what is accepted, and the code of each refusal."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.runtime.vgpu.shim import register_cubin
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import HEAD, SCALE, code, download, function, kernel, launch, ok, upload

U32, F32 = ctypes.c_uint32, ctypes.c_float
DYNAMIC = ".extern .shared .align 16 .b8 buffer[];"


def load(cuda: Any, ptx: str) -> str:
    return code(cuda.cuModuleLoadData(ptx.encode() + b"\0"))


def test_a_kernel_runs_and_is_reported(driver: VirtualDriver, cuda: Any) -> None:
    a = upload(cuda, np.arange(100, dtype=np.float32))
    f = function(cuda, SCALE, "scale")
    ok(launch(cuda, f, a, (2.0, F32), (100, U32), grid=4, block=32))
    assert driver.reports == []  # it has not run yet
    assert download(cuda, a, 100).tolist() == (np.arange(100) * 2).tolist()
    assert [r.kernel for r in driver.reports] == ["scale"] and not driver.findings


def test_packed_arguments(cuda: Any) -> None:
    a = upload(cuda, np.ones(4, np.float32))
    f = function(cuda, SCALE, "scale")
    packed = ctypes.create_string_buffer(
        int(a).to_bytes(8, "little") + np.float32(5).tobytes() + np.uint32(4).tobytes(), 16
    )
    size = ctypes.c_size_t(16)
    extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(packed), 2, ctypes.addressof(size), 0)
    ok(cuda.cuLaunchKernel(f, 1, 1, 1, 4, 1, 1, 0, 0, 0, ctypes.addressof(extra)))
    assert download(cuda, a, 4).tolist() == [5] * 4
    size.value = 12
    assert code(cuda.cuLaunchKernel(f, 1, 1, 1, 4, 1, 1, 0, 0, 0, ctypes.addressof(extra))) == "INVALID_VALUE"
    assert code(cuda.cuLaunchKernel(f, 1, 1, 1, 4, 1, 1, 0, 0, 0, 0)) == "INVALID_VALUE"


def test_aggregate_parameters_and_their_offsets(cuda: Any) -> None:
    ptx = kernel(
        "ld.param.u32 %r1, [big+8]; ld.param.u64 %rd0, [p]; st.global.u32 [%rd0], %r1;",
        params=".param .u8 c, .param .align 8 .b8 big[12], .param .u64 p",
    )
    f = function(cuda, ptx)
    assert [ok(cuda.cuFuncGetParamInfo(f, n)) for n in range(3)] == [(0, 1), (8, 12), (24, 8)]
    assert code(cuda.cuFuncGetParamInfo(f, 3)) == "INVALID_VALUE"
    a = upload(cuda, np.zeros(1, np.uint32))
    c, big, p = ctypes.c_uint8(1), (ctypes.c_uint32 * 3)(1, 2, 77), ctypes.c_uint64(int(a))
    pointers = (ctypes.c_void_p * 3)(ctypes.addressof(c), ctypes.addressof(big), ctypes.addressof(p))
    ok(cuda.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, 0, ctypes.addressof(pointers), 0))
    big[2] = 0  # arguments are taken at the call
    assert download(cuda, a, 1, np.uint32)[0] == 77


@pytest.mark.parametrize(
    ("grid", "block"),
    [(0, 1), (1, 0), (1, 1025), (1, (32, 33)), (1, (1, 1, 65)), ((1, 65536), 1), ((1, 1, 65536), 1), (2**31, 1)],
)
def test_dimensions_out_of_range(cuda: Any, grid: Any, block: Any) -> None:
    assert code(launch(cuda, function(cuda, kernel("", params="")), grid=grid, block=block)) == "INVALID_VALUE"


def test_compiled_block_sizes_are_kept(cuda: Any) -> None:
    f = function(cuda, kernel("", ".reqntid 64", params=""))
    assert code(launch(cuda, f, block=32)) == "INVALID_VALUE"
    assert code(launch(cuda, f, block=64)) == "CUDA_SUCCESS"
    g = function(cuda, kernel("", ".maxntid 64", params=""))
    assert code(launch(cuda, g, block=65)) == "INVALID_VALUE"
    which = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
    assert ok(cuda.cuFuncGetAttribute(which, g)) == 64


def test_dynamic_shared_memory_beyond_48_kb_needs_the_attribute(cuda: Any) -> None:
    f = function(cuda, kernel("mov.u32 %r1, buffer; st.shared.u32 [%r1+60000], %r0;", around=DYNAMIC, params=""))
    which = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert ok(cuda.cuFuncGetAttribute(which, f)) == 49152
    assert code(launch(cuda, f, block=1, shared=49153)) == "INVALID_VALUE"
    assert code(cuda.cuFuncSetAttribute(f, which, 232449)) == "INVALID_VALUE"
    ok(cuda.cuFuncSetAttribute(f, which, 232448))
    ok(launch(cuda, f, block=1, shared=65536))
    ok(cuda.cuCtxSynchronize())
    assert code(launch(cuda, f, block=1, shared=232449)) == "INVALID_VALUE"


def test_static_shared_memory_counts(cuda: Any) -> None:
    ptx = kernel("mov.u32 %r1, buffer; st.shared.u32 [%r1], %r0; mov.u32 %r2, fixed; st.shared.u32 [%r2], %r0;",
                 around=DYNAMIC + "\n.shared .align 16 .b8 fixed[4096];", params="")  # fmt: skip
    f = function(cuda, ptx)
    a = cuda.CUfunction_attribute
    assert ok(cuda.cuFuncGetAttribute(a.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f)) == 4096
    assert (
        code(cuda.cuFuncSetAttribute(f, a.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232448)) == "INVALID_VALUE"
    )
    ok(cuda.cuFuncSetAttribute(f, a.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232448 - 4096))
    assert code(cuda.cuFuncSetAttribute(f, a.CU_FUNC_ATTRIBUTE_NUM_REGS, 4)) == "INVALID_VALUE"


def test_images_that_are_refused(virtual: Callable[..., VirtualDriver]) -> None:
    virtual("a100", driver_version=12000)
    from cuda.bindings import driver as cuda

    assert load(cuda, "hello") == "INVALID_IMAGE"
    assert load(cuda, kernel("", params="").replace("ret;", "ret")) == "INVALID_PTX"
    assert load(cuda, kernel("", target="sm_90")) == "INVALID_PTX"
    assert load(cuda, kernel("").replace(".version 8.0", ".version 8.1")) == "UNSUPPORTED_PTX_VERSION"
    assert load(cuda, kernel("")) == "CUDA_SUCCESS"
    assert code(cuda.cuModuleLoadData((0xBA55ED50).to_bytes(4, "little") + bytes(60))) == "NO_BINARY_FOR_GPU"
    assert code(cuda.cuModuleLoadData(b"\x7fELF" + bytes(100))) == "INVALID_IMAGE"
    assert code(cuda.cuModuleLoad(b"/no/such/file")) == "FILE_NOT_FOUND"


def test_the_parser_s_words_come_in_the_error_log(cuda: Any) -> None:
    options = [cuda.CUjit_option.CU_JIT_ERROR_LOG_BUFFER, cuda.CUjit_option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
    log = bytearray(200)
    bad = kernel("").replace("ret;", "ret").encode() + b"\0"
    assert code(cuda.cuModuleLoadDataEx(bad, 2, options, [log, 200])) == "INVALID_PTX"
    assert b"line" in bytes(log)


def test_cubins_are_mapped_back_to_their_ptx(driver: VirtualDriver, cuda: Any) -> None:
    own = SCALE.replace("scale", "scale_of_this_test")  # (what other tests registered is known to the process)
    cubin = assemble(own, "sm_90a").cubin
    assert code(cuda.cuModuleLoadData(cubin)) == "NO_BINARY_FOR_GPU"  # nobody said what it is
    register_cubin(cubin, own)
    f = ok(cuda.cuModuleGetFunction(ok(cuda.cuModuleLoadData(cubin)), b"scale_of_this_test"))
    assert 8 <= ok(cuda.cuFuncGetAttribute(cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, f)) <= 32
    a = upload(cuda, np.ones(32, np.float32))
    ok(launch(cuda, f, a, (3.0, F32), (32, U32)))
    assert download(cuda, a, 32).tolist() == [3] * 32


def test_a_cubin_for_another_architecture(cuda: Any) -> None:
    cubin = assemble(SCALE, "sm_80").cubin
    register_cubin(cubin, SCALE)
    assert code(cuda.cuModuleLoadData(cubin)) == "NO_BINARY_FOR_GPU"


def test_too_many_registers_for_a_block(cuda: Any) -> None:
    many = 120
    body = "".join(f"ld.global.f32 %a{n}, [%rd0+{4 * n}];\n" for n in range(many)) + "bar.sync 0;\n"
    body += "".join(f"st.global.f32 [%rd0+{4 * n}], %a{(n * 7 + 1) % many};\n" for n in range(many))
    ptx = kernel(f".reg .f32 %a<{many}>;\n" + body)
    cubin = assemble(ptx, "sm_90a").cubin
    register_cubin(cubin, ptx)
    f = ok(cuda.cuModuleGetFunction(ok(cuda.cuModuleLoadData(cubin)), b"k"))
    registers = ok(cuda.cuFuncGetAttribute(cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, f))
    assert registers > 64
    a = upload(cuda, np.zeros(many, np.float32))
    assert code(launch(cuda, f, a, block=1024)) == "LAUNCH_OUT_OF_RESOURCES"
    threads = ok(cuda.cuFuncGetAttribute(cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, f))
    assert code(launch(cuda, f, a, block=threads)) == "CUDA_SUCCESS" and threads < 1024
    assert ok(cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(f, threads, 0)) >= 1
    assert ok(cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(f, 1024, 0)) == 0


def test_globals_and_missing_names(cuda: Any) -> None:
    ptx = HEAD.format(target="sm_80") + ".visible .global .align 4 .u32 table[3] = {1, 2, 3};\n"
    m = ok(cuda.cuModuleLoadData(ptx.encode() + b"\0"))
    address, size = ok(cuda.cuModuleGetGlobal(m, b"table"))
    assert size == 12 and download(cuda, address, 3, np.uint32).tolist() == [1, 2, 3]
    assert code(cuda.cuModuleGetGlobal(m, b"other")) == "NOT_FOUND"
    assert code(cuda.cuModuleGetFunction(m, b"other")) == "NOT_FOUND"
    ok(cuda.cuModuleUnload(m))
    assert code(cuda.cuModuleUnload(m)) == "INVALID_HANDLE"
    assert code(cuda.cuMemcpyDtoH(bytearray(4), address, 4)) == "INVALID_VALUE"


def test_libraries_and_kernels(cuda: Any) -> None:
    library = ok(cuda.cuLibraryLoadData(SCALE.encode() + b"\0", [], [], 0, [], [], 0))
    k = ok(cuda.cuLibraryGetKernel(library, b"scale"))
    assert ok(cuda.cuLibraryGetKernelCount(library)) == 1
    a = upload(cuda, np.ones(4, np.float32))
    for handle in (ok(cuda.cuKernelGetFunction(k)), cuda.CUfunction(int(k))):  # a kernel may be cast to a function
        ok(launch(cuda, handle, a, (2.0, F32), (4, U32), block=4))
    assert download(cuda, a, 4).tolist() == [4] * 4
    ok(cuda.cuLibraryUnload(library))
    assert code(cuda.cuKernelGetFunction(k)) == "INVALID_HANDLE"


def test_occupancy(cuda: Any) -> None:
    f = function(cuda, kernel("", params=""))
    assert ok(cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(f, 1024, 0)) == 2
    assert ok(cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(f, 32, 0)) == 32
    assert ok(cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(f, 128, 100 << 10)) == 2
    assert ok(cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(f, 128, 233473)) == 0


def extended(cuda: Any, f: Any, grid: int, block: int, **attributes: Any) -> str:
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    out = []
    for name, value in attributes.items():
        a = cuda.CUlaunchAttribute()
        a.id = getattr(cuda.CUlaunchAttributeID, f"CU_LAUNCH_ATTRIBUTE_{name}")
        if name == "CLUSTER_DIMENSION":
            a.value.clusterDim.x, a.value.clusterDim.y, a.value.clusterDim.z = value, 1, 1
        elif name == "COOPERATIVE":
            a.value.cooperative = value
        else:
            a.value.programmaticStreamSerializationAllowed = value
        out.append(a)
    config.attrs, config.numAttrs = out, len(out)
    return code(cuda.cuLaunchKernelEx(config, f, 0, 0))


def test_clusters(cuda: Any) -> None:
    f = function(cuda, kernel("", params="", target="sm_90"))
    assert extended(cuda, f, 8, 32, CLUSTER_DIMENSION=4) == "CUDA_SUCCESS"
    ok(cuda.cuCtxSynchronize())
    assert extended(cuda, f, 6, 32, CLUSTER_DIMENSION=4) == "INVALID_VALUE"
    assert extended(cuda, f, 16, 32, CLUSTER_DIMENSION=16) == "INVALID_CLUSTER_SIZE"
    which = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    ok(cuda.cuFuncSetAttribute(f, which, 1))
    assert extended(cuda, f, 16, 32, CLUSTER_DIMENSION=16) == "CUDA_SUCCESS"
    assert extended(cuda, f, 4, 32, PROGRAMMATIC_STREAM_SERIALIZATION=1) == "CUDA_SUCCESS"
    fixed = function(cuda, kernel("", ".reqnctapercluster 2, 1, 1", params="", target="sm_90"))
    assert extended(cuda, fixed, 4, 32) == "CUDA_SUCCESS"
    assert extended(cuda, fixed, 4, 32, CLUSTER_DIMENSION=4) == "INVALID_CLUSTER_SIZE"
    assert code(launch(cuda, fixed, grid=3)) == "INVALID_VALUE"
    ok(cuda.cuCtxSynchronize())


def test_cooperative_launches_must_be_resident_at_once(cuda: Any) -> None:
    f = function(cuda, kernel("", params=""))
    assert extended(cuda, f, 264, 1024, COOPERATIVE=1) == "CUDA_SUCCESS"
    assert extended(cuda, f, 265, 1024, COOPERATIVE=1) == "COOPERATIVE_LAUNCH_TOO_LARGE"


def test_clusters_before_hopper(virtual: Callable[..., VirtualDriver]) -> None:
    virtual("a100")
    from cuda.bindings import driver as cuda

    f = function(cuda, kernel("", params=""))
    assert extended(cuda, f, 8, 32, CLUSTER_DIMENSION=4) == "INVALID_VALUE"
    assert extended(cuda, f, 8, 32, PROGRAMMATIC_STREAM_SERIALIZATION=1) == "INVALID_VALUE"
