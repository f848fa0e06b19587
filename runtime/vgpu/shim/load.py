"""Loads libcuda.so.1 into this process and registers its callbacks."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from tcomp.errors import UserError
from tcomp.runtime.vgpu.shim import state
from tcomp.runtime.vgpu.shim.build import SONAME, build
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tcomp.runtime.vgpu.shim.entries import ENTRIES
from tcomp.runtime.vgpu.shim.machines import machine_named
from tcomp.runtime.vgpu.shim.options import ShimOptions, from_environment

_CALLS = ("general", "devices", "contexts", "memory", "pools", "copies", "modules", "libraries", "launches", "streams",
          "events", "captures", "graphs", "nodes", "user_objects", "tensors")  # fmt: skip
for _name in _CALLS:
    importlib.import_module(f"tcomp.runtime.vgpu.shim.calls_{_name}")
ENTRIES.sort(key=lambda e: e.symbol)

_kept: list[Any] = []  # the library and its callbacks: alive as long as the process


def install(machine: str = "h100", devices: int = 1, options: ShimOptions | None = None) -> VirtualDriver:
    """Makes CUDA's driver interface of this process the virtual GPU's.

    `machine`: the name of a GPU (h100, a100, rtx4090, ...); `devices`: how many of it. Call it before anything
    uses libcuda, cuda.bindings.driver included. A second call gives the driver that is already there if it is
    asked for the same machine. UserError: unknown machine, no C compiler, a real libcuda already loaded.
    """
    old = state.installed()
    model = machine_named(machine)
    if old is not None:
        if old.model.name == model.name and len(old.devices) == devices and options in (None, old.options):
            return old
        raise UserError(
            f"this process already has a virtual driver of {len(old.devices)} {old.model.name}",
            "one process has one CUDA driver: start another process for another machine or other options",
        )
    if devices < 1 or devices > 6:
        raise UserError(f"{devices} virtual devices were asked for", "1 to 6 are possible")
    if not _kept:
        path = str(build(ENTRIES))
        loaded = _loaded_path()
        if loaded is not None and not os.path.samefile(loaded, path):
            raise UserError(
                f"another CUDA driver is already loaded in this process: {loaded}",
                "install the virtual driver before anything touches CUDA, or start with LD_LIBRARY_PATH=$(python -m "
                "tcomp.runtime.vgpu.shim)",
            )
        _register(path)
    driver = VirtualDriver(model, devices, options or ShimOptions())
    driver.library = str(_kept[0]._name)
    state.set_driver(driver)
    return driver


def library() -> Path:
    """The path of the compiled libcuda.so.1. UserError when it cannot be compiled."""
    return build(ENTRIES)


def attach(path: str) -> None:
    """Called from C when a program found the library by itself: the machine comes from TCOMP_VGPU_* variables."""
    try:
        machine, devices, options = from_environment()
        model = machine_named(machine)
    except UserError as e:
        state.log(str(e))
        return
    if state.installed() is None:
        driver = VirtualDriver(model, devices, options)
        driver.library = path
        state.set_driver(driver)
    _register(path)


def uninstall() -> None:
    """Ends the virtual driver: destroys its contexts; every later call gives NOT_INITIALIZED. For tests that need
    another machine in one process; programs that keep handles must be done with them."""
    driver = state.installed()
    if driver is None:
        return
    with driver.lock:
        for c in driver.contexts():
            c.destroy()
    state.set_driver(None)


def _register(path: str) -> None:
    if _kept:
        return
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    callbacks = [e.callback() for e in ENTRIES]
    array = (ctypes.c_void_p * len(callbacks))(*[ctypes.cast(c, ctypes.c_void_p).value for c in callbacks])
    _kept.extend([library, callbacks, array])
    library.tcomp_vgpu_register(array, len(callbacks))


def _loaded_path() -> str | None:
    """The file of a libcuda.so.1 that is loaded already."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                path = line.split(maxsplit=5)[-1].strip()
                if os.path.basename(path).startswith("libcuda.so"):
                    return path
    except OSError as e:
        print(f"cannot tell whether {SONAME} is loaded: {e}", file=sys.stderr)
    return None
