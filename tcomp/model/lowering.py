"""Nodes -> launches: each distinct op instance is lowered once, then used by every layer.

Two nodes share kernels when their op text and dimensions are equal. A launch names its kernel and gives a
view for each of the kernel's operands; offsets come later, from the plan. Workspaces (op temporaries that
live from one kernel to a later one of the same node) become tensors of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from tcomp.dsl.ast import Module, Op
from tcomp.ir.tile import Buffer, Kernel
from tcomp.model.graph import Node, Tensor, View


class Lowered(Protocol):
    """What the schedule's lowering gives for an op (`tcomp.schedule.lower.LoweredOp`)."""

    @property
    def kernels(self) -> tuple[Kernel, ...]: ...

    @property
    def workspaces(self) -> tuple[Buffer, ...]: ...


Lower = Callable[[Op, Module, dict[str, int]], Lowered]
"""(op, module, dims) -> kernels and workspaces, for a machine and a number of threads already chosen"""


@dataclass(frozen=True, slots=True)
class PlannedLaunch:
    """A launch whose tensors have no addresses yet. `views` follow the kernel's operands."""

    key: str
    kernel: Kernel
    views: tuple[View, ...]
    label: str


@dataclass
class Lowering:
    """Lowers nodes, remembering what it has lowered. `kernels` are all distinct kernels so far; `found` is told of each
    new one."""

    module: Module
    lower: Lower
    found: Callable[[Kernel], None] | None = None
    kernels: dict[str, Kernel] = field(default_factory=dict)
    lowered: dict[tuple[int, tuple[int | str, ...]], tuple[tuple[str, ...], tuple[Buffer, ...]]] = field(
        default_factory=dict
    )
    canonical: dict[Op, Op] = field(default_factory=dict)
    same: dict[int, tuple[Op, Op]] = field(default_factory=dict)
    workspaces: int = 0

    def launches(self, nodes: Iterable[Node]) -> tuple[PlannedLaunch, ...]:
        """The launches of the nodes, in order."""
        return tuple(launch for n in nodes for launch in self.node(n))

    def node(self, node: Node) -> list[PlannedLaunch]:
        keys, workspaces = self.instance(node)
        views = dict(node.operands)
        for w in workspaces:
            tensor = Tensor(f"work.{self.workspaces}.{w.name}", w.dtype, w.shape, "workspace", node.label)
            self.workspaces += 1
            views[w.name] = tensor.whole()
        launches = []
        for key in keys:
            kernel = self.kernels[key]
            label = node.label
            if len(keys) > 1:
                label += f" [{', '.join(o.name for o in kernel.operands if o.name in kernel.writes)}]"
            operands = tuple(views[o.name] for o in kernel.operands)
            for o, v in zip(kernel.operands, operands, strict=True):
                assert o.dtype is v.tensor.dtype, f"{label}: '{o.name}' is {o.dtype}, {v.tensor.name} {v.tensor.dtype}"
            launches.append(PlannedLaunch(key, kernel, operands, label))
        return launches

    def instance(self, node: Node) -> tuple[tuple[str, ...], tuple[Buffer, ...]]:
        """The kernel keys and workspaces of the node's op at its dimensions."""
        op = self.unified(node.op)
        at = id(op), tuple(x for item in node.dims.items() for x in item)
        if at not in self.lowered:
            result = self.lower(op, self.module, node.dims)
            keys = tuple(self.add(k) for k in result.kernels)
            self.lowered[at] = keys, tuple(result.workspaces)
        return self.lowered[at]

    def unified(self, op: Op) -> Op:
        """One object for all equal ops: comparing whole trees once, not once per layer."""
        if id(op) not in self.same:
            self.same[id(op)] = op, self.canonical.setdefault(op, op)  # keeps `op`, so its id stays its own
        return self.same[id(op)][1]

    def add(self, kernel: Kernel) -> str:
        """Store a kernel under a name of its own; an equal kernel is not stored twice."""
        base, n = kernel.name, 1
        while kernel.name in self.kernels:
            if self.kernels[kernel.name] == kernel:
                return kernel.name
            n += 1
            kernel = replace(kernel, name=f"{base}.{n}")
        self.kernels[kernel.name] = kernel
        if self.found is not None:
            self.found(kernel)
        return kernel.name
