"""The launch configuration of cuLaunchKernelEx: its structure, and the attributes that matter here."""

from __future__ import annotations

import ctypes

from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.launch import Dim, Shape


class LaunchConfig(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3), ("shared", ctypes.c_uint32),
        ("stream", ctypes.c_uint64), ("attributes", ctypes.c_uint64), ("count", ctypes.c_uint32),
    ]  # fmt: skip


class LaunchAttribute(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("value", ctypes.c_uint32 * 16)]


_COOPERATIVE, _CLUSTER, _PROGRAMMATIC_EVENT, _COMPLETION_EVENT = 2, 4, 7, 12
_PROGRAMMATIC_STREAM = 6
_HINTS = {0, 1, 3, 5, 8, 9, 10, 14}


def shape_of(config: LaunchConfig, sm: int) -> tuple[Shape, list[int]]:
    """The shape of a launch configuration, and the events that its attributes name. INVALID_VALUE for what the
    device cannot do."""
    cluster: Dim | None = None
    cooperative = False
    events: list[int] = []
    if config.count and not config.attributes:
        raise fail("INVALID_VALUE")
    for a in (LaunchAttribute * config.count).from_address(config.attributes) if config.count else ():
        if a.kind == _CLUSTER:
            cluster = (a.value[0], a.value[1], a.value[2])
        elif a.kind == _COOPERATIVE:
            cooperative = bool(a.value[0])
        elif a.kind in (_PROGRAMMATIC_EVENT, _COMPLETION_EVENT):
            events.append(a.value[0] | a.value[1] << 32)
        elif a.kind == _PROGRAMMATIC_STREAM:
            if a.value[0] and sm < 90:
                raise fail("INVALID_VALUE", "programmatic stream serialization needs compute capability 9.0")
        elif a.kind not in _HINTS:
            raise fail("NOT_SUPPORTED", f"launch attribute {a.kind}")
    grid, block = tuple(config.grid), tuple(config.block)
    return Shape(grid, block, config.shared, cluster, cooperative), events
