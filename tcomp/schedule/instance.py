"""An op instance and its schedule: what the lowering of each of its kernels reads."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import Equation, Module, Op, Schedule
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Buffer, Scope
from tcomp.schedule.family import Family
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.symbols import Symbols


@dataclass(frozen=True)
class Instance:
    """An op at fixed dimensions on a machine's `family`. `temporaries` are the tensors that are no operands of it;
    `equations` have numbers for dimensions. `given`: the schedule is a written one. `threads` counts a CPU's. With
    `deterministic`, what depends on the order in which blocks run is refused. A kernel may add symbols of its own."""

    op: Op
    module: Module
    family: Family
    symbols: Symbols
    temporaries: frozenset[str]
    equations: tuple[Equation, ...]
    schedule: Schedule
    given: bool
    threads: int
    deterministic: bool

    @property
    def outputs(self) -> frozenset[str]:
        """What the op gives, or updates in place."""
        return frozenset(o.name for o in self.op.written)

    def shape(self, plan: KernelPlan) -> ThreadShape:
        """The threads of a kernel's blocks."""
        return self.family.shape(plan, self.symbols.extents)

    def operand(self, name: str) -> Buffer:
        """A tensor of the op in memory, or a workspace."""
        return Buffer(name, self.symbols.dtypes[name], self.symbols.shapes[name], Scope.OPERAND)
