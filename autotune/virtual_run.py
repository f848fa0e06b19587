"""One op on the virtual GPU at a small size, every check on, against the oracle: the correctness gate where there is no
GPU. Finds what a wrong schedule does (results, races, bounds, missing waits), not how fast it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.dsl.ast import Module, Op
from tcomp.machine.gpu import GpuMachine
from tcomp.runtime.values import numpy_type, stored, values
from tcomp.runtime.verify import distance, oracle_case, rounding
from tcomp.runtime.vgpu import Device, KernelFault, Options, PtxError
from tcomp.runtime.vgpu.arguments import tensor_maps
from tcomp.runtime.vgpu.report import Report
from tcomp.schedule.lower import LoweredOp

Array = NDArray[Any]
WORK = 8e6
"""Points of the largest equation that are run."""
ELEMENTS = 3e5
TOLERANCE = 2e-5


def problem_of(op: Op, module: Module, dims: dict[str, int], lowered: LoweredOp, machine: GpuMachine, seed: int) -> str:
    """What is wrong with the lowered op at these (small) dims; empty when it is right."""
    inputs, expected = oracle_case(op, module, dims, seed)
    try:
        found = execute(op, lowered, inputs, machine)
    except (KernelFault, PtxError) as e:
        return str(e).strip().splitlines()[0]
    tolerance = TOLERANCE + 4 * rounding(op)
    for name, wanted in expected.items():
        if name in found:
            off = distance(found[name], wanted)
            if not off <= tolerance:
                return f"{name} is {off:.1e} from the oracle, {tolerance:.0e} allowed"
    return ""


def codes_of(lowered: LoweredOp, machine: GpuMachine) -> dict[str, GpuKernel]:
    """The code of the op's kernels, for those who run it more than once."""
    return {k.name: compile_kernel(k, machine) for k in lowered.kernels}


def execute(
    op: Op, lowered: LoweredOp, inputs: Mapping[str, Array], machine: GpuMachine, options: Options | None = None,
    codes: Mapping[str, GpuKernel] | None = None,
) -> dict[str, Array]:  # fmt: skip
    """The op's results, from a fresh virtual GPU whose memory starts uninitialised; its kernels are compiled where
    their code is not given. KernelFault for any finding. What no finding comes of is not counted."""
    options = options or Options()
    options = replace(options, profile=options.profile and math.isfinite(options.conflicts))
    return reported(op, lowered, inputs, machine, options, codes)[0]


def reported(
    op: Op, lowered: LoweredOp, inputs: Mapping[str, Array], machine: GpuMachine, options: Options | None = None,
    codes: Mapping[str, GpuKernel] | None = None,
) -> tuple[dict[str, Array], list[Report]]:  # fmt: skip
    """The same, with what the virtual GPU counted in each launch."""
    device = Device(machine.sm, options)
    buffers = {b.name: b for k in lowered.kernels for b in k.operands}
    address = {
        n: device.upload(stored(inputs[n], b.dtype)) if n in inputs else device.allocate(max(1, b.bytes))
        for n, b in buffers.items()
    }
    reports = []
    for kernel in lowered.kernels:
        code = codes[kernel.name] if codes is not None else compile_kernel(kernel, machine)
        team = [device.allocate(code.team_bytes)] if code.team_bytes else []
        words = [device.upload(np.zeros(code.word_bytes, np.uint8))] if code.word_bytes else []
        module = device.load(code.ptx)
        for launch in code.launches:
            pointers = [*(address[b.name] for b in kernel.operands), *team, *words, *tensor_maps(launch, address)]
            report = module.launch(launch.symbol, launch.blocks, launch.threads, pointers, launch.shared_bytes)
            reports.append(report.check())
            for at in words:
                if device.download(at, np.uint8, code.word_bytes).any():
                    raise AssertionError(f"{kernel.name} leaves words behind that are not zero")
    found: dict[str, Array] = {}
    for o in (*op.outputs, *(p for p in op.params if p.inout)):
        if o.name in buffers:
            b = buffers[o.name]
            raw = device.download(address[o.name], numpy_type(b.dtype), int(np.prod(b.shape)))
            found[o.name] = values(raw.reshape(b.shape), b.dtype)
    return found, reports
