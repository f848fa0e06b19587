"""Tile IR as text: a kernel's buffers, then its phases as nested loops, one line per node.

The text is for people (`tcomp show --tile`, golden tests) and says everything the code generator reads:
bounds, register tiles, reductions, guards, layouts.

    core m.0 in 0 .. 64 step 16:
      acc[m - m.0, n] += sum k: X[m, k] * W[n, k]
        m in m.0 .. min(m.0 + 16, 64) unroll 4
        n in 0 .. 128 unroll 2 x 16 lanes
        k in 0 .. 256 reduced
"""

from __future__ import annotations

from collections.abc import Iterator

from tcomp.dsl.printer import print_expression
from tcomp.ir.blocks import Blocks
from tcomp.ir.tile import (
    Axis,
    Buffer,
    Compute,
    Fragment,
    Kernel,
    Loop,
    Pack,
    Panels,
    Pitched,
    Shifted,
    Spread,
    Statement,
    Swizzled,
    Unpack,
)


def _blocks(blocks: Blocks) -> Iterator[str]:
    """What a GPU's blocks are, one fact a line."""
    t, order = blocks.shape, blocks.order
    yield f"threads {t.threads}: {t.warps_y} x {t.warps_x} warps of {t.lanes_y} x {t.lanes_x} lanes (y, x)"
    if blocks.staggered:
        yield "warpgroups a turn apart"
    if blocks.sides > 1:
        yield f"{blocks.sides} sides, each of these threads, with every {blocks.sides}nd tile of a block"
    if (p := blocks.producer) is not None:
        yield f"producer of {p.warps} more warps" + (f", {p.registers} registers each" if p.registers else "")
    if blocks.cluster is not None:
        yield f"clusters of {blocks.cluster.blocks} blocks along {blocks.cluster.variable}"
    if order.persistent:
        yield "persistent blocks"
    if (s := order.stream) is not None:
        yield f"{s.start} .. {s.stop} by equal shares of all tiles' sums of {s.extent}, in units of {s.unit}"
    if order.raster:
        yield f"raster in bands of {order.raster}"
    yield from (f"blocks of {v} from the last to the first" for v in sorted(order.reversed))


def print_kernel(kernel: Kernel) -> str:
    """The whole kernel as text, ending in a newline."""
    lines = [f"kernel {kernel.name}:"]
    if kernel.op and kernel.op != kernel.name:
        lines.append(f"  op {kernel.op}")
    for b in kernel.operands:
        reads, writes = b.name in kernel.reads, b.name in kernel.writes
        lines.append(f"  {'inout' if reads and writes else 'out' if writes else 'in'} {print_buffer(b)}")
    if kernel.blocks is not None:
        lines += [f"  {line}" for line in _blocks(kernel.blocks)]
    lines += [f"  {b.scope.value} {print_buffer(b)}  # {_size(b)}" for b in kernel.tiles]
    lines += [f"  inplace {out} over {source}" for out, source in sorted(kernel.inplace)]
    if kernel.flops:
        lines.append(f"  flops {kernel.flops}")
    for i, phase in enumerate(kernel.phases):
        lines.append(f"  phase {i}:" if i == 0 else f"  phase {i}:  # barrier")
        lines += _statements(phase, "    ")
    return "\n".join(lines) + "\n"


def print_buffer(b: Buffer) -> str:
    """`acc: f32[64, 96]`, with the layout where it is not row major."""
    shape = ", ".join(map(str, b.shape))
    layout = ""
    match b.layout:
        case Panels(axis, width, group, grouped):
            groups = f", axis {grouped} in groups of {group}" if group > 1 else ""
            layout = f" panels(axis {axis}, width {width}{groups})"
        case Pitched(pitch, group, skew):
            layout = f" pitch {pitch}" + (f", {skew} more after every {group} rows" if skew else "")
        case Shifted(room):
            layout = f" shifted by less than {room}"
        case Swizzled(width):
            layout = f" swizzle {width}"
        case Fragment(spreads):
            layout = "".join(f" [{_spread(s) or 'whole'}]" for s in spreads)
    return f"{b.name}: {b.dtype}[{shape}]{layout}" + (f" ring of {b.ring}" if b.ring > 1 else "")


def _size(b: Buffer) -> str:
    if b.inside:
        return f"in the place of {b.inside}"
    if not isinstance(b.layout, Fragment):
        return f"{b.bytes * b.ring} bytes"
    count = 1
    for s, n in zip(b.layout.spreads, (*b.shape[:-1], b.columns) if b.columns else b.shape, strict=True):
        count *= s.per_thread(n)
    return f"{count} elements per thread" + (f", {b.columns} columns at a time" if b.columns else "")


def _spread(s: Spread) -> str:
    """`warp.y 4 by 16, lane.x 8, 4 each`"""
    parts = []
    if s.warp:
        parts.append(f"warp.{s.warp} {s.warps} by {s.warp_tile}")
    if s.lane:
        parts.append(f"lane.{s.lane} {s.lanes}")
    if s.grain > 1:
        parts.append(f"{s.grain} each")
    return ", ".join(parts)


def print_statement(statement: Statement) -> str:
    """One node and what is inside it."""
    return "\n".join(_statements((statement,), "")) + "\n"


def _statements(body: tuple[Statement, ...], pad: str) -> Iterator[str]:
    for s in body:
        match s:
            case Loop():
                bounds = f"{print_expression(s.start)} .. {print_expression(s.stop)}"
                chunked = " chunked" if s.chunked else ""
                chunked += f" stages {s.stages}" if s.level in ("pipe", "panel") else ""
                yield f"{pad}{s.level} {s.variable} in {bounds} step {s.step}{chunked}:"
                yield from _statements(s.body, pad + "  ")
            case Pack():
                yield f"{pad}pack {s.buffer} from {print_expression(s.source)}" + (
                    f" by {s.by}" if s.by != "copy" else ""
                )
                yield from (f"{pad}  {_axis(a, False)}" for a in s.axes)
            case Unpack():
                yield (
                    f"{pad}unpack {s.buffer} to {print_expression(s.target)} by tma"
                    + (
                        f", adding in turns of {print_expression(s.turns.flag)}"
                        if s.turns
                        else ", adding"
                        if s.add
                        else ""
                    )
                    + (f", by {s.groups} groups" if s.groups > 1 else "")
                )
                yield from (f"{pad}  {_axis(a, False)}" for a in s.axes)
            case Compute():
                yield pad + _compute_head(s)
                yield from (f"{pad}  {_axis(a, a.name in s.reduced)}" for a in s.axes)
                for p in s.prefetch:
                    yield f"{pad}  prefetch {print_expression(p.source)}{', to be written' if p.written else ''}"
                    yield from (f"{pad}    {_axis(a, False)}" for a in p.axes)
                if s.ahead is not None:
                    ahead = s.ahead.pack
                    yield f"{pad}  pack ahead {ahead.buffer} from {print_expression(ahead.source)}"
                    yield from (f"{pad}    {_axis(a, False)}" for a in ahead.axes)
                    yield from (f"{pad}    {name} = {print_expression(e)}" for name, _, e in s.ahead.following)
                if s.epilogue:
                    when = f" where {print_expression(s.last)}" if s.last is not None else ""
                    yield f"{pad}  each register tile{when}:"
                    yield from (f"{pad}    {_compute_head(m)}" for m in s.epilogue)


def _compute_head(s: Compute) -> str:
    target = print_expression(s.target)
    reduction = f"{s.reducer} {', '.join(a.name for a in s.axes if a.name in s.reduced)}".rstrip()
    guard = f" where {print_expression(s.guard)}" if s.guard is not None else ""
    head = f"{target} {'+=' if s.accumulate and s.reducer in (None, 'sum') else '='} "
    if s.accumulate and s.reducer not in (None, "sum"):
        head += f"{s.reducer} {target} and "
    if s.reducer is not None and s.reduced:
        head += f"{reduction}{guard}: {print_expression(s.value)}"
    else:
        head += print_expression(s.value) + guard
    if s.region is not None:
        head += f"  # needed where {print_expression(s.region)}"
    if s.instruction:
        head += f"  # by {s.instruction}" + (", beside the next turn" if s.late else "")
    if s.turns is not None:
        head += f"  # adding in turns of {print_expression(s.turns.flag)}"
    if s.only is not None:
        head = f"if {print_expression(s.only)}: {head}"
    if s.atomic:
        return head + "  # atomic"
    return head if s.distinct else head + "  # scatter, points in order"


def _axis(a: Axis, reduced: bool) -> str:
    text = f"{a.name} in {print_expression(a.start)} .. {print_expression(a.stop)}"
    if a.block > 1:
        text += f" block {a.block}"
    if a.lanes > 1:
        text += f" unroll {a.unroll} x {a.lanes} lanes"
    elif a.unroll > 1:
        text += f" unroll {a.unroll}"
    if a.spread is not None and _spread(a.spread):
        text += f" [{_spread(a.spread)}]"
    return text + (" reduced" if reduced else "")
