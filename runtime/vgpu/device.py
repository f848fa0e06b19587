"""The virtual GPU as its users see it: load PTX, allocate, copy, launch, read the report.

gpu = Device()
x = gpu.upload(np.arange(64, dtype=np.float32))
report = gpu.load(ptx_text).launch("scale", grid=1, block=64, args=[x, 2.0, 64])
report.check(); gpu.download(x, np.float32, 64)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tcomp.errors import UserError
from tcomp.runtime.vgpu.cluster import shape as cluster_shape
from tcomp.runtime.vgpu.executor import Executor
from tcomp.runtime.vgpu.expand import flatten
from tcomp.runtime.vgpu.flow import analyse
from tcomp.runtime.vgpu.lanes import Array
from tcomp.runtime.vgpu.machine import Dim, Machine, Options
from tcomp.runtime.vgpu.memory import CODE_WINDOW, GlobalMemory
from tcomp.runtime.vgpu.parser import parse
from tcomp.runtime.vgpu.ptx import AddressByte, PtxModule, Sym, Variable
from tcomp.runtime.vgpu.report import Report
from tcomp.runtime.vgpu.targets import check_instructions, check_module
from tcomp.runtime.vgpu.types import scalar

MAX_SHARED = 232448


class Device:
    """`sm` is the compute capability (80, 89, 90): it runs modules for that `.target` and lower ones (targets.py)."""

    def __init__(self, sm: int = 90, options: Options | None = None) -> None:
        self.sm, self.options = sm, options or Options()
        self.memory = GlobalMemory()

    def load(self, text: str) -> Loaded:
        """Parses PTX text and places its global variables. PtxError names the line of what cannot be read."""
        module = parse(text)
        check_module(module.target, self.sm)
        return Loaded(self, module)

    def allocate(self, size: int) -> int:
        """`size` bytes, 256-byte aligned, uninitialised; gives the address."""
        return self.memory.allocate(size).base

    def upload(self, array: Array) -> int:
        """A new allocation holding `array`'s bytes; gives the address."""
        address = self.allocate(max(1, array.nbytes))
        self.write(address, array)
        return address

    def write(self, address: int, array: Array) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        segment = self.memory.at(address)
        start = address - segment.base
        if start + len(raw) > segment.size:
            raise UserError(
                f"writing {len(raw)} bytes at {address:#x} runs past the end of its allocation",
                "write within what was allocated",
            )
        segment.data[start : start + len(raw)] = raw
        segment.written(start, len(raw))

    def download(self, address: int, dtype: Any, count: int) -> Array:
        """A copy of `count` elements of `dtype` at `address`."""
        segment = self.memory.at(address)
        start, size = address - segment.base, np.dtype(dtype).itemsize * count
        if start + size > segment.size:
            raise UserError(
                f"reading {size} bytes at {address:#x} runs past the end of its allocation",
                "read within what was allocated",
            )
        found: Array = segment.data[start : start + size].view(dtype).copy()
        return found

    def free(self, address: int) -> None:
        self.memory.free(address)


class Loaded:
    """A PTX module on a device. Decoded kernels are kept, so that launching again decodes nothing."""

    def __init__(self, device: Device, module: PtxModule) -> None:
        self.device, self.module = device, module
        self.addresses: dict[str, int] = {}
        self._ready: dict[Any, tuple[Machine, Executor]] = {}
        for n, f in enumerate(module.functions.values()):
            self.addresses[f.name] = CODE_WINDOW + 16 * n
        placed = [v for v in module.variables.values() if v.space in ("global", "const")]
        for v in placed:
            segment = device.memory.allocate(max(1, v.size), v.name, v.align)
            segment.read_only = v.space == "const"
            segment.initialised = True  # PTX: variables without an initialiser are zero
            self.addresses[v.name] = segment.base
        for v in placed:
            self._initialise(v)

    def _initialise(self, v: Variable) -> None:
        if not v.initial:
            return
        t = scalar(v.type)
        data = self.device.memory.at(self.addresses[v.name]).view(t.dtype)
        for n, value in enumerate(v.initial):
            if isinstance(value, AddressByte):
                shift = (value.mask & -value.mask).bit_length() - 1
                value = (self.address_of(value.of) & value.mask) >> shift
            elif isinstance(value, Sym):
                value = self.address_of(value)
            data[n] = value if t.kind == "f" else np.array(int(value) & ((1 << t.bits) - 1), np.uint64).astype(t.dtype)

    def address_of(self, s: Sym) -> int:
        if s.name not in self.addresses:
            raise UserError(
                f"the initialiser of a variable names `{s.name}`, which is neither a variable nor a function",
                "declare it in this module: separate ones are not linked",
            )
        return self.addresses[s.name] + s.offset

    def __del__(self) -> None:
        for machine, _ in self._ready.values():
            machine.retire()

    def kernels(self) -> list[str]:
        return [f.name for f in self.module.functions.values() if f.entry]

    def launch(
        self, kernel: str, grid: int | Sequence[int], block: int | Sequence[int], args: Sequence[Any],
        shared_bytes: int = 0, cluster: int | Sequence[int] | None = None, registers: int | None = None,
        progress: Callable[[int], object] = lambda done: None,
    ) -> Report:  # fmt: skip
        """Runs the kernel to its end. `args`: numbers for scalar parameters, bytes or arrays for aggregates.

        `cluster`: blocks in a cluster, by default what `.reqnctapercluster` says. `registers`: per thread at launch,
        which setmaxnreg starts from, by default what the kernel's directives leave. `progress` is called now and then
        with the number of blocks that have ended."""
        entry = self.module.functions.get(kernel)
        if entry is None or not entry.entry:
            raise UserError(f"no kernel `{kernel}` in this module", f"it has: {', '.join(self.kernels())}")
        g, b = _dim(grid), _dim(block)
        threads = math.prod(b)
        if not 0 < threads <= 1024:
            raise UserError(
                f"a block of {threads} threads: a GPU takes 1 to 1024", "choose a block with so many threads"
            )
        if len(args) != len(entry.params):
            takes = ", ".join(f"{p.name}: {p.type if p.count in (0, 1) else f'{p.size} bytes'}" for p in entry.params)
            raise UserError(f"`{kernel}` takes {len(entry.params)} arguments, {len(args)} were given",
                            f"its parameters are {takes}" if takes else "it has no parameters")  # fmt: skip
        shape = cluster_shape(kernel, entry.directives, cluster, g)
        m, executor = self._prepare(kernel, g, b, shared_bytes, shape, registers)
        for p, a in zip(entry.params, args, strict=True):
            raw = _argument(p, a)
            start = m.program.offsets[p.name]
            m.param.data[start : start + len(raw)] = np.frombuffer(raw, np.uint8)
        report = Report(kernel, g, b)
        m.grid = g
        m.begin(report)
        total = math.prod(g)
        started = time.perf_counter()
        with np.errstate(all="ignore"):
            for first in range(0, total, m.slots):
                executor.run_wave(m.start_wave(first, min(m.slots, total - first)))
                m.finish_wave()
                if m.stopped:
                    break
                progress(min(first + m.slots, total))
        report.seconds = time.perf_counter() - started
        self.device.memory.clock = m.now
        for s in self.device.memory.segments:
            s.settle()
        return report

    def _prepare(
        self, kernel: str, grid: Dim, block: Dim, shared_bytes: int, cluster: Dim | None, registers: int | None
    ) -> tuple[Machine, Executor]:
        threads = -(-math.prod(block) // 32) * 32
        size = math.prod(cluster or (1, 1, 1))
        slots = max(size, min(math.prod(grid), self.device.options.wave_threads // threads) // size * size)
        key = (kernel, block, slots, shared_bytes, self.device.options, cluster, registers)
        found = self._ready.get(key)
        if found is None:
            program = flatten(self.module, self.module.functions[kernel])
            check_instructions(program.code, self.module.target, self.module.version)
            dynamic = [program.offsets[n] for n in program.dynamic_shared]
            shared = max([program.shared_bytes, *dynamic]) + shared_bytes
            if shared > MAX_SHARED:
                raise UserError(
                    f"`{kernel}` needs {shared} bytes of shared memory; a block has {MAX_SHARED}",
                    "let the kernel take less, or give less by --shared",
                )
            m = Machine(self.module, program, analyse(program), self.device.memory, block, shared, slots,
                        self.device.options, self.device.sm, self.addresses, cluster,
                        registers)  # fmt: skip
            found = self._ready[key] = (m, Executor(m))
        return found


def _dim(value: int | Sequence[int]) -> Dim:
    parts = [value] if isinstance(value, int) else list(value)
    x, y, z = ([int(p) for p in parts] + [1, 1, 1])[:3]
    return x, y, z


def _argument(p: Variable, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | np.ndarray):
        raw = bytes(value) if not isinstance(value, np.ndarray) else value.tobytes()
        if len(raw) > p.size:
            raise UserError(
                f"argument `{p.name}` has {len(raw)} bytes, the parameter {p.size}",
                "pass a value of the parameter's size",
            )
        return raw
    t = scalar(p.type)
    if isinstance(value, np.generic) and value.dtype.itemsize == t.size:
        return value.tobytes()
    if t.kind == "f":
        return np.array(value, t.dtype).tobytes()
    if isinstance(value, float) and t.size in (4, 8):
        return np.array(value, f"f{t.size}").tobytes()
    return (int(value) & ((1 << p.size * 8) - 1)).to_bytes(p.size, "little")
