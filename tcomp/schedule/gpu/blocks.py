"""A GPU kernel's blocks, from its threads and the flags of its schedule; and refusals of flags that would mean nothing
for the lowered kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from tcomp.dsl.ast import Span
from tcomp.dsl.errors import TcError
from tcomp.instructions import IN_TENSOR_MEMORY
from tcomp.ir.blocks import Blocks, Cluster, GridOrder, Producer, ThreadShape
from tcomp.ir.multicast import cluster_of, shared_packs
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Statement
from tcomp.ir.walk import computes, statements_in
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel


def blocks_of(plan: KernelPlan, extents: Mapping[str, int], shape: ThreadShape) -> Blocks:
    """The blocks of a kernel whose threads are those of `shape`. TcError where a reversed loop has no grid level."""
    flags = plan.flags
    return Blocks(
        shape,
        flags.sides,
        flags.producer,
        _order(plan),
        # (A loop of one turn has no neighbours.)
        next(
            (
                Cluster(t.variable, t.cluster)
                for t in plan.sequence
                if t.cluster > 1 and t.block is not None and extents[t.index] > t.block
            ),
            None,
        ),
        flags.staggered and shape.warps > 4,
    )


def _order(plan: KernelPlan) -> GridOrder:
    """The order of blocks with the variables of the grid loops it names."""
    variables = set()
    for name in sorted(plan.flags.order.reversed):
        own = [t.variable for t in plan.sequence if t.parallel and t.index == name]
        if not own:
            raise TcError(
                f"`reverse` orders blocks, and loop '{name}' is not divided among blocks in this kernel",
                plan.flags.span("reverse"),
                f"give it a grid level: {name} -> grid(64)",
            )
        variables |= set(own)
    stream = next(iter(plan.streams.values()), None)
    return replace(plan.flags.order, reversed=frozenset(variables), stream=stream)


def check_blocks(kernel: Kernel, plan: KernelPlan, machine: GpuMachine) -> None:
    """TcError where a flag would mean nothing for the lowered kernel, or asks for what a block cannot have."""
    flags = plan.flags
    _check_clusters(kernel, [t for t in plan.sequence if t.cluster > 1])
    if flags.producer is not None:
        _check_producer(kernel, flags.producer, flags.span("producer"), machine)
    if flags.staggered and (why := _not_apart(kernel)):
        raise TcError(
            f"`stagger` keeps the warpgroups of a product by wgmma apart, and {why}",
            flags.span("stagger"),
            "write: m -> grid(128) / warpgroup(64) / mma, and: producer warp; or leave the line out",
        )
    if flags.sides > 1 and (why := _no_sides(kernel)):
        raise TcError(
            f"`pingpong` lets two groups of threads take the tiles of a block in turn, and {why}",
            flags.span("pingpong"),
            f"write: m -> grid(128) / {_one_warpgroup(kernel)}, persistent; or leave the line out",
        )
    if flags.stream and (flags.sides > 1 or not flags.order.persistent):
        raise TcError(
            "`stream` gives each of the blocks that stay an equal share of all tiles, and "
            + ("sides of a block take whole ones" if flags.sides > 1 else "without `persistent` a block has one tile"),
            flags.span("stream"),
            "write: persistent, without `pingpong`; or leave the line out",
        )
    grid = {s.variable for p in kernel.phases for s in statements_in(p) if isinstance(s, Loop) and s.level == "grid"}
    if flags.order.raster and len(grid) < 2:
        raise TcError(
            "`raster` orders the tiles of two grid loops, and this kernel has fewer",
            flags.span("raster"),
            "leave it out",
        )


def _one_warpgroup(kernel: Kernel) -> str:
    """The warpgroup of a side, and the producer, as the kernel's products need them."""
    if any(c.instruction in IN_TENSOR_MEMORY for p in kernel.phases for c in computes(p)):
        return "warpgroup(128, 1) / mma, and: producer warpgroup(40)"
    return "warpgroup(64, 1) / mma, and: producer warp"


def _check_clusters(kernel: Kernel, clusters: Sequence[TileLevel]) -> None:
    if len(clusters) > 1:
        raise TcError("a kernel has clusters along one loop", clusters[1].span, "leave one `cluster` out")
    buffers = kernel.buffers
    cluster = kernel.gpu.cluster
    if cluster is not None and not any(
        shared_packs(p, cluster_of(kernel, p), buffers, True, True) for p in kernel.phases
    ):
        raise TcError(
            f"the blocks of a cluster along '{cluster.variable.partition('.')[0]}' would share nothing",
            clusters[0].span,
            "stage by tma, in a pipe loop, a tile that does not depend on that loop, or leave `cluster` out",
        )


def _check_producer(kernel: Kernel, producer: Producer, span: Span, machine: GpuMachine) -> None:
    if not any(isinstance(s, Pack) and s.by == "tma" for p in kernel.phases for s in statements_in(p)):
        raise TcError(
            "the producer would have nothing to do: no tile of this kernel is staged by tma",
            span,
            "stage operands by tma, or leave `producer` out",
        )
    shape = kernel.gpu.shape
    if producer.registers and shape.warps % 4:
        raise TcError(
            f"registers are shared between warpgroups, and this kernel computes with {shape.warps} warps",
            span,
            "divide its loops among a multiple of 4 warps, or write: producer warp",
        )
    warps = shape.warps * kernel.gpu.sides + producer.warps
    pool = machine.registers_at_entry(warps)
    if producer.registers > pool:
        raise TcError(
            f"the producer cannot keep {producer.registers} registers a thread: "
            f"{warps} warps start with {pool} each, and it gives some of them up",
            span,
            f"write at most {pool}, for instance: producer warpgroup(40)",
        )


def _no_sides(kernel: Kernel) -> str:
    """What keeps a block from having sides; "" for nothing."""
    if kernel.gpu.producer is None:
        return "without a producer each would wait for the other's copies"
    if not kernel.gpu.order.persistent:
        return "without `persistent` a block has one tile"
    if kernel.gpu.staggered:
        return "`stagger` orders the warpgroups of one tile"
    if kernel.gpu.shape.warps % 4:
        return "these threads are no whole warpgroups"
    if any(p.by != "tma" for phase in kernel.phases for p in statements_in(phase) if isinstance(p, Pack)):
        return "some of its tiles are not staged by tma"
    if any(_staged_within(phase) for phase in kernel.phases):
        return "some tiles are staged in every turn of a loop that is no outermost `pipe`: sides cannot count them"
    return ""


def _staged_within(body: Sequence[Statement]) -> bool:
    """Are tiles staged in loops of a block, but at the beginning of each turn of an outermost pipe loop?"""
    for s in body:
        if isinstance(s, Loop) and s.level == "grid":
            if _staged_within(s.body):
                return True
        elif isinstance(s, Loop):
            packs = sum(1 for _ in takewhile(lambda inner: isinstance(inner, Pack), s.body)) if s.level == "pipe" else 0
            if any(isinstance(inner, Pack) for inner in statements_in(s.body[packs:])):
                return True
    return False


def _not_apart(kernel: Kernel) -> str:
    """What keeps warpgroups from going through loops one after the other; "" for nothing. (Those that copy themselves
    would wait for each other.)"""
    computes = (s for p in kernel.phases for s in statements_in(p) if isinstance(s, Compute))
    if not any(c.instruction.startswith("wgmma") for c in computes):
        return "there is no such product"
    if kernel.gpu.producer is None:
        return "without a producer they copy what they wait for"
    return ""
