"""`tcomp doctor`: what this machine offers, what each piece is needed for, and the remedy if missing."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from tcomp.errors import UserError


@dataclass(frozen=True)
class Piece:
    """Something tcomp uses. `state` is good, absent (and not needed by everyone) or broken (tcomp does not work)."""

    name: str
    state: str
    value: str
    needed_for: str = ""
    remedy: str = ""


def doctor() -> None:
    """Print versions, CPU features, GPUs, tools and folders: for a bug report, or a look before a long run.

    Ends with 1 only when something is broken that everything needs; a missing GPU or tool is no fault.

    Example: `tcomp doctor`
    """
    pieces: list[Piece] = []
    for group in (_python, _processor, _compiler, _gpu_tools, _driver, _folders):
        found = list(_guarded(group))
        pieces += found
        print(f"{group.__doc__}")
        for p in found:
            mark = {"good": " ", "absent": "-", "broken": "!"}[p.state]
            use = f"   [{p.needed_for}]" if p.needed_for else ""
            print(f"{mark} {p.name:18}{p.value}{use}")
            if p.state != "good" and p.remedy:
                print(f"{'':20}help: {p.remedy}")
        print()
    broken = [p.name for p in pieces if p.state == "broken"]
    if broken:
        print(f"broken: {', '.join(broken)}; tcomp cannot work until this is mended")
        raise typer.Exit(1)
    print("everything that tcomp needs on this CPU is in order")


def _guarded(group: Callable[[], Iterator[Piece]]) -> Iterator[Piece]:
    """The pieces of a group; a fault while looking is a broken piece, not a traceback."""
    try:
        yield from group()
    except Exception as e:  # whatever a half-installed library throws
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        yield Piece((group.__doc__ or "").lower(), "broken", reason, remedy="pip install --force-reinstall tcomp")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _package(name: str, needed_for: str, core: bool = True, install: str = "") -> Piece:
    found = _installed(name)
    if found:
        return Piece(name, "good", found, needed_for)
    remedy = f"pip install {install or name}"
    return Piece(name, "broken" if core else "absent", "not installed", needed_for, remedy)


def _python() -> Iterator[Piece]:
    """Python"""
    import tcomp

    yield Piece("tcomp", "good", tcomp.__version__)
    yield Piece("python", "good", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _package("numpy", "everything")
    yield _package("lark", "reading .tc files")
    yield _package("safetensors", "checkpoints")
    yield _package("typer", "the command line")
    yield _package("rich", "tables and progress")
    yield _package("matplotlib", "tcomp plan --png", core=False)
    yield _package("optuna", "tuning", core=False)
    yield _package("torch", "tests and comparisons", core=False)


def _processor() -> Iterator[Piece]:
    """Processor"""
    from tcomp.amounts import bytes_text
    from tcomp.machine.cpu import detect
    from tcomp.runtime.device import memory_here

    m = detect()
    caches = ", ".join(f"{n} {bytes_text(b)}" for n, b in (("L1", m.l1_bytes), ("L2", m.l2_bytes), ("L3", m.l3_bytes)))
    free = memory_here()
    yield Piece("cpu level", "good", f"{m.name}, {m.lanes_f32} f32 lanes, {m.vector_registers} registers")
    yield Piece("cpu features", "good", " ".join(m.features) or "none used")
    yield Piece("cpu caches", "good", caches)
    yield Piece("cores", "good", str(m.cores))
    yield Piece("free memory", "good", bytes_text(free) if free else "unknown")


def _compiler() -> Iterator[Piece]:
    """Compiler"""
    use = "compiling for CPUs and GPUs"
    found = _installed("llvmlite")
    if found is None:
        yield Piece("llvmlite", "broken", "not installed", use, "pip install 'llvmlite>=0.50,<0.51'")
        return
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    yield Piece("llvmlite", "good", f"{found}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}", use)
    for name, triple, needed, state in (
        ("LLVM host target", llvm.get_process_triple(), "CPUs", "broken"),
        ("LLVM NVPTX", "nvptx64-nvidia-cuda", "GPUs, the virtual GPU", "absent"),
    ):
        try:
            llvm.Target.from_triple(triple)
            yield Piece(name, "good", triple, needed)
        except RuntimeError:
            yield Piece(name, state, f"{triple} is not built in", needed, "install llvmlite from PyPI or conda-forge")


def _gpu_tools() -> Iterator[Piece]:
    """GPU toolchain"""
    from tcomp.codegen.nvptx.assembly.assemble import assembler_version
    from tcomp.codegen.nvptx.assembly.tools import cuda_tool

    yield _package("cuda-bindings", "GPU builds, --device cuda and virtual", core=False, install="cuda-python")
    use = "assembling PTX: tcomp build --target, --device cuda"
    try:
        yield Piece("nvjitlink", "good", "{}.{}".format(*assembler_version()), use)
    except UserError as e:
        yield Piece("nvjitlink", "absent", e.message.removeprefix("PTX cannot be assembled: "), use, e.hint)
    predictions = "tcomp show --sass, roofline --gpu, tune --gpu"
    yield _tool("nvdisasm", cuda_tool("nvdisasm"), predictions, "pip install nvidia-cuda-nvdisasm")
    registers = "sm_90a kernels whose warps exchange registers: most matrix products and attention"
    yield _tool("ptxas", cuda_tool("ptxas"), registers, "pip install nvidia-cuda-nvcc")
    yield _tool(
        "nvcc",
        cuda_tool("nvcc"),
        "tests that run other compilers' PTX",
        "pip install nvidia-cuda-nvcc nvidia-cuda-cccl",
    )
    names = (os.environ.get("CC") or "cc", "gcc", "clang")
    compiler = next((Path(found) for name in names if (found := shutil.which(name))), None)
    yield _tool("C compiler", compiler, "--device virtual", "apt install gcc (Debian, Ubuntu), or set CC")


def _tool(name: str, path: Path | None, needed_for: str, remedy: str) -> Piece:
    if path is not None:
        return Piece(name, "good", str(path), needed_for)
    return Piece(name, "absent", "not found", needed_for, remedy)


def _driver() -> Iterator[Piece]:
    """GPUs"""
    use = "--device cuda; building and --device virtual need none"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        remedy = "install NVIDIA's driver, or use --device cpu or virtual"
        yield Piece("driver", "absent", "libcuda.so.1 is not here", use, remedy)
        return
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    text = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    code = driver.cuInit(0)
    if code != 0:
        advice = {100: "no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES", 999: "see dmesg, or reboot"}
        yield Piece("driver", "absent", f"{text}, but cuInit gives {code}", use, advice.get(code, "see nvidia-smi"))
        return
    yield Piece("driver", "good", text, use)
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    for i in range(count.value):
        yield _gpu(driver, i)


def _gpu(driver: ctypes.CDLL, index: int) -> Piece:
    """One GPU: its name, compute capability, memory, and the target that code for it is built for."""
    from tcomp.amounts import bytes_text
    from tcomp.machine.targets import TARGETS

    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    size, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, 256, device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = (major.value, minor.value)
    about = f"{name.value.decode(errors='replace')}, sm_{major.value}{minor.value}, {bytes_text(size.value)}"
    exact = [t for t in TARGETS.values() if t.capability == capability]
    older = [t for t in TARGETS.values() if t.name[-1].isdigit() and t.capability <= capability]
    if exact or older:
        return Piece(f"gpu {index}", "good", f"{about}, code of {(exact or older)[-1].name}")
    return Piece(f"gpu {index}", "absent", about, "--device cuda", f"tcomp needs sm_80 or newer: {', '.join(TARGETS)}")


def _folders() -> Iterator[Piece]:
    """Folders"""
    from tcomp.amounts import bytes_text
    from tcomp.runtime.cache import cache_folder

    use = "compiled kernels and tokenised text; safe to delete"
    try:
        cache = cache_folder()
    except UserError as e:
        yield Piece("cache folder", "broken", e.message, use, e.hint)
        return
    sizes = []
    for path in cache.rglob("*"):
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except OSError:  # another process has just removed it
            continue
    yield Piece("cache folder", "good", f"{cache} ({len(sizes)} files, {bytes_text(sum(sizes))})", use)
