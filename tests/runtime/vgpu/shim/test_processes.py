"""The library in other processes: by LD_LIBRARY_PATH, compiled twice at once, without a compiler, after a fork."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcomp.runtime.vgpu.shim.options import from_environment
from tests.runtime.vgpu.shim.conftest import SCALE

USE = f"""
import ctypes
from cuda.bindings import driver as cuda
def ok(r):
    assert r[0].name == "CUDA_SUCCESS", r[0].name
    return r[1] if len(r) == 2 else r[1:]
ok(cuda.cuInit(0))
print(ok(cuda.cuDeviceGetName(60, 0)).rstrip(b"\\0 ").decode(), ok(cuda.cuDeviceGetCount()))
ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(0))))
f = ok(cuda.cuModuleGetFunction(ok(cuda.cuModuleLoadData({SCALE.encode()!r} + bytes(1))), b"scale"))
x = (ctypes.c_float * 32)(*range(32))
a = ok(cuda.cuMemAlloc(128))
ok(cuda.cuMemcpyHtoD(a, ctypes.addressof(x), 128))
types = (ctypes.c_uint64, ctypes.c_float, ctypes.c_uint32)
ok(cuda.cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, 0, ((int(a), 3.0, 32), types), 0))
ok(cuda.cuMemcpyDtoH(ctypes.addressof(x), a, 128))
print(x[10])
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True,
                          text=True, check=False, timeout=300)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    cache = tmp_path_factory.mktemp("cache")
    done = subprocess.run([sys.executable, "-m", "tcomp.runtime.vgpu.shim"], capture_output=True, text=True,
                          check=False, env={**os.environ, "TCOMP_CACHE": str(cache)})  # fmt: skip
    if done.returncode:
        pytest.skip(done.stderr)
    return done.stdout.strip()


def test_a_program_that_knows_nothing_of_tcomp(folder: str) -> None:
    done = python(USE, LD_LIBRARY_PATH=folder, TCOMP_VGPU_MACHINE="a100", TCOMP_VGPU_DEVICES="2")
    assert done.stdout.splitlines() == ["NVIDIA A100 SXM 80 GB (virtual) 2", "30.0"], done.stderr


def test_symbols_are_found_by_name(folder: str) -> None:
    """As programs do that load libcuda.so.1 themselves."""
    code = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int()
assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 3
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
p = ctypes.c_void_p()
assert cuda.cuGetProcAddress_v2(b"cuMemAlloc", ctypes.byref(p), 12000, ctypes.c_uint64(0), None) == 0
assert p.value == ctypes.cast(cuda.cuMemAlloc_v2, ctypes.c_void_p).value
assert cuda.cuGetProcAddress_v2(b"cuNothing", ctypes.byref(p), 12000, ctypes.c_uint64(0), None) == 500
print(count.value)
"""
    done = python(code, LD_LIBRARY_PATH=folder)
    assert done.stdout.strip() == "1", done.stderr


def test_a_wrong_machine_in_the_environment_is_said(folder: str) -> None:
    done = python(USE, LD_LIBRARY_PATH=folder, TCOMP_VGPU_MACHINE="h1oo")
    assert "no description of a GPU 'h1oo'" in done.stderr and "CUDA_ERROR_NO_DEVICE" in done.stderr
    for wrong in ({"TCOMP_VGPU_DEVICES": "many"}, {"TCOMP_VGPU_ORDER": "-1"}):
        done = python(USE, LD_LIBRARY_PATH=folder, **wrong)
        assert "whole numbers" in done.stderr and "CUDA_ERROR_NO_DEVICE" in done.stderr


def test_an_order_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCOMP_VGPU_ORDER", "7")
    assert from_environment()[2].device.order == 7


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_process_without_python_has_no_device(folder: str, tmp_path: Path) -> None:
    source = tmp_path / "p.c"
    source.write_text("int cuInit(unsigned); int main(void) { return cuInit(0); }")
    program, library = str(tmp_path / "p"), f"{folder}/libcuda.so.1"
    subprocess.run(["cc", "-o", program, str(source), library], check=True)
    done = subprocess.run([program], env={**os.environ, "LD_LIBRARY_PATH": folder}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 100 and "needs a Python interpreter" in done.stderr


def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tcomp.runtime.vgpu.shim"]
    environment = {**os.environ, "TCOMP_CACHE": str(tmp_path)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {p.communicate()[0].strip() for p in both}
    assert [p.returncode for p in both] == [0, 0] and len(folders) == 1
    assert [p.name for p in Path(folders.pop()).iterdir()] == ["libcuda.so.1"]  # nothing half-made is left


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CC": "no-such-compiler"}, "CC=no-such-compiler is not found"),
        ({"PATH": "/nonexistent"}, "none of cc, gcc and clang is found"),
        ({"CC": "false"}, "cannot build the virtual CUDA driver: false says"),
    ],
)
def test_no_compiler(tmp_path: Path, environment: dict[str, str], said: str) -> None:
    base = {k: v for k, v in os.environ.items() if k != "CC"}
    done = subprocess.run(
        [sys.executable, "-m", "tcomp.runtime.vgpu.shim"], capture_output=True, text=True, check=False,
        env={**base, "TCOMP_CACHE": str(tmp_path), **environment},
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "help: install gcc" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.rglob("*.so.1"))


def test_another_driver_that_is_already_loaded_is_refused(folder: str, tmp_path: Path) -> None:
    shutil.copy(f"{folder}/libcuda.so.1", tmp_path / "libcuda.so.1")
    code = f"""
import ctypes
ctypes.CDLL({str(tmp_path / "libcuda.so.1")!r})
from tcomp.errors import UserError
from tcomp.runtime.vgpu.shim import install
try:
    install()
except UserError as e:
    print(e)
"""
    assert "another CUDA driver is already loaded" in python(code).stdout


def test_a_forked_child_has_no_driver() -> None:
    code = """
import os
from tcomp.runtime.vgpu.shim import install
install()
from cuda.bindings import driver as cuda
cuda.cuInit(0)
if os.fork() == 0:
    os._exit(0 if cuda.cuDeviceGetCount()[0].name == "CUDA_ERROR_NOT_INITIALIZED" else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = python(code)
    assert done.stdout.strip() == "0", done.stderr


def test_cubins_are_known_to_later_processes(tmp_path: Path) -> None:
    save = f"""
from pathlib import Path
from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.runtime.vgpu.shim import register_cubin
ptx = {SCALE!r}
cubin = assemble(ptx, "sm_90a").cubin
register_cubin(cubin, ptx)
Path({str(tmp_path / "k.cubin")!r}).write_bytes(cubin)
"""
    assert python(save).returncode == 0
    load = f"""
from tcomp.runtime.vgpu.shim import install
install()
from cuda.bindings import driver as cuda
cuda.cuInit(0)
cuda.cuCtxSetCurrent(cuda.cuDevicePrimaryCtxRetain(0)[1])
print(cuda.cuModuleLoad({str(tmp_path / "k.cubin").encode()!r})[0].name)
"""
    assert python(load).stdout.strip() == "CUDA_SUCCESS"
    assert python(load, TCOMP_CACHE=str(tmp_path / "other")).stdout.strip() == "CUDA_ERROR_NO_BINARY_FOR_GPU"


def test_per_thread_default_streams() -> None:
    """cuda-bindings then asks for the per-thread variants: stream 0 has nothing to do with the legacy stream."""
    code = """
from tcomp.runtime.vgpu.shim import install
driver = install()
from cuda.bindings import driver as cuda
cuda.cuInit(0)
cuda.cuCtxSetCurrent(cuda.cuDevicePrimaryCtxRetain(0)[1])
cuda.cuMemsetD32Async(cuda.cuMemAlloc(4)[1], 5, 1, 0)
cuda.cuStreamSynchronize(1)
context = driver.contexts()[0]
print([len(s.queue) for s in context.thread_streams.values()])
"""
    assert python(code, CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM="1").stdout.strip() == "[1]"
    assert python(code).stdout.strip() == "[]"
