"""What the statements of a phase say about it as a whole, before any code is written: its threads, which tiles matrix
instructions read and by which proxy, which packs a block repeats, which operands nothing writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from tcomp.codegen.llvm.integers import Affine, affine_form
from tcomp.codegen.nvptx.layout import rings_of
from tcomp.codegen.nvptx.products.matrix import matched
from tcomp.codegen.nvptx.threads.addressing import has_room
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.codegen.nvptx.threads.plan import Plan, plan_of
from tcomp.codegen.nvptx.threads.turns import divides_evenly
from tcomp.dsl.ast import Access
from tcomp.instructions.matching import Match
from tcomp.ir.blocks import Producer
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Pack, Scope, Statement, Unpack
from tcomp.ir.walk import accesses_of, reads_of, statements_in


def producer_of(kernel: Kernel, phase: Sequence[Statement]) -> Producer | None:
    """The kernel's producer, where the phase has something for it."""
    return kernel.gpu.producer if any(True for _ in rings_of(phase)) else None


def threads_of(kernel: Kernel, phase: Sequence[Statement]) -> int:
    """Threads of a phase's blocks, a producer's included."""
    producer = producer_of(kernel, phase)
    return kernel.gpu.shape.threads * kernel.gpu.sides + (32 * producer.warps if producer is not None else 0)


def know_tiles(scope: GpuScope, phase: Sequence[Statement]) -> None:
    """Tell the scope what the phase's tiles are for."""
    scope.bounded = bounded_fragments(phase, scope.buffers)
    scope.zeroed = matrix_operands(phase)
    scope.filled = filled_tiles(phase, scope.buffers)
    scope.delivered = frozenset(s.buffer for s in statements_in(phase) if isinstance(s, Unpack))


def matrix_operands(phase: Sequence[Statement]) -> frozenset[str]:
    """Tiles that matrix instructions read or add to."""
    used = [a.tensor for s in statements_in(phase) if isinstance(s, Compute) and s.instruction for a in accesses_of(s)]
    return frozenset(used)


def filled_tiles(phase: Sequence[Statement], buffers: Mapping[str, Buffer]) -> frozenset[str]:
    """Tiles that copies fill whole, and shared ones that threads fill, with zeros past the axes' ends, for others.
    No place in such a tile has to be kept inside: lanes that all read the last row would meet in its banks."""
    packs = [s for s in statements_in(phase) if isinstance(s, Pack)]
    computes = [s for s in statements_in(phase) if isinstance(s, Compute)]
    read = {a.tensor for c in computes for a in reads_of(c) if buffers[a.tensor].scope is Scope.SHARED}
    whole: dict[str, bool] = {}
    for c in computes:
        if c.target.tensor in read:
            parts = c.accumulate or c.atomic or c.instruction or c.guard or c.only
            fills = not parts and pads(c, plan_of(c, buffers), buffers)
            whole[c.target.tensor] = fills and whole.get(c.target.tensor, True)
    by_threads = {name for name, fills in whole.items() if fills} - {p.buffer for p in packs}
    by_copies = {p.buffer for p in packs if tuple(a.block for a in p.axes) == buffers[p.buffer].shape}
    return frozenset(by_threads | by_copies)


def pads(c: Compute, plan: Plan, buffers: Mapping[str, Buffer]) -> bool:
    """Can threads write zeros past the axes' ends of what they write, as that is all of the tile?"""
    tile = buffers[c.target.tensor]
    return (
        math.prod(a.block for a in plan.parallel) == math.prod(tile.shape)
        and has_room(c.target, tile, {a.name: a for a in c.axes})
        and all(divides_evenly(a) and (plan.unrolled(a.name) or as_long_as_its_block(a)) for a in plan.parallel)
    )


def as_long_as_its_block(axis: Axis) -> bool:
    """Has the axis as many values as its block bounds, whatever the loops around it stand at?"""
    start, stop = affine_form(axis.start), affine_form(axis.stop)
    return start is not None and stop is not None and stop - start == Affine(constant=axis.block)


def staggered(kernel: Kernel, phase: Sequence[Statement], scope: GpuScope) -> bool:
    """Do warpgroups go through pipe loops a turn apart: through those that are one product by wgmma?"""
    loops = (s for s in statements_in(phase) if isinstance(s, Loop) and s.level == "pipe")
    bodies = ([s for s in loop.body if not isinstance(s, Pack)] for loop in loops)
    return kernel.gpu.staggered and any(len(b) == 1 and any_asynchronous(b, scope) for b in bodies)


def loads_loose(body: Sequence[Statement], tiles: set[str], scope: GpuScope) -> list[str]:
    """The register tiles that are computed of what threads load of these tiles, where nothing else in the statements
    waits for that: no store to memory and no asynchronous product of it, which ends before they do."""
    computes = [s for s in statements_in(body) if isinstance(s, Compute)]

    def stays(number: int, s: Compute) -> bool:
        later = [c for c in computes[number + 1 :] if s.target.tensor in {a.tensor for a in reads_of(c)}]
        stored = any(scope.buffers[c.target.tensor].scope is not Scope.REGISTERS for c in later)
        awaited = stored or any_asynchronous(later, scope)
        return scope.buffers[s.target.tensor].scope is Scope.REGISTERS and not awaited

    loads = ((n, s) for n, s in enumerate(computes) if not _reads_in_place(s, scope) >= _tiles_read(s, tiles))
    return list(dict.fromkeys(s.target.tensor for n, s in loads if stays(n, s)))


def _tiles_read(s: Compute, tiles: set[str]) -> set[str]:
    return {a.tensor for a in reads_of(s)} & tiles


def _reads_in_place(s: Compute, scope: GpuScope) -> set[str]:
    """Shared tiles that the Compute's asynchronous matrix instructions read where they lie, or whose part in registers
    they read before they end."""
    return {o.buffer.name for m in asynchronous((s,), scope) for o in (m.a, m.b)}


def reads_ordinary_tiles(phase: Sequence[Statement], scope: GpuScope) -> bool:
    """Do matrix instructions read shared tiles in place (by the async proxy) that ordinary stores or cp.async fill?"""
    copied = {s.buffer for s in statements_in(phase) if isinstance(s, Pack) and s.by == "tma"}
    read = {o.buffer.name for m in asynchronous(phase, scope) for o in (m.a, m.b) if not o.in_registers}
    return bool(read - copied)


def needs_whole_clusters(phase: Sequence[Statement], scope: GpuScope) -> str:
    """Why a block that only makes its cluster whole cannot do with zeros ("" where it can): it leaves out what threads
    write, and matrix instructions on registers, which it does not, may read of that."""
    if any(isinstance(s, Pack) and s.by != "tma" for s in statements_in(phase)):
        return "some are staged by other ways than tma"
    filled = {s.buffer for s in statements_in(phase) if isinstance(s, Pack)}
    read = {n for n in matrix_operands(phase) if scope.buffers[n].scope is Scope.SHARED} - filled
    return f"matrix instructions read '{min(read)}', which threads write" if read else ""


def touched(s: Compute, scope: GpuScope) -> set[str]:
    """Buffers that must be at rest when the Compute begins: not those in shared memory that it only reads, as what
    still runs only reads there too. One by wgmma may add to what a group before it adds to."""
    adds = s.accumulate and s.instruction and matched(s, scope).instruction.asynchronous
    found = {a.tensor for a in accesses_of(s) if scope.buffers[a.tensor].scope is not Scope.SHARED}
    return found - {s.target.tensor} if adds else found | {s.target.tensor}


def asynchronous(phase: Sequence[Statement], scope: GpuScope) -> Iterator[Match]:
    """The contractions by wgmma."""
    return (matched(s, scope) for s in statements_in(phase) if isinstance(s, Compute) and is_asynchronous(s, scope))


def is_asynchronous(s: Compute, scope: GpuScope) -> bool:
    """Is it a contraction by wgmma?"""
    return bool(s.instruction) and matched(s, scope).instruction.asynchronous


def any_asynchronous(phase: Sequence[Statement], scope: GpuScope) -> bool:
    """Are there contractions by wgmma?"""
    return any(isinstance(s, Compute) and is_asynchronous(s, scope) for s in statements_in(phase))


def repeated_in(phase: Sequence[Statement], persistent: bool) -> set[int]:
    """Packs (by number) that one block may run more than once."""
    loops = [s for s in statements_in(phase) if isinstance(s, Loop) and (persistent or s.level != "grid")]
    return {id(s) for loop in loops for s in statements_in(loop.body) if isinstance(s, Pack)}


def constant_operands(kernel: Kernel) -> frozenset[str]:
    """Operands whose memory nothing writes while the kernel runs: read-only, and sharing memory with no output."""
    shared = {name for pair in kernel.inplace for name in pair}
    targets = {w for p in kernel.phases for s in statements_in(p) if isinstance(s, Compute) for w in [s.target.tensor]}
    return frozenset(o.name for o in kernel.operands) - targets - shared - kernel.writes


def bounded_fragments(phase: Sequence[Statement], buffers: dict[str, Buffer]) -> frozenset[str]:
    """Register tiles that all Computes walk within the same ranges."""
    ranges: dict[str, set[tuple[object, ...]]] = {}
    for s in statements_in(phase):
        if isinstance(s, Compute):
            for access in accesses_of(s):
                if buffers[access.tensor].scope is Scope.REGISTERS:
                    ranges.setdefault(access.tensor, set()).add(_range(s, access))
    return frozenset(n for n, r in ranges.items() if len(r) == 1)


def _range(s: Compute, access: Access) -> tuple[object, ...]:
    axes = [next((a for a in s.axes if a.name in str(x)), None) for x in access.subscripts]
    return tuple((a.start, a.stop) if a is not None else None for a in axes)
