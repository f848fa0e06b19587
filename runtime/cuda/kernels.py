"""A step's kernels on a GPU: tile IR to PTX to a cubin (each kept by content), loaded and ready to be launched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from cuda.bindings import driver as cu

import tcomp
from tcomp.codegen.cache import SHARED_SOURCES, ContentCache, sources_digest
from tcomp.codegen.nvptx.assembly.assemble import assemble_all
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.launch import GpuKernel, LaunchShape, from_json, to_json
from tcomp.dsl.ast import Span
from tcomp.errors import UserError
from tcomp.ir.content import content_text
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import GpuMachine
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.driver import CudaError, call
from tcomp.runtime.vgpu.shim import current, register_cubin

SOURCES = (*SHARED_SOURCES, "codegen/nvptx/**/*.py")
"""Files of what PTX depends on."""
FREE_SHARED = 48 << 10
"""Bytes of shared memory that a block may have without the function's attribute allowing more."""

_OTHER_CODE = frozenset({
    "INVALID_IMAGE", "NO_BINARY_FOR_GPU", "UNSUPPORTED_PTX_VERSION", "INVALID_SOURCE", "NOT_SUPPORTED",
})  # fmt: skip
"""Results of loading a cubin that PTX may not have: the driver is older than the assembler, say."""


@dataclass(frozen=True)
class LoadedKernel:
    """Functions in the order of the kernel's launches, each with its shape."""

    kernel: GpuKernel
    functions: tuple[Any, ...]

    @property
    def launches(self) -> list[tuple[Any, LaunchShape]]:
        return list(zip(self.functions, self.kernel.launches, strict=True))


def compile_all(
    kernels: Mapping[str, Kernel], machine: GpuMachine, cache_dir: Path | str | None = None
) -> dict[str, GpuKernel]:
    """PTX of every kernel, from the cache where it has it."""
    kept, machine = ContentCache(cache_dir, kind="ptx-2", suffix=".ptx"), machine.without_memory
    found = {}
    for name, kernel in kernels.items():
        key = _key(kernel, machine)
        found[name] = from_json(kept.made(key, partial(_compiled, kernel, machine)))
    return found


def _compiled(kernel: Kernel, machine: GpuMachine) -> bytes:
    return to_json(compile_kernel(kernel, machine)).encode()


def load_all(
    context: Context,
    kernels: Mapping[str, GpuKernel],
    machine: GpuMachine,
    cache_dir: Path | str | None = None,
    spans: Mapping[str, Span] | None = None,
) -> dict[str, LoadedKernel]:
    """Assemble and load modules; kernels of equal PTX share one. UserError when the GPU or its driver refuses, and for
    a kernel that does not assemble, with the line of its schedule where `spans` have it."""
    texts: dict[str, str] = {}
    for name, k in kernels.items():
        texts.setdefault(k.ptx, f"{spans[name]}: kernel {name}" if spans else "")
    cubins = assemble_all([(ptx, machine.target) for ptx in texts], cache_dir, origins=list(texts.values()))
    if current() is not None:  # the virtual GPU runs a cubin's PTX
        for ptx, found in zip(texts, cubins, strict=True):
            register_cubin(found.cubin, ptx)
    modules = {ptx: _load(context, ptx, found.cubin) for ptx, found in zip(texts, cubins, strict=True)}
    return {
        name: LoadedKernel(k, tuple(_function(context, modules[k.ptx], s, machine) for s in k.launches))
        for name, k in kernels.items()
    }


def _key(kernel: Kernel, machine: GpuMachine) -> str:
    """A hash of all that the PTX depends on."""
    tools = (tcomp.__version__, sources_digest(*SOURCES), llvm.llvm_version_info)
    return hashlib.sha256(content_text((kernel, machine, tools)).encode()).hexdigest()[:40]


def _load(context: Context, ptx: str, cubin: bytes) -> Any:
    """The module of a cubin, or of the PTX that the driver compiles where it does not take the cubin."""
    try:
        return context.own(cu.cuModuleUnload, call(cu.cuModuleLoadData, cubin))
    except CudaError as e:
        if e.name not in _OTHER_CODE:
            raise
    log = bytes(4096)
    option = cu.CUjit_option
    options = [option.CU_JIT_ERROR_LOG_BUFFER, option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
    try:
        module = call(cu.cuModuleLoadDataEx, ptx.encode() + b"\0", len(options), options, [log, len(log)])
        return context.own(cu.cuModuleUnload, module)
    except CudaError as e:
        if e.name in ("UNSUPPORTED_PTX_VERSION", "JIT_COMPILER_NOT_FOUND"):
            version = next(line for line in ptx.splitlines() if line.startswith(".version"))
            raise UserError(
                f"the NVIDIA driver is too old for these kernels: it takes neither their machine "
                f"code nor PTX{version[8:]}",
                "install a newer driver, or use --device cpu",
            ) from e
        said = log.split(b"\0")[0].decode(errors="replace").strip()
        raise CudaError(e.name, f"{e.message}\n{said}".rstrip(), e.hint) from e


def _function(context: Context, module: Any, shape: LaunchShape, machine: GpuMachine) -> Any:
    """The function of a launch, allowed the shared memory that it takes. UserError where the GPU has less room than the
    launch must have."""
    function = call(cu.cuModuleGetFunction, module, shape.symbol.encode())
    attribute = cu.CUfunction_attribute
    static = int(call(cu.cuFuncGetAttribute, attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function))
    if static + shape.shared_bytes > machine.shared_per_block:
        raise UserError(
            f"kernel {shape.symbol} takes {static + shape.shared_bytes} bytes of shared memory, "
            f"a block of {machine.label or machine.name} has {machine.shared_per_block}",
            "stage smaller tiles, or fewer of them at once",
        )
    if static + shape.shared_bytes > FREE_SHARED:
        allowed = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call(cu.cuFuncSetAttribute, function, allowed, shape.shared_bytes)
    if shape.resident and (room := _room(context, function, shape, machine)) < shape.blocks:
        raise UserError(
            f"the blocks of kernel {shape.symbol} wait for each other, and GPU {context.gpu.index}, "
            f"{context.gpu.name}, has room for {room} of its {shape.blocks} at a time: the others would never start",
            "leave `persistent` out of its schedule, or add `stream`, or build for this GPU",
        )
    return function


def _room(context: Context, function: Any, shape: LaunchShape, machine: GpuMachine) -> int:
    """Blocks of a launch that the GPU runs at the same time. (The driver does not know of tensor memory. Clusters
    that take some have so much shared memory that there is room for no more blocks than have columns.)"""
    if shape.cluster == 1:
        each = int(call(cu.cuOccupancyMaxActiveBlocksPerMultiprocessor, function, shape.threads, shape.shared_bytes))
        if shape.tensor_columns:
            each = min(each, machine.tensor_columns // shape.tensor_columns)
        return each * context.gpu.attribute("MULTIPROCESSOR_COUNT")
    asked = cu.CUlaunchConfig()
    asked.gridDimX, asked.gridDimY, asked.gridDimZ = shape.blocks, 1, 1
    asked.blockDimX, asked.blockDimY, asked.blockDimZ = shape.threads, 1, 1
    asked.sharedMemBytes = shape.shared_bytes
    return int(call(cu.cuOccupancyMaxActiveClusters, function, asked)) * shape.cluster
