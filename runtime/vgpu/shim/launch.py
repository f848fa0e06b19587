"""Kernel launches: what the driver checks at the call, the arguments as bytes, and what a failed kernel means."""

from __future__ import annotations

import ctypes
import math
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcomp.errors import UserError
from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.report import Finding, Report
from tcomp.runtime.vgpu.shim.codes import fail
from tcomp.runtime.vgpu.shim.modules import Function

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.context import VirtualDevice

Dim = tuple[int, int, int]
_END, _BUFFER, _SIZE = 0, 1, 2
_MAX_GRID: Dim = (2**31 - 1, 65535, 65535)
_MAX_BLOCK: Dim = (1024, 1024, 64)
PORTABLE_CLUSTER = 8
LAUNCH_NS = 2000.0

_HARDWARE = (
    ("out of bounds", "ILLEGAL_ADDRESS"),
    ("misaligned", "MISALIGNED_ADDRESS"),
    ("write to constant memory", "ILLEGAL_ADDRESS"),
    ("bad tensor map", "ILLEGAL_INSTRUCTION"),
    ("unaligned box", "ILLEGAL_INSTRUCTION"),
    ("deadlock", "LAUNCH_TIMEOUT"),
    ("trap", "LAUNCH_FAILED"),
    ("stack overflow", "HARDWARE_STACK_ERROR"),
    ("call of no function", "INVALID_PC"),
    ("shared memory of an exited block", "LAUNCH_FAILED"),
)


@dataclass(frozen=True)
class Shape:
    """A launch's dimensions. `cluster` is None where the launch says nothing of it."""

    grid: Dim
    block: Dim
    shared: int = 0
    cluster: Dim | None = None
    cooperative: bool = False


class KernelLaunch:
    """A checked launch with its arguments copied. `kind` is the driver's graph node type."""

    kind = 0

    def __init__(self, function: Function, shape: Shape, arguments: list[bytes]) -> None:
        self.function, self.shape, self.arguments = function, shape, arguments
        check(function, shape)

    def run(self) -> float:
        """Runs the kernel. CudaError with the sticky code when hardware would fail, or any finding under
        `strict`."""
        f, s = self.function, self.shape
        driver, device = f.module.context.driver, f.module.context.device
        try:
            report = f.module.loaded.launch(
                f.name, s.grid, s.block, self.arguments, s.shared, cluster=s.cluster, registers=f.known_registers
            )
        except (PtxError, UserError) as e:
            raise fail("ILLEGAL_INSTRUCTION", f"the virtual GPU cannot run `{f.name}`: {e}") from e
        except MemoryError as e:
            raise fail("LAUNCH_OUT_OF_RESOURCES", "the host has no memory left to run it") from e
        except KeyboardInterrupt as e:  # memory is as a kernel in mid-run leaves it: nothing may go on from there
            raise fail("LAUNCH_FAILED", f"kernel `{f.name}` was interrupted") from e
        except Exception as e:
            raise fail("LAUNCH_FAILED", f"the virtual GPU failed:\n{traceback.format_exc()}") from e
        driver.add_report(report)
        for finding in report.findings:
            name = hardware_error(finding)
            if name:
                raise fail(name, f"kernel `{f.name}`, PTX line {finding.line}: {finding.kind}")
        if driver.options.strict and report.findings:
            first = report.findings[0]
            raise fail("LAUNCH_FAILED", f"kernel `{f.name}`, PTX line {first.line}: {first.kind} (strict)")
        return predicted_ns(report, device)


def hardware_error(finding: Finding) -> str:
    """The error that a GPU gives for what was found; empty where it would not notice."""
    if finding.kind == "trap" and "__assertfail" in finding.source:
        return "ASSERT"
    return next((name for kind, name in _HARDWARE if finding.kind.startswith(kind)), "")


def predicted_ns(report: Report, device: VirtualDevice) -> float:
    """A rough time on the virtual clock: the larger of issue and memory time, after a launch's overhead."""
    m = device.model
    moved = sum(t.bytes_read + t.bytes_written for space, t in report.traffic.items() if space == "global")
    blocks = max(1, math.prod(report.grid))
    issue = report.warp_instructions / (m.partitions * min(m.sms, blocks) * m.clock_hz)
    return LAUNCH_NS + 1e9 * max(issue, moved / m.memory_bandwidth)


def check(function: Function, shape: Shape) -> None:
    """The checks that fail at the call. INVALID_VALUE for dimensions and shared memory beyond their limits,
    INVALID_CLUSTER_SIZE, LAUNCH_OUT_OF_RESOURCES for too many registers."""
    threads = math.prod(shape.block)
    machine = function.module.context.device.model
    for given, most in zip((*shape.grid, *shape.block), (*_MAX_GRID, *_MAX_BLOCK), strict=True):
        if not 1 <= given <= most:
            raise fail("INVALID_VALUE", f"`{function.name}`: grid {shape.grid}, block {shape.block}")
    if threads > 1024:
        raise fail("INVALID_VALUE", f"`{function.name}`: a block of {threads} threads")
    limit = function.directive("maxntid")
    wanted = function.directive("reqntid")
    if (wanted and wanted != shape.block) or (limit and threads > math.prod(limit)):
        raise fail("INVALID_VALUE", f"`{function.name}` was compiled for blocks of {wanted or limit} threads, "
                   f"not {shape.block}")  # fmt: skip
    _check_shared(function, shape)
    registers = function.known_registers
    if registers:
        per_warp = -(-registers * 32 // machine.register_granularity) * machine.register_granularity
        warps = -(-threads // (32 * machine.partitions)) * machine.partitions
        if per_warp * warps > machine.registers_per_block:
            raise fail("LAUNCH_OUT_OF_RESOURCES", f"`{function.name}` takes {registers} registers a thread; "
                       f"{threads} threads do not fit in {machine.registers_per_block}")  # fmt: skip
    _check_cluster(function, shape, machine.sm)
    if shape.cooperative:
        from tcomp.runtime.vgpu.shim.residency import blocks_per_sm

        if math.prod(shape.grid) > blocks_per_sm(function, threads, shape.shared) * machine.sms:
            raise fail("COOPERATIVE_LAUNCH_TOO_LARGE")


def _check_shared(function: Function, shape: Shape) -> None:
    allowed = function.settable[8]
    if shape.shared > allowed:
        most = function.module.context.device.model.shared_per_block
        how = "more than a block can have" if shape.shared + function.static_shared > most else (
            "set CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES first")  # fmt: skip
        raise fail("INVALID_VALUE", f"`{function.name}` with {shape.shared} bytes of dynamic shared memory; it may "
                   f"have {allowed}: {how}")  # fmt: skip


def _check_cluster(function: Function, shape: Shape, sm: int) -> None:
    fixed, given = function.cluster, shape.cluster
    if given is None and fixed is None:
        if "explicitcluster" in function.entry.directives:
            raise fail("INVALID_CLUSTER_SIZE", f"`{function.name}` must be launched with a cluster size")
        return
    if sm < 90:
        raise fail("INVALID_VALUE", f"`{function.name}`: clusters need compute capability 9.0")
    if fixed and given and fixed != given:
        raise fail("INVALID_CLUSTER_SIZE", f"`{function.name}` was compiled for clusters of {fixed}, not {given}")
    size = given or fixed
    assert size is not None
    most = 16 if function.settable[14] else PORTABLE_CLUSTER
    if not 1 <= math.prod(size) <= most or min(size) < 1:
        raise fail("INVALID_CLUSTER_SIZE", f"`{function.name}`: clusters of {size}; {most} blocks are allowed")
    if any(g % c for g, c in zip(shape.grid, size, strict=True)):
        raise fail("INVALID_VALUE", f"`{function.name}`: grid {shape.grid} is no multiple of the cluster {size}")


def arguments(function: Function, parameters: int, extra: int) -> list[bytes]:
    """The kernel's parameters as bytes: from an array of pointers, one each, or from one packed buffer (`extra`).
    INVALID_VALUE when both or neither are given, or the buffer is too short."""
    params = function.entry.params
    if extra and parameters:
        raise fail("INVALID_VALUE", "both kernelParams and extra were given")
    if extra:
        buffer, size = _packed(extra)
        needed = function.offsets[-1] + params[-1].size if params else 0
        if size < needed:
            raise fail("INVALID_VALUE", f"`{function.name}` takes {needed} bytes of arguments, {size} were given")
        return [ctypes.string_at(buffer + at, p.size) for at, p in zip(function.offsets, params, strict=True)]
    if not params:
        return []
    if not parameters:
        raise fail("INVALID_VALUE", f"`{function.name}` takes {len(params)} arguments, none were given")
    pointers = (ctypes.c_uint64 * len(params)).from_address(parameters)
    if not all(pointers):
        raise fail("INVALID_VALUE", f"`{function.name}` takes {len(params)} arguments; a pointer to one is null")
    return [ctypes.string_at(pointers[n], p.size) for n, p in enumerate(params)]


def _packed(extra: int) -> tuple[int, int]:
    """Buffer and size from the launch parameter list (1, buffer, 2, pointer to size, 0)."""
    buffer = size = at = 0
    while True:
        key = ctypes.c_uint64.from_address(extra + at).value
        if key == _END:
            break
        value = ctypes.c_uint64.from_address(extra + at + 8).value
        if key == _BUFFER:
            buffer = value
        elif key == _SIZE:
            size = ctypes.c_uint64.from_address(value).value
        else:
            raise fail("INVALID_VALUE")
        at += 16
    if not buffer:
        raise fail("INVALID_VALUE")
    return buffer, size


class HostCall:
    """cuLaunchHostFunc: a C function of one pointer."""

    kind = 3

    def __init__(self, function: int, data: int) -> None:
        if not function:
            raise fail("INVALID_VALUE")
        self.function, self.data = function, data

    def run(self) -> float:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.function)(self.data)
        return 0.0
