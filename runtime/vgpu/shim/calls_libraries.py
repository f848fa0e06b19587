"""Entries about libraries and their kernels: code that belongs to no context."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tcomp.runtime.vgpu.shim.calls_modules import c_text, log_to, parameter_info
from tcomp.runtime.vgpu.shim.codes import CudaError, fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.entries import entry, put_int, put_size, string
from tcomp.runtime.vgpu.shim.modules import Kernel, Library, read_image


def _load(context: Context, handle: int, code: int, options: int, values: int, count: int) -> None:
    if not handle:
        raise fail("INVALID_VALUE")
    try:
        put_size(handle, Library(context, read_image(code)).handle)
    except CudaError as e:
        log_to(options, values, count, e.note)
        raise


@entry("cuLibraryLoadData", "ppppuppu", 12000, unsafe=True)
def cu_library_load_data(
    context: Context, handle: int, code: int, options: int, values: int, count: int,
    library_options: int, library_values: int, library_count: int,
) -> None:  # fmt: skip
    _load(context, handle, code, options, values, count)


@entry("cuLibraryLoadFromFile", "ppppuppu", 12000, unsafe=True)
def cu_library_load_from_file(
    context: Context, handle: int, path: int, options: int, values: int, count: int,
    library_options: int, library_values: int, library_count: int,
) -> None:  # fmt: skip
    try:
        kept = ctypes.create_string_buffer(Path(string(path)).read_bytes())
    except OSError as e:
        raise fail("FILE_NOT_FOUND", str(e)) from e
    _load(context, handle, ctypes.addressof(kept), options, values, count)


@entry("cuLibraryUnload", "p", 12000, unsafe=True)
def cu_library_unload(context: Context, library: int) -> None:
    one = context.driver.object(library, Library)
    for c in context.driver.contexts():
        if one in c.loaded:
            c.synchronise()
    one.unload()


@entry("cuLibraryGetKernel", "ppp", 12000)
def cu_library_get_kernel(context: Context, kernel: int, library: int, name: int) -> None:
    put_size(kernel, context.driver.object(library, Library).kernel(context, string(name)).handle)


@entry("cuLibraryGetKernelCount", "pp", 12040)
def cu_library_get_kernel_count(context: Context, count: int, library: int) -> None:
    put_int(count, len(context.driver.object(library, Library).module(context).kernels()))


@entry("cuLibraryEnumerateKernels", "pup", 12040)
def cu_library_enumerate_kernels(context: Context, kernels: int, count: int, library: int) -> None:
    one = context.driver.object(library, Library)
    for n, name in enumerate(one.module(context).kernels()[:count]):
        put_size(kernels + 8 * n, one.kernel(context, name).handle)


@entry("cuLibraryGetModule", "pp", 12000)
def cu_library_get_module(context: Context, module: int, library: int) -> None:
    put_size(module, context.driver.object(library, Library).module(context).handle)


@entry("cuLibraryGetGlobal", "pppp", 12000)
def cu_library_get_global(context: Context, address: int, size: int, library: int, name: int) -> None:
    where, count = context.driver.object(library, Library).module(context).variable(string(name))
    if address:
        put_size(address, where)
    if size:
        put_size(size, count)


@entry("cuKernelGetFunction", "pp", 12000)
def cu_kernel_get_function(context: Context, function: int, kernel: int) -> None:
    put_size(function, context.driver.object(kernel, Kernel).function(context).handle)


@entry("cuKernelGetLibrary", "pp", 12050)
def cu_kernel_get_library(context: Context, library: int, kernel: int) -> None:
    put_size(library, context.driver.object(kernel, Kernel).library.handle)


@entry("cuKernelGetName", "pp", 12030)
def cu_kernel_get_name(context: Context, name: int, kernel: int) -> None:
    put_size(name, c_text(context.driver.object(kernel, Kernel).name))


def _on_device(context: Context, device: int) -> Context:
    """The current context if it is on that device, else the device's primary one."""
    one = context.driver.device(device)
    if context.device is one:
        return context
    if one.primary is None:
        raise fail("INVALID_DEVICE", "the device has no context yet")
    return one.primary


@entry("cuKernelGetAttribute", "pipi", 12000)
def cu_kernel_get_attribute(context: Context, value: int, attribute: int, kernel: int, device: int) -> None:
    function = context.driver.object(kernel, Kernel).function(_on_device(context, device))
    put_int(value, function.attribute(attribute))


@entry("cuKernelSetAttribute", "iipi", 12000)
def cu_kernel_set_attribute(context: Context, attribute: int, value: int, kernel: int, device: int) -> None:
    context.driver.object(kernel, Kernel).function(_on_device(context, device)).set_attribute(attribute, value)


@entry("cuKernelSetCacheConfig", "pii", 12000)
def cu_kernel_set_cache_config(context: Context, kernel: int, config: int, device: int) -> None:
    context.driver.object(kernel, Kernel)


@entry("cuKernelGetParamInfo", "pppp", 12040)
def cu_kernel_get_param_info(context: Context, kernel: int, index: int, offset: int, size: int) -> None:
    parameter_info(context.driver.object(kernel, Kernel).function(context), index, offset, size)


@entry("cuKernelGetParamCount", "pp", 13020)
def cu_kernel_get_param_count(context: Context, kernel: int, count: int) -> None:
    put_size(count, len(context.driver.object(kernel, Kernel).function(context).offsets))
