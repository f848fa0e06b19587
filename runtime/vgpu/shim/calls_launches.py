"""Entries that launch kernels and host functions."""

from __future__ import annotations

import ctypes

from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.context import Context
from tcomp.runtime.vgpu.shim.entries import PER_THREAD, entry
from tcomp.runtime.vgpu.shim.events import Event
from tcomp.runtime.vgpu.shim.launch import HostCall, KernelLaunch, Shape, arguments
from tcomp.runtime.vgpu.shim.launch_config import LaunchConfig, shape_of
from tcomp.runtime.vgpu.shim.modules import function_of


def _launch(context: Context, function: int, shape: Shape, stream: int, parameters: int, extra: int) -> None:
    f = function_of(context, function)
    context.enqueue(stream, KernelLaunch(f, shape, arguments(f, parameters, extra)))


@entry("cuLaunchKernel", "puuuuuuuppp", 4000, stream=8)
def cu_launch_kernel(
    context: Context, function: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int,
    parameters: int, extra: int,
) -> None:  # fmt: skip
    _launch(context, function, Shape((gx, gy, gz), (bx, by, bz), shared), stream, parameters, extra)


@entry("cuLaunchCooperativeKernel", "puuuuuuupp", 9000, stream=8)
def cu_launch_cooperative_kernel(
    context: Context, function: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int,
    parameters: int,
) -> None:  # fmt: skip
    shape = Shape((gx, gy, gz), (bx, by, bz), shared, cooperative=True)
    _launch(context, function, shape, stream, parameters, 0)


@entry("cuLaunchKernelEx", "pppp", 11060)
def cu_launch_kernel_ex(context: Context, config: int, function: int, parameters: int, extra: int) -> None:
    """A programmatically dependent kernel runs after its predecessor, which is one of the orders allowed."""
    if not config:
        raise fail("INVALID_VALUE")
    c = LaunchConfig.from_address(config)
    shape, events = shape_of(c, context.device.model.sm)
    _launch(context, function, shape, c.stream, parameters, extra)
    for handle in events:
        context.driver.object(handle, Event).record(context, c.stream)


def _launch_ex_per_thread(context: Context, config: int, function: int, parameters: int, extra: int) -> None:
    if config and not LaunchConfig.from_address(config).stream:
        copied = LaunchConfig.from_buffer_copy(LaunchConfig.from_address(config))
        copied.stream = PER_THREAD
        cu_launch_kernel_ex(context, ctypes.addressof(copied), function, parameters, extra)
        return
    cu_launch_kernel_ex(context, config, function, parameters, extra)


entry("cuLaunchKernelEx_ptsz", "pppp", 11060, base="cuLaunchKernelEx", per_thread=True)(_launch_ex_per_thread)


@entry("cuLaunchHostFunc", "ppp", 10000, stream=0)
def cu_launch_host_func(context: Context, stream: int, function: int, data: int) -> None:
    context.enqueue(stream, HostCall(function, data))
