"""Entries about modules and functions."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

from tcomp.runtime.vgpu.shim.codes import CudaError, fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.entries import entry, pointers, put_int, put_size, string
from tcomp.runtime.vgpu.shim.launch import PORTABLE_CLUSTER, check
from tcomp.runtime.vgpu.shim.launch_config import LaunchConfig, shape_of
from tcomp.runtime.vgpu.shim.modules import Function, Module, function_of, read_image
from tcomp.runtime.vgpu.shim.residency import best_block_size, blocks_per_sm

_ERROR_LOG, _ERROR_LOG_SIZE = 5, 6
_names: dict[str, ctypes.Array[ctypes.c_char]] = {}


def c_text(text: str) -> int:
    """The address of a constant C string."""
    if text not in _names:
        _names[text] = ctypes.create_string_buffer(text.encode())
    return ctypes.addressof(_names[text])


def log_to(options: int, values: int, count: int, note: str) -> None:
    """Writes an error's words into the caller's log buffer, if it gave one."""
    if not count or not options or not values:
        return
    numbers = list((ctypes.c_int32 * count).from_address(options))
    given = dict(zip(numbers, pointers(values, count), strict=True))
    buffer, size = given.get(_ERROR_LOG, 0), given.get(_ERROR_LOG_SIZE, 0) & 0xFFFFFFFF
    if buffer and size:
        raw = note.encode()[: size - 1] + b"\0"
        ctypes.memmove(buffer, raw, len(raw))


def _load(context: Context, handle: int, image: int, count: int = 0, options: int = 0, values: int = 0) -> None:
    if not handle:
        raise fail("INVALID_VALUE")
    try:
        put_size(handle, Module(context, read_image(image)).handle)
    except CudaError as e:
        log_to(options, values, count, e.note)
        raise


@entry("cuModuleLoadData", "pp", 2000, unsafe=True)
def cu_module_load_data(context: Context, handle: int, image: int) -> None:
    _load(context, handle, image)


@entry("cuModuleLoadDataEx", "ppupp", 2010, unsafe=True)
def cu_module_load_data_ex(context: Context, handle: int, image: int, count: int, options: int, values: int) -> None:
    _load(context, handle, image, count, options, values)


@entry("cuModuleLoadFatBinary", "pp", 2000, unsafe=True)
def cu_module_load_fat_binary(context: Context, handle: int, image: int) -> None:
    _load(context, handle, image)


@entry("cuModuleLoad", "pp", 2000, unsafe=True)
def cu_module_load(context: Context, handle: int, path: int) -> None:
    try:
        content = Path(string(path)).read_bytes()
    except OSError as e:
        raise fail("FILE_NOT_FOUND", str(e)) from e
    kept = ctypes.create_string_buffer(content)
    _load(context, handle, ctypes.addressof(kept))


@entry("cuModuleUnload", "p", 2000, unsafe=True)
def cu_module_unload(context: Context, handle: int) -> None:
    module = context.driver.object(handle, Module)
    module.context.synchronise()
    module.unload()


@entry("cuModuleGetFunction", "ppp", 2000)
def cu_module_get_function(context: Context, handle: int, module: int, name: int) -> None:
    put_size(handle, context.driver.object(module, Module).function(string(name)).handle)


@entry("cuModuleGetGlobal_v2", "pppp", 3020)
def cu_module_get_global(context: Context, address: int, size: int, module: int, name: int) -> None:
    where, count = context.driver.object(module, Module).variable(string(name))
    if address:
        put_size(address, where)
    if size:
        put_size(size, count)


@entry("cuModuleGetFunctionCount", "pp", 12040)
def cu_module_get_function_count(context: Context, count: int, module: int) -> None:
    put_int(count, len(context.driver.object(module, Module).kernels()))


@entry("cuModuleEnumerateFunctions", "pup", 12040)
def cu_module_enumerate_functions(context: Context, functions: int, count: int, module: int) -> None:
    one = context.driver.object(module, Module)
    for n, name in enumerate(one.kernels()[:count]):
        put_size(functions + 8 * n, one.function(name).handle)


# --- functions
@entry("cuFuncGetAttribute", "pip", 2020)
def cu_func_get_attribute(context: Context, value: int, attribute: int, function: int) -> None:
    put_int(value, function_of(context, function).attribute(attribute))


@entry("cuFuncSetAttribute", "pii", 9000)
def cu_func_set_attribute(context: Context, function: int, attribute: int, value: int) -> None:
    function_of(context, function).set_attribute(attribute, value)


@entry("cuFuncSetCacheConfig", "pi", 3000)
def cu_func_set_cache_config(context: Context, function: int, config: int) -> None:
    function_of(context, function)
    if not 0 <= config <= 3:
        raise fail("INVALID_VALUE")


@entry("cuFuncGetModule", "pp", 11000)
def cu_func_get_module(context: Context, module: int, function: int) -> None:
    put_size(module, function_of(context, function).module.handle)


@entry("cuFuncGetName", "pp", 12030)
def cu_func_get_name(context: Context, name: int, function: int) -> None:
    put_size(name, c_text(function_of(context, function).name))


def parameter_info(function: Function, index: int, offset: int, size: int) -> None:
    """Where a parameter lies in the packed arguments. INVALID_VALUE past the last."""
    if not 0 <= index < len(function.offsets) or not offset:
        raise fail("INVALID_VALUE")
    put_size(offset, function.offsets[index])
    if size:
        put_size(size, function.entry.params[index].size)


@entry("cuFuncGetParamInfo", "pppp", 12040)
def cu_func_get_param_info(context: Context, function: int, index: int, offset: int, size: int) -> None:
    parameter_info(function_of(context, function), index, offset, size)


@entry("cuFuncGetParamCount", "pp", 13020)
def cu_func_get_param_count(context: Context, function: int, count: int) -> None:
    put_size(count, len(function_of(context, function).offsets))


@entry("cuFuncIsLoaded", "pp", 12040)
def cu_func_is_loaded(context: Context, loaded: int, function: int) -> None:
    function_of(context, function)
    put_int(loaded, 1)


@entry("cuFuncLoad", "p", 12040)
def cu_func_load(context: Context, function: int) -> None:
    function_of(context, function)


# --- occupancy
@entry("cuOccupancyMaxActiveBlocksPerMultiprocessor", "ppip", 6050)
def cu_occupancy_max_active_blocks(context: Context, count: int, function: int, threads: int, shared: int) -> None:
    if threads <= 0:
        raise fail("INVALID_VALUE")
    put_int(count, blocks_per_sm(function_of(context, function), threads, shared))


@entry("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", "ppipu", 7000)
def cu_occupancy_max_active_blocks_with_flags(
    context: Context, count: int, function: int, threads: int, shared: int, flags: int
) -> None:
    cu_occupancy_max_active_blocks(context, count, function, threads, shared)


def _potential(context: Context, grid: int, block: int, function: int, per_size: int, shared: int, limit: int) -> None:
    if per_size:
        raise fail("NOT_SUPPORTED", "occupancy with a function of the block size: give a fixed number of bytes")
    size, blocks = best_block_size(function_of(context, function), shared, limit)
    put_int(grid, blocks)
    put_int(block, size)


@entry("cuOccupancyMaxPotentialBlockSizeWithFlags", "pppppiu", 7000)
def cu_occupancy_potential_flags(
    context: Context, grid: int, block: int, function: int, per_size: int, shared: int, limit: int, flags: int
) -> None:
    _potential(context, grid, block, function, per_size, shared, limit)


entry("cuOccupancyMaxPotentialBlockSize", "pppppi", 6050)(_potential)


@entry("cuOccupancyAvailableDynamicSMemPerBlock", "ppii", 10020)
def cu_occupancy_available_dynamic(context: Context, size: int, function: int, blocks: int, threads: int) -> None:
    m, f = context.device.model, function_of(context, function)
    if blocks <= 0 or threads <= 0:
        raise fail("INVALID_VALUE")
    each = m.shared_per_sm // blocks // m.shared_granularity * m.shared_granularity - m.shared_reserved
    put_size(size, max(0, min(each, m.shared_per_block) - f.static_shared))


@entry("cuOccupancyMaxPotentialClusterSize", "ppp", 11070)
def cu_occupancy_max_potential_cluster_size(context: Context, size: int, function: int, config: int) -> None:
    if context.device.model.sm < 90:
        raise fail("NOT_SUPPORTED", "clusters need compute capability 9.0")
    put_int(size, 16 if function_of(context, function).settable[14] else PORTABLE_CLUSTER)


@entry("cuOccupancyMaxActiveClusters", "ppp", 11070)
def cu_occupancy_max_active_clusters(context: Context, count: int, function: int, config: int) -> None:
    """How many clusters run at once if blocks could be placed on any SM."""
    if not config:
        raise fail("INVALID_VALUE")
    shape, _ = shape_of(LaunchConfig.from_address(config), context.device.model.sm)
    f = function_of(context, function)
    check(f, shape)
    each = blocks_per_sm(f, math.prod(shape.block), shape.shared)
    put_int(count, each * context.device.model.sms // math.prod(shape.cluster or f.cluster or (1, 1, 1)))
