"""A step before its memory is placed: graph -> programs -> launches, and the bytes that any placement needs.

Cheap enough to be made many times with different results computed again (`tcomp.model.budget`): ops are derived and
lowered once for all drafts of a drafter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tcomp.dsl.ast import Module
from tcomp.ir.regions import SHARED, region_bytes
from tcomp.ir.tile import Kernel, Scope
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine
from tcomp.model.arena import Arena
from tcomp.model.autodiff import Variants
from tcomp.model.cost import predicted_seconds
from tcomp.model.gradient_room import Piece, fixed, gradient_pieces
from tcomp.model.graph import Graph
from tcomp.model.lowering import Lowering, PlannedLaunch
from tcomp.model.placement import Fixed
from tcomp.model.plan import most_live
from tcomp.model.programs import Programs, build_programs


@dataclass(frozen=True)
class Draft:
    """`launches` by program; those of a micro-batch at the positions `forward` are its forward pass alone. `pieces` are
    of the gradients' memory, where activations may lie in it. `scratch` is per thread."""

    graph: Graph
    programs: Programs
    launches: dict[str, tuple[PlannedLaunch, ...]]
    forward: tuple[int, ...]
    arena: Arena
    kernels: dict[str, Kernel]
    scratch: int
    team: int
    threads: int
    pieces: tuple[Piece, ...] = ()

    @property
    def beside(self) -> int:
        """Bytes that are not the arena: scratch and what threads share."""
        return self.scratch * self.threads + self.team

    @cached_property
    def least(self) -> int:
        """Bytes of all memory of the step when nothing is lost in placement."""
        persistent = self.arena.address.keys()
        live = (most_live(ls, persistent, self.fixed(name)) for name, ls in self.launches.items())
        return self.arena.bytes + max(live) + self.beside

    @cached_property
    def temporary(self) -> int:
        """The most bytes live at once that are not persistent, wherever they lie."""
        persistent = self.arena.address.keys()
        return max(most_live(ls, persistent) for ls in self.launches.values())

    def fixed(self, program: str) -> tuple[Fixed, ...]:
        """What a program's temporary tensors are placed around."""
        return fixed(self.pieces, len(self.launches[program])) if program == "micro_first" else ()

    @property
    def main(self) -> tuple[PlannedLaunch, ...]:
        """The launches of a first micro-batch (or of inference)."""
        return self.launches.get("micro_first", self.launches.get("forward", ()))


@dataclass
class Drafter:
    """Makes drafts of one model's graphs."""

    module: Module
    machine: CpuMachine | GpuMachine
    threads: int
    lowering: Lowering
    training: bool = True
    accumulation: int = 1
    keep_logits: bool = False
    prefill: Graph | None = None
    """another program of a decoding step, beside the graph that is drafted"""
    variants: Variants = field(init=False)

    def __post_init__(self) -> None:
        self.variants = Variants(self.module)

    def draft(self, graph: Graph) -> Draft:
        """The step of a graph, not yet placed."""
        p = build_programs(
            graph, self.module, self.training, self.accumulation, self.variants, targets=self.machine.targets
        )
        by_node = [(n, self.lowering.node(n)) for n in p.forward]
        forward = tuple(x for _, ls in by_node for x in ls)
        in_backward = [n in p.ahead for n, ls in by_node for _ in ls]
        launches: dict[str, tuple[PlannedLaunch, ...]] = {}
        if self.training:
            launches["micro_first"] = forward + self.lowering.launches(p.backward)
            if self.accumulation > 1:
                launches["micro_next"] = self.lowering.launches((*p.forward_next, *p.backward_next))
            if p.update is not None:
                launches["update"] = self.lowering.launches(p.update.nodes)
        else:
            launches["forward"] = forward
        arena = Arena(p, self.keep_logits or not self.training, 1.0 / self.accumulation)
        if self.prefill is not None:
            launches["prefill"] = self.lowering.launches(self.prefill.nodes)
            arena.join(self.prefill, "prefill")
        kernels = {x.key: x.kernel for ls in launches.values() for x in ls}
        scratch = region_bytes(kernels.values(), Scope.SCRATCH)
        team = region_bytes(kernels.values(), *SHARED)
        alone = tuple(i for i, passed in enumerate(in_backward) if not passed)
        pieces = tuple(gradient_pieces(p, launches.get("micro_first", ()), alone))
        return Draft(graph, p, launches, alone, arena, kernels, scratch, team, self.threads, pieces)

    def seconds(self, launches: Sequence[PlannedLaunch]) -> float:
        """Predicted time of the launches."""
        return predicted_seconds((x.kernel for x in launches), self.machine, self.threads)
