"""The parts of lowering that differ between CPUs and GPUs, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from tcomp.dsl.ast import Equation, Op, Schedule
from tcomp.instructions import INSTRUCTIONS, WHOLE
from tcomp.instructions.matching import Match, match
from tcomp.instructions.vector_matching import match_vector
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import SERIAL, Buffer, Compute, Kernel, Spread, Statement
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.default import default_schedule
from tcomp.schedule.default_gpu import default_gpu_schedule
from tcomp.schedule.gpu.blocks import check_blocks
from tcomp.schedule.gpu.late_copies import late_copies
from tcomp.schedule.gpu.late_loads import late_loads
from tcomp.schedule.gpu.levels import GpuLevels, padded_extents, thread_shape
from tcomp.schedule.gpu.overlap import check_overlap
from tcomp.schedule.gpu.promotion import check_promotion
from tcomp.schedule.gpu.registers import check_registers
from tcomp.schedule.gpu.result_panels import in_panels
from tcomp.schedule.gpu.row_groups import in_row_groups
from tcomp.schedule.gpu.scopes import assign_scopes
from tcomp.schedule.gpu.sum_panels import sums_in_panels
from tcomp.schedule.gpu.threads import GpuTiler
from tcomp.schedule.instructions import alone_in_their_loops, check_instructions
from tcomp.schedule.kernel_plan import KernelPlan, LaneLevel, LoopMap
from tcomp.schedule.resolve import LevelRules
from tcomp.schedule.staging.ahead import packed_ahead
from tcomp.schedule.staging.copy_engine import check_copy_engine
from tcomp.schedule.staging.operand_packs import with_rounded_operands
from tcomp.schedule.staging.operand_tiles import laid_out
from tcomp.schedule.staging.packed import Staging
from tcomp.schedule.staging.prefetch import check_fetched, prefetched
from tcomp.schedule.staging.shared import SharedStaging
from tcomp.schedule.staging.stager import Stager
from tcomp.schedule.staging.tensor_copies import check_tensor_copies
from tcomp.schedule.tree.cpu_levels import CpuLevels
from tcomp.schedule.tree.emit import Emitter
from tcomp.schedule.tree.epilogue import with_epilogues
from tcomp.schedule.tree.tiling import CpuTiler, Tiler

Machine = CpuMachine | GpuMachine
Phases = list[tuple[Statement, ...]]
Pairs = frozenset[tuple[str, str]]


class Family(Protocol):
    """`level` is the parallel loop level. `targets` are the schedule targets that apply, most specific first. With
    `private_sums`, every output's sum over tiles is collected in a private tile and written once, not only a narrow
    one's. With `partial_tiles`, code leaves out the parts of tiles that nobody needs."""

    level: str
    private_sums: bool
    partial_tiles: bool
    targets: tuple[str, ...]

    @property
    def rules(self) -> LevelRules: ...

    def prepare(self, plan: KernelPlan, extents: Mapping[str, int]) -> tuple[Tiler, ThreadShape | None]:
        """The tiler of one kernel, and its threads on a GPU."""
        ...

    def shape(self, plan: KernelPlan, extents: Mapping[str, int]) -> ThreadShape:
        """The threads of a kernel's blocks; one on a CPU."""
        ...

    def room(self, plan: KernelPlan, extents: Mapping[str, int], itemsize: int) -> Mapping[str, int]:
        """The extents that tiles of each index have room for: at least the index's own. `itemsize` is that of the
        narrowest tensor or temporary."""
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

    def finish(
        self,
        tiles: Mapping[str, Buffer],
        phases: Phases,
        plan: KernelPlan,
        shape: ThreadShape | None,
        inplace: Pairs,
        written: bool,
    ) -> tuple[dict[str, Buffer], Phases]:
        """The kernel's tiles where they live, and its phases. `shape` is that of a GPU's blocks, `inplace` are outputs
        that may share memory with inputs; `written`: the schedule is no default one."""
        ...

    def check(self, kernel: Kernel, plan: KernelPlan) -> None:
        """TcError where the machine cannot do what the finished kernel asks for, or not as its schedule says."""
        ...


class CpuFamily:
    """`threads` divide `core` loops among them; tiles are packed in scratch, register tiles are vectors."""

    level = "core"
    private_sums = False
    partial_tiles = True

    def __init__(self, machine: CpuMachine, threads: int, itemsize: int = 4) -> None:
        self.machine = machine
        self.targets = machine.targets
        self.rules = CpuLevels(machine, threads, itemsize)

    def prepare(self, plan: KernelPlan, extents: Mapping[str, int]) -> tuple[Tiler, ThreadShape | None]:
        return CpuTiler(plan, self.machine.lanes_f32, self.machine.vector_registers), None

    def room(self, plan: KernelPlan, extents: Mapping[str, int], itemsize: int) -> Mapping[str, int]:
        return extents

    def shape(self, plan: KernelPlan, extents: Mapping[str, int]) -> ThreadShape:
        return ThreadShape(lanes_x=1)

    def stager(self, emitter: Emitter) -> Stager:
        return Staging(emitter)

    def partial_loop(self, index: str) -> LoopMap | None:
        return None

    def fill(self, shape: ThreadShape | None) -> Spread | int:
        return self.machine.lanes_f32

    def default(self, op: Op, equations: tuple[Equation, ...], extents: dict[str, int]) -> Schedule:
        return default_schedule(op, equations, extents)

    def finish(
        self,
        tiles: Mapping[str, Buffer],
        phases: Phases,
        plan: KernelPlan,
        shape: ThreadShape | None,
        inplace: Pairs,
        written: bool,
    ) -> tuple[dict[str, Buffer], Phases]:
        tiles, phases = packed_ahead(tiles, phases, self.machine.lanes_f32)
        check_fetched(phases, plan.stages)
        every, phases = with_rounded_operands(tiles, phases)
        return every, with_epilogues([prefetched(p, plan.stages) for p in phases], every, inplace)

    def check(self, kernel: Kernel, plan: KernelPlan) -> None:
        tiles = {i: [t.block for t in m.tiles if t.block is not None] for i, m in plan.loops.items()}
        staged = frozenset(n.partition(".")[0] for s in plan.stages if s.space == "packed" for n in s.tensors)
        match = partial(match_vector, target=self.targets[0], tiles=tiles, staged=staged)
        check_instructions(kernel, plan, match)


class GpuFamily:
    """Blocks take `grid` loops; tiles are in shared memory or spread over a block's threads."""

    level = "grid"
    private_sums = True
    partial_tiles = False

    def __init__(self, machine: GpuMachine, itemsize: int, early: bool) -> None:
        self.machine = machine
        self.targets: tuple[str, ...] = machine.targets
        self.rules = GpuLevels(machine, itemsize, early)

    def prepare(self, plan: KernelPlan, extents: Mapping[str, int]) -> tuple[Tiler, ThreadShape | None]:
        check_copy_engine(plan, self.machine)
        shape = self.shape(plan, extents)
        return GpuTiler(plan, shape), shape

    def shape(self, plan: KernelPlan, extents: Mapping[str, int]) -> ThreadShape:
        return thread_shape(plan, extents)

    def room(self, plan: KernelPlan, extents: Mapping[str, int], itemsize: int) -> Mapping[str, int]:
        return padded_extents(plan, extents, itemsize)

    def stager(self, emitter: Emitter) -> Stager:
        return SharedStaging(emitter)

    def partial_loop(self, index: str) -> LoopMap | None:
        return LoopMap(index, lane=LaneLevel("x", 0))

    def fill(self, shape: ThreadShape | None) -> Spread | int:
        if shape is None:
            return SERIAL
        warp, warps = ("x", shape.warps_x) if shape.warps_x > 1 else ("y", shape.warps_y)
        return Spread(4, "x", shape.lanes_x, *((warp, warps, 4 * shape.lanes_x) if warps > 1 else ()))

    def default(self, op: Op, equations: tuple[Equation, ...], extents: dict[str, int]) -> Schedule:
        return default_gpu_schedule(op, equations, extents)

    def finish(
        self,
        tiles: Mapping[str, Buffer],
        phases: Phases,
        plan: KernelPlan,
        shape: ThreadShape | None,
        inplace: Pairs,
        written: bool,
    ) -> tuple[dict[str, Buffer], Phases]:
        laid, phases = laid_out(assign_scopes(tiles, phases, written), phases)
        laid, phases = in_row_groups(laid, late_loads(laid, phases))
        every, phases = in_panels(laid, phases, shape, self.machine.shared_per_block, plan.flags.sides)
        every, phases = sums_in_panels(every, phases)
        stay = plan.flags.producer is not None and plan.flags.order.persistent
        return every, late_copies(phases) if stay else phases

    def check(self, kernel: Kernel, plan: KernelPlan) -> None:
        alone = alone_in_their_loops(kernel)

        def matching(c: Compute, buffers: Mapping[str, Buffer]) -> Match:
            return match(c, buffers, self.machine.target, WHOLE if id(c) in alone else INSTRUCTIONS)

        check_tensor_copies(kernel, self.machine)
        check_instructions(kernel, plan, matching)
        check_overlap(kernel, plan, self.machine.target)
        check_promotion(kernel, plan)
        check_blocks(kernel, plan, self.machine)
        check_registers(kernel, plan, self.machine)


def family_for(machine: Machine, threads: int, itemsize: int = 4, early: bool = False) -> Family:
    """The family of a machine. `threads` counts a CPU's; `itemsize` is that of the op's narrowest tensor, in bytes;
    `early` says whether the op computes an equation of the op behind it (`grad/early.py`)."""
    if isinstance(machine, GpuMachine):
        return GpuFamily(machine, itemsize, early)
    return CpuFamily(machine, threads, itemsize)
