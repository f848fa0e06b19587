"""Liveness and placement: the launches of a program -> an address for every tensor that is not persistent.

A tensor is live from the first launch that touches it to the last. Where a kernel allows an output to take
the place of an input, and that input dies at that launch, the two become one buffer. Tensors may also lie in the memory
before the temporary region, where `fixed` blocks have room between them (`gradient_room.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tcomp.ir.tile import Buffer
from tcomp.model.graph import Tensor, View
from tcomp.model.joins import RECEIVED
from tcomp.model.lowering import PlannedLaunch
from tcomp.model.placement import Block, Fixed, Placement, aligned, live_bytes, place


@dataclass(frozen=True)
class ProgramPlan:
    """Where a program's temporary tensors live: byte offsets from the start of the temporary region (negative where
    they lie before it, among fixed blocks), and the first and last launch of each. `bytes` and `lower_bound` are of
    that region alone. `peak` is the launch at which the most bytes are live."""

    offsets: dict[Tensor, int]
    ranges: dict[Tensor, tuple[int, int]]
    bytes: int
    lower_bound: int
    peak: int

    def live_at(self, launch: int) -> Iterator[Tensor]:
        """The temporary tensors that are live at a launch."""
        return (t for t, (first, last) in self.ranges.items() if first <= launch <= last)


def plan_program(
    launches: Sequence[PlannedLaunch], persistent: Collection[Tensor], fixed: Sequence[Fixed] = ()
) -> ProgramPlan:
    """Place all tensors of the launches that are not persistent. `fixed` are the blocks of a region right before the
    temporary one; at some launch they fill it."""
    ranges = live_ranges(launches, persistent)
    check_written_first(launches, ranges)
    groups, blocks = live_blocks(launches, ranges)
    placement: Placement = place(blocks, fixed)
    before = _end(fixed)
    offsets = {t: o - before for g, o in zip(groups, placement.offsets, strict=True) for t in g}
    peak = int(live_bytes([*blocks, *(f.block for f in fixed)]).argmax())
    return ProgramPlan(offsets, ranges, placement.bytes - before, max(placement.lower_bound - before, 0), peak)


def most_live(launches: Sequence[PlannedLaunch], persistent: Collection[Tensor], fixed: Sequence[Fixed] = ()) -> int:
    """The most bytes of tensors that are not persistent live at one launch, beyond what there is room for in the region
    of `fixed` blocks: what no placement can go below."""
    _, blocks = live_blocks(launches, live_ranges(launches, persistent))
    live = live_bytes([*(Block(aligned(b.bytes), b.first, b.last) for b in blocks), *(f.block for f in fixed)])
    return max(int(live.max()) - _end(fixed), 0)


def _end(fixed: Sequence[Fixed]) -> int:
    return max((aligned(f.offset + f.block.bytes) for f in fixed), default=0)


def live_blocks(
    launches: Sequence[PlannedLaunch], ranges: dict[Tensor, tuple[int, int]]
) -> tuple[list[list[Tensor]], list[Block]]:
    """The tensors grouped where one takes the place of another, and the memory of each group."""
    groups = in_place_groups(launches, ranges)
    return groups, [
        Block(max(t.bytes for t in g), min(ranges[t][0] for t in g), max(ranges[t][1] for t in g)) for g in groups
    ]


def live_ranges(launches: Sequence[PlannedLaunch], persistent: Collection[Tensor]) -> dict[Tensor, tuple[int, int]]:
    """The first and last launch that touches each tensor; what comes from other ranks is there before all launches."""
    ranges: dict[Tensor, tuple[int, int]] = {}
    for i, launch in enumerate(launches):
        for v in launch.views:
            if v.tensor not in persistent:
                first = 0 if v.tensor.kind == RECEIVED else i
                ranges[v.tensor] = ranges.get(v.tensor, (first, i))[0], i
    return ranges


def check_written_first(launches: Sequence[PlannedLaunch], ranges: dict[Tensor, tuple[int, int]]) -> None:
    """Verify that no temporary tensor is read before it is written: a fault of the compiler, not a user's."""
    for t, (first, _) in ranges.items():
        launch = launches[first]
        if t.kind != RECEIVED and not any(
            v.tensor is t and o.name in launch.kernel.writes for o, v in _operands(launch)
        ):
            raise AssertionError(f"{launch.label} reads {t.name}, which nothing has written")


def in_place_groups(launches: Sequence[PlannedLaunch], ranges: dict[Tensor, tuple[int, int]]) -> list[list[Tensor]]:
    """The tensors, grouped where one takes the place of another."""
    group: dict[Tensor, list[Tensor]] = {t: [t] for t in ranges}
    taken: set[Tensor] = set()
    for i, launch in enumerate(launches):
        if not launch.kernel.inplace:
            continue
        views = {o.name: v for o, v in _operands(launch)}
        for out, source in sorted(launch.kernel.inplace):
            if out not in views or source not in views:
                continue
            y, x = views[out], views[source]
            if y.tensor not in ranges or x.tensor not in ranges or x.tensor in taken:
                continue
            if ranges[y.tensor][0] != i or ranges[x.tensor][1] != i or len(group[y.tensor]) > 1:
                continue
            if not _same_region(x, y) or sum(v.tensor in (x.tensor, y.tensor) for v in launch.views) != 2:
                continue
            taken.add(x.tensor)
            group[x.tensor].extend(group[y.tensor])
            for t in group[y.tensor]:
                group[t] = group[x.tensor]
    return list({id(g): g for g in group.values()}.values())


def _same_region(x: View, y: View) -> bool:
    """Whether both views are all of their tensors, with the same element size and count."""
    return x.covers and y.covers and x.tensor.bytes == y.tensor.bytes and x.tensor.dtype is y.tensor.dtype


def _operands(launch: PlannedLaunch) -> Iterator[tuple[Buffer, View]]:
    return zip(launch.kernel.operands, launch.views, strict=True)
