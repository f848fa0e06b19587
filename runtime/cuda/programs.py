"""A step's programs as launches on a stream: one by one, or recorded once and launched as one graph.

Every address is known when the step is placed, so a launch's arguments are laid out once, in host memory that the
driver reads at each launch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from cuda.bindings import driver as cu

from tcomp.codegen.nvptx.emitter import WAIT_FOR_LAUNCH
from tcomp.codegen.nvptx.launch import LaunchShape
from tcomp.errors import UserError
from tcomp.ir.tile import Buffer
from tcomp.model.step import Step
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.driver import CudaError, call
from tcomp.runtime.cuda.kernels import LoadedKernel
from tcomp.runtime.cuda.tensor_map import encode

OVERLAPPING_DRIVER = 12030
"""The first whose graphs keep that a launch may begin before the one ahead of it has ended (CUDA 12.3)."""
VECTOR = 16
"""Bytes of the widest access."""


class BoundLaunch:
    """One launch with its arguments, pointers and then tensor maps: `label` names it to people. `early`: it waits by
    itself for the launch before it, so it may begin while that ends."""

    def __init__(
        self,
        function: Any,
        shape: LaunchShape,
        arguments: Sequence[int],
        label: str,
        maps: Sequence[bytes] = (),
        early: bool = False,
    ) -> None:
        self.function, self.shape, self.label, self.early = function, shape, label, early
        count = len(arguments)
        self._values = (ctypes.c_uint64 * max(1, count))(*arguments)
        self._maps = [ctypes.create_string_buffer(m, len(m)) for m in maps]
        first = ctypes.addressof(self._values)
        places = [first + 8 * i for i in range(count)] + [ctypes.addressof(m) for m in self._maps]
        self._pointers = (ctypes.c_uint64 * max(1, len(places)))(*places)
        self._parameters = ctypes.addressof(self._pointers)

    def submit(self, stream: Any, behind: bool = False) -> None:
        """Launch it; `behind` a launch of a program's, it begins as soon as it may."""
        shape = self.shape
        try:
            if behind and self.early:
                call(cu.cuLaunchKernelEx, _beginning_early(shape, stream), self.function, self._parameters, 0)
            else:
                call(
                    cu.cuLaunchKernel, self.function, shape.blocks, 1, 1, shape.threads, 1, 1, shape.shared_bytes,
                    stream, self._parameters, 0,
                )  # fmt: skip
        except CudaError as e:
            raise e if e.sticky else CudaError(e.name, f"cannot launch {self.label}: {e.message}", e.hint) from e


def _beginning_early(shape: LaunchShape, stream: Any) -> Any:
    """The configuration of a launch that may begin before the one ahead of it in the stream has ended (programmatic
    stream serialization, CUDA driver API)."""
    attribute = cu.CUlaunchAttribute()
    attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    config = cu.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = shape.blocks, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = shape.threads, 1, 1
    config.sharedMemBytes, config.hStream = shape.shared_bytes, stream
    config.attrs, config.numAttrs = [attribute], 1
    return config


def bind(
    step: Step, program: str, kernels: Mapping[str, LoadedKernel], arena: int, team: int
) -> tuple[BoundLaunch, ...]:
    """A program's launches, one for each phase of each kernel, in order. Tensor maps are encoded here, once. UserError
    for an operand at an address that the kernels' 128-bit accesses could not be made at."""
    bound = []
    for launch in step.programs[program]:
        loaded = kernels[launch.kernel]
        for offset, operand in zip(launch.offsets, step.kernels[launch.kernel].operands, strict=False):
            _check_alignment(offset, operand, launch.label)
        at = {o.name: arena + offset
              for offset, o in zip(launch.offsets, step.kernels[launch.kernel].operands, strict=False)}  # fmt: skip
        arguments = [arena + offset for offset in launch.offsets] + ([team] if loaded.kernel.team_bytes else [])
        count, early = len(loaded.functions), WAIT_FOR_LAUNCH in loaded.kernel.ptx
        for i, (function, shape) in enumerate(loaded.launches):
            label = launch.label if count == 1 else f"{launch.label} ({i + 1}/{count})"
            maps = [encode(m.map, at[m.operand]) for m in shape.maps]
            bound.append(BoundLaunch(function, shape, arguments, label, maps, early))
    return tuple(bound)


def _check_alignment(offset: int, operand: Buffer, label: str) -> None:
    """An operand of a vector or more must begin where a vector may."""
    if offset % VECTOR and operand.bytes >= VECTOR:
        raise UserError(
            f"'{operand.name}' of {label} begins at byte {offset} of the arena, which is no multiple of {VECTOR}",
            f"on a GPU parts of tensors that are used one by one, such as a layer's parameters, must be multiples of "
            f"{VECTOR} bytes: choose sizes that are multiples of {VECTOR // operand.dtype.bytes}",
        )


def record(context: Context, launches: Sequence[BoundLaunch]) -> Any:
    """The launches as one executable graph, in which each but the first may begin as the one before it ends."""
    mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    overlaps = context.gpu.driver_version >= OVERLAPPING_DRIVER
    call(cu.cuStreamBeginCapture, context.compute, mode)
    try:
        for number, launch in enumerate(launches):
            launch.submit(context.compute, overlaps and number > 0)
    finally:
        graph = call(cu.cuStreamEndCapture, context.compute)
    try:
        made = call(cu.cuGraphInstantiate, graph, 0)
    finally:
        call(cu.cuGraphDestroy, graph)
    context.own(cu.cuGraphExecDestroy, made)
    call(cu.cuGraphUpload, made, context.compute)
    return made
