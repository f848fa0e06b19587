"""What all tensor copies of a phase share: their mbarrier rings, their tensor maps, what a cluster fetches in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llvmlite import ir

from tcomp.codegen.llvm.types import I8, I32, IrValue
from tcomp.codegen.nvptx.copies.ring import Pair, Ring
from tcomp.codegen.nvptx.copies.tensor_copy import Share, map_of, map_of_result
from tcomp.codegen.nvptx.copies.tensor_tile import TensorTile
from tcomp.codegen.nvptx.entry import DYNAMIC
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.launch import OperandMap
from tcomp.codegen.nvptx.layout import (
    handed_over,
    last_turns,
    leading_packs,
    ring_copies,
    rings_of,
    summed_in_tensor_memory,
)
from tcomp.codegen.nvptx.phase_facts import repeated_in
from tcomp.codegen.nvptx.threads.beside import sums_beside
from tcomp.ir.multicast import shared_packs
from tcomp.ir.tile import Compute, Loop, Pack, Statement, Unpack
from tcomp.ir.walk import statements_in

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator


class TensorRings:
    """Rings by the number of their loop or Pack, the `tiles` staged on their own, and the addresses of the `maps`."""

    def __init__(
        self, generator: PhaseGenerator, phase: Sequence[Statement], maps: Mapping[OperandMap, IrValue]
    ) -> None:
        self.em, self.cluster, self.buffers = generator.em, generator.cluster, generator.scope.buffers
        self.maps, self.layout = maps, generator.layout
        self.shared = shared_packs(phase, self.cluster, self.buffers)
        self.rings: dict[int, Ring] = {}
        self.accumulators: dict[int, Ring] = {}
        """of each loop whose sum is in tensor memory"""
        self.tiles: dict[int, TensorTile] = {}
        self.handed: dict[str, Ring] = {}
        """of each tile that a producer's warp delivers"""
        self.settled: dict[int, Ring] = {}
        """of the loops that wait until all it has delivered is there, whose first copy says so"""

    def start(self, generator: PhaseGenerator, phase: Sequence[Statement]) -> None:
        """Make the mbarriers of what the copy engine fills, before anything uses them."""
        em = self.em
        shared = em.module.globals.get(DYNAMIC)
        found = list(rings_of(phase))
        written = {s.target.tensor for s in statements_in(phase) if isinstance(s, Compute)}
        repeated = repeated_in(phase, generator.kernel.gpu.order.persistent)
        unpacks = [s for s in statements_in(phase) if isinstance(s, Unpack)]
        delivered = {self.buffers[u.buffer].inside: u.groups for u in unpacks}
        for node, stages in found:
            packs = leading_packs(node) if isinstance(node, Loop) else (node,)
            _check_packs(packs, written)
            b = em.at(0)
            place = b.gep(shared, [ir.Constant(I32, generator.layout.rings[id(node)])], source_etype=I8)
            peers = self.cluster.blocks if self.cluster and any(id(p) in self.shared for p in packs) else 1
            stages = ring_copies(node, stages, em.sides)
            leaders = delivered.get(node.buffer, 0) if isinstance(node, Pack) else 0
            multiplied = summed_in_tensor_memory(node) is not None
            beside = isinstance(node, Loop) and bool(sums_beside(node, generator.scope))
            readers = int(multiplied) + em.threads.warps * (beside or not multiplied)
            paired = multiplied and generator.paired
            pair: Pair = ("relayed" if beside else "copied") if paired else ""
            ring = Ring(em, place, stages, leaders or readers, 2 if paired else peers, pair=pair)
            self.rings[id(node)] = ring
            if isinstance(node, Pack):
                self.tiles[id(node)] = TensorTile(generator, node, ring, id(node) in repeated, leaders)
        for number, product in generator.tensor.products.items():
            place = em.at(0).gep(shared, [ir.Constant(I32, generator.layout.accumulators[number])], source_etype=I8)
            blocks = 2 if generator.paired else 1
            pair = "read" if generator.paired else ""
            ring = Ring(em, place, product.stages, blocks * em.threads.warps, blocks, pair=pair)
            generator.tensor.rings[number] = ring
        for unpack in handed_over(phase, generator.kernel):
            place = em.at(0).gep(shared, [ir.Constant(I32, generator.layout.rings[id(unpack)])], source_etype=I8)
            self.handed[unpack.buffer] = Ring(em, place, 1, 1, fillers=em.threads.warps)
        for loop in last_turns(phase) if self.handed else ():
            place = em.at(0).gep(shared, [ir.Constant(I32, generator.layout.rings[id(loop)])], source_etype=I8)
            self.settled[id(loop)] = Ring(em, place, 1, 1)
        if not found and not generator.tensor.columns:
            return
        generator.tensor.allocate()
        self.tensor = generator.tensor
        self.accumulators = generator.tensor.rings
        generator.roles.leader(self._initialise)
        if self.cluster is not None:
            em.cluster_barrier()
        else:
            em.barrier()
        generator.tensor.allocated()

    def _initialise(self) -> None:
        em = self.em
        for ring in (*self.rings.values(), *self.accumulators.values(), *self.handed.values(), *self.settled.values()):
            ring.start()
        self.tensor.initialise()
        em.here()
        em.nvvm("fence.mbarrier_init.release.cluster")
        for address in self.maps.values():
            em.effect("prefetch.tensormap [$0];", "l", [address])

    def finish(self) -> None:
        """By the producer, when it has nothing more to ask for. In a cluster the tensor cores of all blocks say that a
        place is free, when they have done with it: none of them may be left with a block to tell that has ended."""
        for number in self.accumulators:
            ring = self.rings[number]
            for _ in range(ring.stages if ring.cluster > 1 else 0):
                ring.wait_empty()
                ring.filling.advance()

    def settled_name(self, loop: Loop) -> str:
        """Of the first mbarrier of that loop's `settled` ring."""
        return f"{DYNAMIC}+{self.layout.rings[id(loop)]}"

    def map_address(self, pack: Pack) -> IrValue:
        parts = self.cluster.blocks if self.cluster is not None and id(pack) in self.shared else 1
        return self.maps[map_of(pack, self.buffers, parts)]

    def result_address(self, unpack: Unpack) -> IrValue:
        return self.maps[map_of_result(unpack, self.buffers)]

    def share(self, pack: Pack) -> Share | None:
        """What this block fetches of a tile that its cluster shares."""
        if self.cluster is None or id(pack) not in self.shared:
            return None
        return Share(self.em.cluster_rank(), self.cluster.blocks)


def _check_packs(packs: Sequence[Pack], written: set[str]) -> None:
    for p in packs:
        if p.by != "tma":
            raise Unsupported(f"'{p.source.tensor}' is staged by {p.by} in a pipe loop of tensor copies", p.span,
                              "stage everything in this loop by tma")  # fmt: skip
        if p.source.tensor in written:
            raise Unsupported(f"'{p.source.tensor}' is staged by tma and written by the same kernel", p.span,
                              "stage it by cp.async")  # fmt: skip
