"""Entries that copy and fill memory.

A copy out of pageable host memory takes its bytes at the call; every other operand of an asynchronous copy,
host memory that it writes to included, is touched only when the work runs.
"""

from __future__ import annotations

import ctypes
from typing import Any

from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.entries import entry
from tcomp.runtime.vgpu.shim.transfers import DEVICE, HOST, UNIFIED, Copy, Fill, Side

_KINDS = {1: HOST, 2: DEVICE, 4: UNIFIED}


def copy(context: Context, operation: Copy, stream: int, wait: bool) -> None:
    if operation.empty:
        return
    if context.stream(stream).branch is None and operation.from_pageable:
        operation.stage()
    context.enqueue(stream, operation)
    if wait:
        context.stream(stream).synchronise()
        context.raise_sticky()


def _linear(name: str, since: int, to: str, source: str, asynchronous: bool) -> None:
    """Both forms of a copy in one piece. The synchronous device-to-device form does not wait for the copy."""

    def run(context: Context, destination: int, origin: int, size: int, stream: int = 0) -> None:
        if not size:
            return
        operation = Copy(context.driver, Side(to, destination), Side(source, origin), size)
        on_device = operation.to.kind == operation.source.kind == DEVICE
        copy(context, operation, stream, wait=not asynchronous and not on_device)

    run.__name__ = name
    entry(name, "pppp" if asynchronous else "ppp", since, stream=3 if asynchronous else -1)(run)


for _a, _s in ((False, ""), (True, "Async")):
    _linear(f"cuMemcpyHtoD{_s}_v2", 3020, DEVICE, HOST, _a)
    _linear(f"cuMemcpyDtoH{_s}_v2", 3020, HOST, DEVICE, _a)
    _linear(f"cuMemcpyDtoD{_s}_v2", 3020, DEVICE, DEVICE, _a)
    _linear(f"cuMemcpy{_s}", 4000, UNIFIED, UNIFIED, _a)


@entry("cuMemcpyPeer", "ppppp", 4000, stream=-1)
def cu_memcpy_peer(context: Context, to: int, to_context: int, source: int, source_context: int, size: int) -> None:
    cu_memcpy_peer_async(context, to, to_context, source, source_context, size, 0)


@entry("cuMemcpyPeerAsync", "pppppp", 4000, stream=5)
def cu_memcpy_peer_async(
    context: Context, to: int, to_context: int, source: int, source_context: int, size: int, stream: int
) -> None:
    for handle in (to_context, source_context):
        context.driver.object(handle, Context, "INVALID_CONTEXT")
    copy(context, Copy(context.driver, Side(DEVICE, to), Side(DEVICE, source), size), stream, wait=False)


class Memcpy2D(ctypes.Structure):
    _fields_ = [
        (f"{end}_{name}", kind)
        for end in ("src", "dst")
        for name, kind in (
            ("x", ctypes.c_uint64), ("y", ctypes.c_uint64), ("type", ctypes.c_uint32), ("host", ctypes.c_uint64),
            ("device", ctypes.c_uint64), ("array", ctypes.c_uint64), ("pitch", ctypes.c_uint64),
        )
    ] + [("width", ctypes.c_uint64), ("height", ctypes.c_uint64)]  # fmt: skip


class Memcpy3D(ctypes.Structure):
    _fields_ = [
        (f"{end}_{name}", kind)
        for end in ("src", "dst")
        for name, kind in (
            ("x", ctypes.c_uint64), ("y", ctypes.c_uint64), ("z", ctypes.c_uint64), ("lod", ctypes.c_uint64),
            ("type", ctypes.c_uint32), ("host", ctypes.c_uint64), ("device", ctypes.c_uint64),
            ("array", ctypes.c_uint64), ("reserved", ctypes.c_uint64), ("pitch", ctypes.c_uint64),
            ("height", ctypes.c_uint64),
        )
    ] + [("width", ctypes.c_uint64), ("height", ctypes.c_uint64), ("depth", ctypes.c_uint64)]  # fmt: skip


def pitched(context: Context, p: Any) -> Copy:
    """The copy of a CUDA_MEMCPY2D or 3D structure. NOT_SUPPORTED for arrays (textures)."""
    depth = getattr(p, "depth", 1)
    sides = []
    for end in ("dst", "src"):
        v = {
            name: getattr(p, f"{end}_{name}", 0)
            for name in ("x", "y", "z", "type", "host", "device", "pitch", "height")
        }
        if v["type"] == 3:
            raise fail("NOT_SUPPORTED", "CUDA arrays")
        if v["type"] not in _KINDS:
            raise fail("INVALID_VALUE")
        kind = _KINDS[v["type"]]
        if p.height * depth > 1 and v["pitch"] < p.width + v["x"]:
            raise fail("INVALID_VALUE", f"rows of {p.width} bytes at a pitch of {v['pitch']}")
        rows = v["height"] or p.height
        start = v["host" if kind == HOST else "device"] + v["x"] + (v["z"] * rows + v["y"]) * v["pitch"]
        sides.append(Side(kind, start, v["pitch"], v["pitch"] * rows))
    return Copy(context.driver, sides[0], sides[1], p.width, p.height, depth)


def _pitched(name: str, since: int, structure: Any, asynchronous: bool) -> None:
    def run(context: Context, parameters: int, stream: int = 0) -> None:
        if not parameters:
            raise fail("INVALID_VALUE")
        p = structure.from_address(parameters)
        if p.width and p.height and getattr(p, "depth", 1):
            operation = pitched(context, p)
            on_device = operation.to.kind == operation.source.kind == DEVICE
            copy(context, operation, stream, wait=not asynchronous and not on_device)

    run.__name__ = name
    entry(name, "pp" if asynchronous else "p", since, stream=1 if asynchronous else -1)(run)


_pitched("cuMemcpy2D_v2", 3020, Memcpy2D, False)
_pitched("cuMemcpy2DUnaligned_v2", 3020, Memcpy2D, False)
_pitched("cuMemcpy2DAsync_v2", 3020, Memcpy2D, True)
_pitched("cuMemcpy3D_v2", 3020, Memcpy3D, False)
_pitched("cuMemcpy3DAsync_v2", 3020, Memcpy3D, True)


# --- fills: asynchronous to the host in both forms
def _fill(bits: int, letter: str) -> None:
    element = bits // 8

    def line(context: Context, address: int, value: int, count: int, stream: int = 0) -> None:
        operation = Fill(context.driver, address, element, value, count)
        if not operation.empty:
            context.enqueue(stream, operation)

    def rows(
        context: Context, address: int, pitch: int, value: int, width: int, height: int, stream: int = 0
    ) -> None:  # fmt: skip
        operation = Fill(context.driver, address, element, value, width, height, pitch)
        if not operation.empty:
            context.enqueue(stream, operation)

    line.__name__, rows.__name__ = f"cuMemsetD{bits}", f"cuMemsetD2D{bits}"
    entry(f"cuMemsetD{bits}_v2", f"p{letter}p", 3020, stream=-1)(line)
    entry(f"cuMemsetD{bits}Async", f"p{letter}pp", 3020, stream=3)(line)
    entry(f"cuMemsetD2D{bits}_v2", f"pp{letter}pp", 3020, stream=-1)(rows)
    entry(f"cuMemsetD2D{bits}Async", f"pp{letter}ppp", 3020, stream=5)(rows)


for _bits, _letter in ((8, "b"), (16, "h"), (32, "u")):
    _fill(_bits, _letter)
