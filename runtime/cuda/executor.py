"""A built step on an NVIDIA GPU: its slots in one allocation, each of its programs one CUDA graph.

Takes a `Step` that was lowered for a `GpuMachine`; the protocol is `tcomp.runtime.executor.Executor`. Everything is
allocated and loaded when the executor is made. Programs, writes of scalars, batches and result reads are only asked
for: the host goes on while the GPU works.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver as cu
from numpy.typing import ArrayLike

from tcomp.amounts import bytes_apart
from tcomp.errors import UserError
from tcomp.machine.gpu import GpuMachine
from tcomp.model.placement import aligned
from tcomp.model.step import Slot, Step
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.device import findings_text
from tcomp.runtime.cuda.driver import CudaError, call
from tcomp.runtime.cuda.gpus import Gpu, check_target, choose, gpus
from tcomp.runtime.cuda.kernels import LoadedKernel, compile_all, load_all
from tcomp.runtime.cuda.programs import BoundLaunch, bind, record
from tcomp.runtime.cuda.transfer import BatchFeed, Results
from tcomp.runtime.executor import Reading, element_count
from tcomp.runtime.values import Array, numpy_type, stored
from tcomp.runtime.vgpu.shim import current


class CudaExecutor:
    """`device` is a GPU's number. `graph`: programs run as graphs; otherwise launch by launch, each waited for, so
    that a fault names its launch. Where the driver is the virtual one, a fault comes with what its checks found."""

    def __init__(
        self,
        step: Step,
        machine: GpuMachine,
        device: int | Gpu = 0,
        graph: bool = True,
        cache_dir: Path | str | None = None,
    ) -> None:
        self._step, self.machine, self._graph = step, machine, graph
        gpu = device if isinstance(device, Gpu) else choose(str(device), gpus())
        check_target(machine.target, gpu)
        compiled = compile_all(step.kernels, machine, cache_dir)
        self.context = Context(gpu)
        self._latest = ""
        self._timers: list[Any] = []
        try:
            spans = {name: k.span for name, k in step.kernels.items()}
            self.kernels: dict[str, LoadedKernel] = load_all(self.context, compiled, machine, cache_dir, spans)
            team = aligned(max((k.team_bytes for k in compiled.values()), default=0))
            self._place(team, max((k.word_bytes for k in compiled.values()), default=0))
            self.programs: dict[str, tuple[BoundLaunch, ...]] = {
                name: bind(step, name, self.kernels, self.arena, (self._team, self._team + team))
                for name in step.programs
            }
            self._graphs: dict[str, Any] = {}
            for name, value in step.scalars.items():
                self.write(name, value)
        except BaseException:
            self.close()
            raise

    def _place(self, team: int, words: int) -> None:
        """Allocate the arena, what blocks share and the input buffers, or say how much is missing. Behind the team
        region lie `words` bytes that are zero between launches."""
        inputs = [self._step.slots[name] for name in self._step.inputs]
        needed = self._step.arena_bytes + team + words + 2 * sum(slot.bytes for slot in inputs)
        free = self.context.free_memory()
        try:
            if needed > free:
                raise CudaError("OUT_OF_MEMORY", "")
            self.arena = self.context.memory(self._step.arena_bytes)
            for offset, size in self._step.zeros():
                call(cu.cuMemsetD8Async, self.arena + offset, 0, size, self.context.compute)
            self._team = self.context.memory(team + words) if team + words else 0
            if words:
                call(cu.cuMemsetD8Async, self._team + team, 0, words, self.context.compute)
            self._feed = BatchFeed(self.context, inputs, self.arena)
            self._results = Results(self.context)
        except CudaError as e:
            if e.name != "OUT_OF_MEMORY":
                raise
            takes, left = bytes_apart(needed, free)
            raise UserError(
                f"the step needs {takes} on GPU {self.context.gpu.index}, {self.context.gpu.name}, where "
                f"{left} are free",
                "end other programs on this GPU, or use a smaller batch, sequence or config",
            ) from e

    @property
    def step(self) -> Step:
        return self._step

    # ------------------------------------------------------------------------------------------- values

    def read(self, name: str) -> Array:
        slot = self._step.slots[name]
        return self.read_part(name, 0, element_count(slot)).reshape(slot.shape)

    def read_part(self, name: str, start: int, stop: int) -> Array:
        return self._read(self._step.slots[name], start, stop)

    @contextmanager
    def region(self, slot: Slot, write: bool) -> Iterator[Array]:
        """The elements of any slot, of the step or not, on the host; with `write` they go back behind it."""
        array = self._read(slot, 0, element_count(slot)).reshape(slot.shape)
        yield array
        if write and array.size:
            with self.faults():
                self._copy_in(self.arena + slot.offset, array)

    def _read(self, slot: Slot, start: int, stop: int) -> Array:
        out = np.empty(max(0, stop - start), numpy_type(slot.dtype))
        if out.size:
            address = self.arena + slot.offset + start * slot.dtype.bytes
            with self.faults():
                call(cu.cuMemcpyDtoHAsync, out.ctypes.data, address, out.nbytes, self.context.compute)
                self.context.finish(self.context.compute)
        return out

    def write(self, name: str, value: ArrayLike) -> None:
        slot = self._step.slots[name]
        array = np.broadcast_to(stored(value, slot.dtype), slot.shape)
        address = self.arena + slot.offset
        with self.faults():
            if array.nbytes == 4:  # the value travels with the command: nothing to wait for
                (bits,) = struct.unpack("<I", array.tobytes())
                call(cu.cuMemsetD32Async, address, bits, 1, self.context.compute)
            elif array.size:
                self._copy_in(address, np.ascontiguousarray(array))

    @contextmanager
    def fill(self, name: str) -> Iterator[Array]:
        slot = self._step.slots[name]
        array = np.empty(slot.shape, numpy_type(slot.dtype))
        yield array
        if array.size:
            with self.faults():
                self._copy_in(self.arena + slot.offset, array)

    def _copy_in(self, address: int, array: Array) -> None:
        call(cu.cuMemcpyHtoDAsync, address, array.ctypes.data, array.nbytes, self.context.compute)
        self.context.finish(self.context.compute)

    @contextmanager
    def batch(self) -> Iterator[dict[str, Array]]:
        with self.faults(), self._feed.next() as arrays:
            yield arrays

    def fetch(self, name: str) -> Reading:
        slot = self._step.slots[name]
        with self.faults():
            reading = self._results.fetch(self.arena + slot.offset, numpy_type(slot.dtype), slot.shape)
        return _GuardedReading(reading, self.faults)

    # --------------------------------------------------------------------------------------------- runs

    def run_step(self, program: str) -> None:
        """Ask for a program and the update."""
        self.run(program)
        self.run("update")

    def run(self, program: str) -> None:
        """Ask for one of the step's programs."""
        self._latest = program
        if not self._graph:
            for launch in self.programs[program]:
                with self.faults(launch.label):
                    launch.submit(self.context.compute)
                    self.context.finish(self.context.compute)
            return
        with self.faults():
            if program not in self._graphs and self.programs[program]:
                self._graphs[program] = record(self.context, self.programs[program])
            if program in self._graphs:
                call(cu.cuGraphLaunch, self._graphs[program], self.context.compute)

    def profile(self, program: str) -> list[tuple[str, float]]:
        """Run a program launch by launch; each one's label and milliseconds, between events around it."""
        launches = self.programs[program]
        while len(self._timers) <= len(launches):
            self._timers.append(self.context.event(timing=True))
        events = self._timers[: len(launches) + 1]
        self._latest = program
        with self.faults():
            call(cu.cuEventRecord, events[0], self.context.compute)
            for launch, event in zip(launches, events[1:], strict=True):
                launch.submit(self.context.compute)
                call(cu.cuEventRecord, event, self.context.compute)
            call(cu.cuStreamSynchronize, self.context.compute)
            times = [float(call(cu.cuEventElapsedTime, a, b)) for a, b in pairwise(events)]
        return [(launch.label, ms) for launch, ms in zip(launches, times, strict=True)]

    def timer(self) -> tuple[Any, Any]:
        """Two events that keep time."""
        while len(self._timers) < 2:
            self._timers.append(self.context.event(timing=True))
        return self._timers[0], self._timers[1]

    def wait(self) -> None:
        with self.faults():
            self.context.wait()

    def close(self) -> None:
        """Wait for the GPU and give everything back."""
        self.context.close()

    @contextmanager
    def faults(self, launch: str = "") -> Iterator[None]:
        """A kernel's fault, wherever the driver reports it, as an error that says which kernel."""
        try:
            yield
        except CudaError as e:
            if not e.sticky:
                raise
            where = f"in {launch}" if launch else f"in a launch of program {self._latest!r}, or of one before it"
            told = findings_text(current())
            advice = "" if launch or told else "run it again with --no-graph, which names the launch"
            message = f"a kernel failed {where}: {e.message}"
            raise CudaError(e.name, f"{message}\n{told}".rstrip(), advice) from e


class _GuardedReading:
    """A reading whose failure is reported as the executor's other failures are."""

    def __init__(self, reading: Reading, faults: Callable[[], AbstractContextManager[None]]) -> None:
        self._reading, self.faults = reading, faults

    @property
    def ready(self) -> bool:
        with self.faults():
            return self._reading.ready

    def value(self) -> Array:
        with self.faults():
            return self._reading.value()
