"""A step before its memory is placed: graph -> programs -> launches, and the bytes that any placement needs.

Cheap enough to be made many times with different results computed again (`tcomp.model.budget`): ops are derived and
lowered once for all drafts of a drafter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tcomp.dsl.ast import Module
from tcomp.dsl.errors import quoting
from tcomp.dsl.hints import count
from tcomp.ir.regions import SHARED, largest_region, region_bytes
from tcomp.ir.tile import Kernel, Scope
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import GpuMachine
from tcomp.model.arena import Arena
from tcomp.model.autodiff import Variants
from tcomp.model.batches import in_batches
from tcomp.model.cost import predicted_seconds
from tcomp.model.gradient_room import Piece, fixed, gradient_pieces
from tcomp.model.graph import Graph
from tcomp.model.lowering import Lowering, PlannedLaunch
from tcomp.model.placement import Fixed
from tcomp.model.plan import most_live
from tcomp.model.programs import Programs, build_programs
from tcomp.model.request import Sharing
from tcomp.model.spaced import in_spaced_parts
from tcomp.model.step import SHARED_BY_RANKS


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

    def parts_beside(self) -> tuple[tuple[int, str], ...]:
        """The same in parts: bytes, and what takes them."""
        kernels = list(self.kernels.values())
        scratch, team = largest_region(kernels, Scope.SCRATCH), largest_region(kernels, *SHARED)
        own = f"scratch of {scratch}, {count(self.threads, 'thread')}"
        return (self.scratch * self.threads, own), (self.team, f"shared by the threads or blocks of {team}")

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
    sharing: Sharing = Sharing()
    variants: Variants = field(init=False)

    def __post_init__(self) -> None:
        self.variants = Variants(self.module)

    @property
    def room(self) -> int:
        """Threads of a GPU's blocks that fill it, once and as often again behind; 0 of a CPU."""
        return 2 * self.machine.sms * self.machine.threads_per_sm if isinstance(self.machine, GpuMachine) else 0

    def draft(self, graph: Graph) -> Draft:
        """The step of a graph, not yet placed."""
        p = build_programs(
            graph,
            self.module,
            self.training,
            self.accumulation,
            self.variants,
            targets=self.machine.targets,
            sharing=self.sharing,
        )
        nodes = {"micro_first" if self.training else "forward": (*p.forward, *p.backward)}
        if p.backward_next:
            nodes["micro_next"] = (*p.forward_next, *p.backward_next)
        if p.update is not None:
            nodes["update"] = p.update.nodes
            if p.update.sums:
                nodes["norm"] = p.update.sums
        if p.joins is not None:
            nodes["sum"] = p.joins.nodes
        with quoting(self.module.sources):
            arena = Arena(p, self.keep_logits or not self.training, 1.0 / (self.accumulation * self.sharing.ranks))
        if self.prefill is not None:
            nodes["prefill"] = self.prefill.nodes
            arena.join(self.prefill, "prefill")
        by_itself = frozenset(p.forward) - p.ahead
        if isinstance(self.machine, GpuMachine):
            own = [name for name in nodes if name == "update" or name not in SHARED_BY_RANKS]
            spaced = {name: in_spaced_parts(nodes[name], by_itself) for name in own}
            nodes |= {name: ns for name, (ns, _) in spaced.items()}
            by_itself = by_itself.union(*(kept for _, kept in spaced.values()))
        launches: dict[str, tuple[PlannedLaunch, ...]] = {}
        alone: dict[str, tuple[bool, ...]] = {}
        for name, ns in nodes.items():
            by_node = [(n, self.lowering.node(n)) for n in ns]
            flags = [n in by_itself for n, ls in by_node for _ in ls]
            one_by_one = [x for _, ls in by_node for x in ls]
            if self.sharing.ranks > 1 and name in SHARED_BY_RANKS:  # ranks' shares of vectors keep their launches
                launches[name] = tuple(one_by_one)
                continue
            launches[name], alone[name] = in_batches(
                one_by_one, flags, arena.address.keys(), self.room, self.lowering.add
            )
        kernels = {x.key: x.kernel for ls in launches.values() for x in ls}
        scratch = region_bytes(kernels.values(), Scope.SCRATCH)
        team = region_bytes(kernels.values(), *SHARED)
        forward = tuple(i for i, passed in enumerate(next(iter(alone.values()))) if passed)
        pieces = tuple(gradient_pieces(p, launches.get("micro_first", ()), forward))
        return Draft(graph, p, launches, forward, arena, kernels, scratch, team, self.threads, pieces)

    def seconds(self, launches: Sequence[PlannedLaunch]) -> float:
        """Predicted time of the launches."""
        return predicted_seconds((x.kernel for x in launches), self.machine, self.threads)
