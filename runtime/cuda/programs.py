"""A step's programs as launches on a stream: one by one, or recorded once and launched as one graph.

Every address is known when the step is placed, so a launch's arguments are laid out once, in host memory that the
driver reads at each launch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from cuda.bindings import driver as cu

from tcomp.codegen.nvptx.launch import LaunchShape
from tcomp.errors import UserError
from tcomp.ir.tile import Buffer
from tcomp.model.spaced import VECTOR
from tcomp.model.step import Step
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.driver import CudaError, call
from tcomp.runtime.cuda.kernels import LoadedKernel
from tcomp.runtime.cuda.tensor_map import encode


class BoundLaunch:
    """One launch with its arguments, pointers and then tensor maps: `label` names it to people."""

    def __init__(
        self, function: Any, shape: LaunchShape, arguments: Sequence[int], label: str, maps: Sequence[bytes] = ()
    ) -> None:
        self.function, self.shape, self.label = function, shape, label
        count = len(arguments)
        self._values = (ctypes.c_uint64 * max(1, count))(*arguments)
        self._maps = [ctypes.create_string_buffer(m, len(m)) for m in maps]
        first = ctypes.addressof(self._values)
        places = [first + 8 * i for i in range(count)] + [ctypes.addressof(m) for m in self._maps]
        self._pointers = (ctypes.c_uint64 * max(1, len(places)))(*places)
        self._parameters = ctypes.addressof(self._pointers)

    def submit(self, stream: Any) -> None:
        shape = self.shape
        try:
            call(
                cu.cuLaunchKernel, self.function, shape.blocks, 1, 1, shape.threads, 1, 1, shape.shared_bytes,
                stream, self._parameters, 0,
            )  # fmt: skip
        except CudaError as e:
            raise e if e.sticky else CudaError(e.name, f"cannot launch {self.label}: {e.message}", e.hint) from e


def bind(
    step: Step, program: str, kernels: Mapping[str, LoadedKernel], arena: int, shared: tuple[int, int]
) -> tuple[BoundLaunch, ...]:
    """A program's launches, one for each phase of each kernel, in order. Tensor maps are encoded here, once. UserError
    for an operand at an address that the kernels' 128-bit accesses could not be made at. `shared` are the addresses of
    what the blocks of a kernel share: of the team region, and of the words that are zero between launches."""
    bound = []
    for launch in step.programs[program]:
        loaded = kernels[launch.kernel]
        for offset, operand in zip(launch.offsets, step.kernels[launch.kernel].operands, strict=False):
            _check_alignment(offset, operand, launch.label)
        at = {o.name: arena + offset
              for offset, o in zip(launch.offsets, step.kernels[launch.kernel].operands, strict=False)}  # fmt: skip
        sizes = (loaded.kernel.team_bytes, loaded.kernel.word_bytes)
        arguments = [arena + offset for offset in launch.offsets]
        arguments += [at for at, size in zip(shared, sizes, strict=True) if size]
        count = len(loaded.functions)
        for i, (function, shape) in enumerate(loaded.launches):
            label = launch.label if count == 1 else f"{launch.label} ({i + 1}/{count})"
            maps = [encode(m.map, at[m.operand]) for m in shape.maps]
            bound.append(BoundLaunch(function, shape, arguments, label, maps))
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
    """The launches as one executable graph."""
    mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    call(cu.cuStreamBeginCapture, context.compute, mode)
    try:
        for launch in launches:
            launch.submit(context.compute)
    finally:
        graph = call(cu.cuStreamEndCapture, context.compute)
    try:
        made = call(cu.cuGraphInstantiate, graph, 0)
    finally:
        call(cu.cuGraphDestroy, graph)
    context.own(cu.cuGraphExecDestroy, made)
    call(cu.cuGraphUpload, made, context.compute)
    return made
