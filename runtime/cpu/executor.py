"""A built step on the CPU: its kernels as machine code, its slots in one arena, its programs on a team.

Takes a `Step`, gives arrays by slot name and programs run by name. All memory is mapped when the executor is
made, and present when the first run begins; a run allocates nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tcomp.codegen.cpu.cache import Compilers, cached_object, compile_kernels
from tcomp.codegen.cpu.compiled import CompiledKernel
from tcomp.errors import UserError
from tcomp.machine.cpu import CpuMachine, helpers_of
from tcomp.model.step import Slot, Step
from tcomp.runtime.cpu.interpreter import SYMBOL, compile_interpreter, interpreter_ir, rest_address
from tcomp.runtime.cpu.library_pages import release_pages
from tcomp.runtime.cpu.loading import Loader
from tcomp.runtime.cpu.memory import Region
from tcomp.runtime.cpu.native_steps import NativeSteps
from tcomp.runtime.cpu.team import Native, NativeProgram, Team, native_program
from tcomp.runtime.executor import HostExecutor, element_count
from tcomp.runtime.values import numpy_type

MEETING = Native(0, (), parts=1)
"""A launch of no part of anything: a barrier alone"""


class CpuExecutor(HostExecutor):
    """Compiles or loads `step.kernels`, maps the arena, starts `threads` threads. `compilers` may have begun before.

    ValueError where kernels have no room for the shares of so few threads (`Step.threads`).
    """

    def __init__(
        self,
        step: Step,
        machine: CpuMachine,
        threads: int,
        cache_dir: Path | str | None = None,
        compilers: Compilers | None = None,
    ) -> None:
        if threads < 1:
            raise UserError(f"cannot run on {threads} threads", "use one thread or more")
        left = threads - helpers_of(threads)
        if left < step.threads:
            raise ValueError(f"kernels have room for the shares of {step.threads} threads, not of {left} of {threads}")
        self._step = step
        self.threads = threads
        self._machine, self._cache_dir = machine, cache_dir
        names = list(step.kernels)
        kernels = [step.kernels[n] for n in names]
        compiled = compilers.finish(kernels) if compilers else compile_kernels(kernels, machine, cache_dir)
        self.kernels: dict[str, CompiledKernel] = dict(zip(names, compiled, strict=True))
        scratch = max((k.scratch_bytes for k in self.kernels.values()), default=0)
        region = max((k.team_bytes for k in self.kernels.values()), default=0)
        # Threads' scratch on pages of their own, and not a power of two apart.
        self._stride = -(-max(scratch, 1) // 4096) * 4096 + 4096
        self._scratch = Region(self._stride * threads, "scratch")
        self._region = Region(region, "team region")
        self._team: Team | None = None
        self._whole: NativeSteps | None = None
        self._pending = False  # the last update has left work
        self._arena = Region(step.arena_bytes, "arena", ahead=True)
        # Loading comes before pages: it maps memory again and again, and would wait for pages each time.
        self._arena.begin(self._load_programs)
        self._touched: list[Slot] | None = []  # what may not be as it was mapped; None: anything
        for name, value in step.scalars.items():
            self.array(name)[...] = value

    @property
    def step(self) -> Step:
        return self._step

    def array(self, name: str) -> NDArray[Any]:
        """The slot's memory as an array of its shape (not a copy)."""
        return self._memory(self._step.slots[name])

    @contextmanager
    def region(self, slot: Slot, write: bool) -> Iterator[NDArray[Any]]:
        """The memory of any slot, of the step or not, in its shape."""
        yield self._memory(slot)

    def _memory(self, slot: Slot) -> NDArray[Any]:
        if self._touched is not None:
            self._touched.append(slot)
        if self._pending and self._whole is not None:
            first, last = slot.offset, slot.offset + slot.bytes
            if any(first < end and start < last for start, end in self._whole.steps.held):
                self._settle()
        flat: NDArray[Any] = np.frombuffer(
            self._arena.buffer, dtype=numpy_type(slot.dtype), count=element_count(slot), offset=slot.offset
        )
        return flat.reshape(slot.shape)

    def write(self, name: str, value: ArrayLike) -> None:
        """As elsewhere, but a 0 before anything else was written there is there already: fresh memory holds zeros."""
        if not (type(value) is int and value == 0 and self._untouched(self._step.slots[name])):
            super().write(name, value)

    def _untouched(self, slot: Slot) -> bool:
        end = slot.offset + slot.bytes
        return self._touched is not None and not any(
            slot.offset < t.offset + t.bytes and t.offset < end for t in self._touched
        )

    def run(self, program: str) -> None:
        """Run one of the step's programs to its end."""
        team = self._ready()
        if self._pending and self._whole is not None and program.startswith("micro"):
            self._behind(team, self._whole.native(program, True, False))
            return
        self._settle()
        team.run(self._programs[program])

    def run_step(self, program: str) -> None:
        """As elsewhere. What memory binds of the update is left to the next run, where there is a thread for it."""
        team = self._ready()
        if self._whole is None:
            sizes = {name: k.team_bytes for name, k in self.kernels.items()}
            self._whole = NativeSteps(self._step, self._arena, self._addresses, sizes)
        self._behind(team, self._whole.native(program, self._pending, True), update=True)
        if self.threads == 1 or not team.spread:
            self._settle()

    def wait(self) -> None:
        """Return when the last update is done, too."""
        self._settle()

    def _settle(self) -> None:
        """Do what the last update has left."""
        if self._pending and self._whole is not None:
            self._behind(self._ready(), self._whole.rest)

    def _behind(self, team: Team, program: NativeProgram, update: bool = False) -> None:
        """Run a program that does what was left, and with an `update` leaves some again. (An interrupt is raised behind
        it, or before any of it; what is left is known in either case.)"""
        before = team.finished
        try:
            team.run(program)
        finally:
            if team.finished != before:
                if update and self._whole is not None:
                    self._whole.copy_scalars()
                self._pending = update

    def profile(self, program: str) -> list[tuple[str, float]]:
        """Run a program and give each phase's label and its share of the cycle counter's ticks. The threads meet before
        the first, which would wait for them to wake."""
        team = self._ready()
        self._settle()
        launches = native_program([MEETING, *self._entries(program)])
        times = (ctypes.c_int64 * (launches.count + 1))()
        team.run(launches, ctypes.addressof(times))
        ticks = np.diff(np.array(times[1:], dtype=np.int64))
        return [(label, float(t)) for label, t in zip(self._phase_labels(program), ticks, strict=True)]

    def close(self) -> None:
        """End the threads. Arrays given out stay valid as long as they are referenced."""
        self._arena.stop()
        if self._team is not None:
            self._team.close()

    def _ready(self) -> Team:
        """The team, once programs are loaded and memory is there. The arena is as programs leave it from then on."""
        self._touched = None
        self._arena.complete()
        assert self._team is not None
        return self._team

    # ----------------------------------------------------------------------------------------- loading

    def _load_programs(self) -> None:
        """Kernels as functions, programs that name them, and the team that runs them."""
        self._loader = Loader()
        text = interpreter_ir(self._machine)
        code = cached_object(text, self._machine, self._cache_dir, compile_interpreter)
        run = self._loader.load(code, (SYMBOL,))
        self._programs = self._link(self._load_kernels())
        if self._step.parameters:  # a model's; of ops by themselves a process compiles and runs one after the other
            release_pages(str(llvm.ffi.lib._name))
        self._team = Team(
            run[SYMBOL],
            rest_address(self._machine),
            self.threads,
            self._arena.address,
            [self._scratch.address + self._stride * t for t in range(self.threads)],
            self._region.address,
        )

    def _load_kernels(self) -> dict[str, tuple[int, ...]]:
        """Addresses of each kernel's phases; kernels of the same content are loaded once."""
        loaded: dict[tuple[str, ...], tuple[int, ...]] = {}
        for k in self.kernels.values():
            if k.symbols not in loaded:
                found = self._loader.load(k.object, k.symbols)
                loaded[k.symbols] = tuple(found[s] for s in k.symbols)
        return {name: loaded[k.symbols] for name, k in self.kernels.items()}

    def _link(self, addresses: dict[str, tuple[int, ...]]) -> dict[str, NativeProgram]:
        self._addresses = addresses
        return {name: native_program(self._entries(name)) for name in self._step.programs}

    def _entries(self, program: str) -> list[Native]:
        """A program's phases, one behind the other."""
        return [Native(at, x.offsets) for x in self._step.programs[program] for at in self._addresses[x.kernel]]

    def _phase_labels(self, program: str) -> list[str]:
        labels = []
        for launch in self._step.programs[program]:
            phases = len(self.kernels[launch.kernel].symbols)
            labels += [launch.label if phases == 1 else f"{launch.label} ({i + 1}/{phases})" for i in range(phases)]
        return labels
