"""Entries without a context: start, versions, error texts."""

from __future__ import annotations

import ctypes

from tcomp.runtime.vgpu.shim import state
from tcomp.runtime.vgpu.shim.codes import CODES, fail
from tcomp.runtime.vgpu.shim.entries import entry, put_int, put_size

_texts: dict[int, tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]] = {}


@entry("cuInit", "u", 2000, needs="none")
def cu_init(flags: int) -> None:
    driver = state.driver()
    if flags:
        raise fail("INVALID_VALUE")
    driver.initialised = True


@entry("cuDriverGetVersion", "p", 2020, needs="none")
def cu_driver_get_version(version: int) -> None:
    put_int(version, state.driver().options.driver_version)


def _text(code: int, which: int) -> int:
    if code not in _texts:
        if code not in CODES:
            raise fail("INVALID_VALUE")
        name, text = CODES[code]
        _texts[code] = (ctypes.create_string_buffer(name.encode()), ctypes.create_string_buffer(text.encode()))
    return ctypes.addressof(_texts[code][which])


@entry("cuGetErrorName", "ip", 6000, needs="none")
def cu_get_error_name(code: int, text: int) -> None:
    put_size(text, 0)
    put_size(text, _text(code, 0))


@entry("cuGetErrorString", "ip", 6000, needs="none")
def cu_get_error_string(code: int, text: int) -> None:
    put_size(text, 0)
    put_size(text, _text(code, 1))


@entry("cuModuleGetLoadingMode", "p", 11070, needs="driver")
def cu_module_get_loading_mode(driver: object, mode: int) -> None:
    put_int(mode, 1)  # eager


@entry("cuProfilerStart", "", 4000)
@entry("cuProfilerStop", "", 4000)
def cu_profiler(context: object) -> None:
    """There is nothing to profile."""
