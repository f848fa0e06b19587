"""The parts of lowering that differ between CPUs and GPUs, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tcomp.dsl.ast import Equation, Op, Schedule
from tcomp.dsl.errors import TcError
from tcomp.ir.tile import SERIAL, Buffer, Spread, Statement, ThreadShape
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.cpu_levels import CpuLevels
from tcomp.schedule.default import default_schedule
from tcomp.schedule.default_gpu import default_gpu_schedule
from tcomp.schedule.emit import Emitter
from tcomp.schedule.gpu_levels import GpuLevels, thread_shape
from tcomp.schedule.prefetch import prefetched
from tcomp.schedule.resolve import KernelPlan, LaneLevel, LevelError, LevelRules, LoopMap
from tcomp.schedule.scopes import assign_scopes
from tcomp.schedule.stager import Stager
from tcomp.schedule.staging import Staging
from tcomp.schedule.staging_gpu import SharedStaging
from tcomp.schedule.threads import GpuTiler
from tcomp.schedule.tiling import CpuTiler, Tiler

Machine = CpuMachine | GpuMachine
Phases = list[tuple[Statement, ...]]


class Family(Protocol):
    """`level` is the parallel loop level. `targets` are the schedule targets that apply, most specific first. With
    `private_sums`, an output's sum over tiles is collected in a private tile and written once."""

    level: str
    private_sums: bool
    targets: tuple[str, ...]

    @property
    def rules(self) -> LevelRules: ...

    def prepare(self, plan: KernelPlan, extents: Mapping[str, int], text: str) -> tuple[Tiler, ThreadShape | None]:
        """The tiler of one kernel, and its threads on a GPU."""
        ...

    def stager(self, emitter: Emitter) -> Stager: ...

    def partial_loop(self, index: str) -> LoopMap | None:
        """How the sum over partial results is mapped."""
        ...

    def fill(self, shape: ThreadShape | None) -> Spread | int:
        """How clearing a tensor is spread along its last axis: lanes of a vector, or threads."""
        ...

    def default(self, op: Op, equations: tuple[Equation, ...], extents: dict[str, int]) -> Schedule:
        """The schedule of an op that has none."""
        ...

    def finish(self, tiles: Mapping[str, Buffer], phases: Phases, text: str | None) -> tuple[dict[str, Buffer], Phases]:
        """The kernel's tiles where they live, and its phases. `text` is that of a written schedule."""
        ...


class CpuFamily:
    level = "core"
    private_sums = False

    def __init__(self, machine: CpuMachine, threads: int) -> None:
        self.machine = machine
        self.targets: tuple[str, ...] = (f"cpu.{machine.name}", "cpu")
        self.rules = CpuLevels(machine, threads)

    def prepare(self, plan: KernelPlan, extents: Mapping[str, int], text: str) -> tuple[Tiler, ThreadShape | None]:
        return CpuTiler(plan, self.machine.lanes_f32, self.machine.vector_registers, text), None

    def stager(self, emitter: Emitter) -> Stager:
        return Staging(emitter)

    def partial_loop(self, index: str) -> LoopMap | None:
        return None

    def fill(self, shape: ThreadShape | None) -> Spread | int:
        return self.machine.lanes_f32

    def default(self, op: Op, equations: tuple[Equation, ...], extents: dict[str, int]) -> Schedule:
        return default_schedule(op, equations, extents, "cpu")

    def finish(self, tiles: Mapping[str, Buffer], phases: Phases, text: str | None) -> tuple[dict[str, Buffer], Phases]:
        return dict(tiles), [prefetched(p) for p in phases]


class GpuFamily:
    level = "grid"
    private_sums = True

    def __init__(self, machine: GpuMachine, itemsize: int) -> None:
        family = machine.target.rstrip("af")
        self.targets: tuple[str, ...] = tuple(dict.fromkeys((machine.target, family, "gpu")))
        self.rules = GpuLevels(machine, itemsize)

    def prepare(self, plan: KernelPlan, extents: Mapping[str, int], text: str) -> tuple[Tiler, ThreadShape | None]:
        try:
            shape = thread_shape(plan, extents)
        except LevelError as e:
            raise TcError(e.message, e.span, text, e.hint) from None
        return GpuTiler(plan, shape, text), shape

    def stager(self, emitter: Emitter) -> Stager:
        return SharedStaging(emitter)

    def partial_loop(self, index: str) -> LoopMap | None:
        return LoopMap(index, lane=LaneLevel("x", 0))

    def fill(self, shape: ThreadShape | None) -> Spread | int:
        if shape is None:
            return SERIAL
        warp = "x" if shape.warps_x > 1 else ""
        return Spread(4, "x", shape.lanes_x, warp, shape.warps_x if warp else 1, 4 * shape.lanes_x if warp else 0)

    def default(self, op: Op, equations: tuple[Equation, ...], extents: dict[str, int]) -> Schedule:
        return default_gpu_schedule(op, equations, extents, "gpu")

    def finish(self, tiles: Mapping[str, Buffer], phases: Phases, text: str | None) -> tuple[dict[str, Buffer], Phases]:
        return assign_scopes(tiles, phases, text), phases


def family_for(machine: Machine, threads: int, itemsize: int = 4) -> Family:
    """The family of a machine. `threads` counts a CPU's; `itemsize` is that of the op's narrowest tensor, in bytes."""
    return GpuFamily(machine, itemsize) if isinstance(machine, GpuMachine) else CpuFamily(machine, threads)
