"""Filling a packed tile: copies, and transposes in registers where source and tile run along different axes."""

from __future__ import annotations

from dataclasses import replace

from tcomp.codegen.cpu.compute import ComputeGenerator
from tcomp.codegen.cpu.domain import Scope
from tcomp.codegen.cpu.emitter import Emitter
from tcomp.codegen.cpu.integers import extent
from tcomp.dsl.ast import Access, Binary, Name, Num
from tcomp.ir.tile import Axis, Buffer, Compute, Pack, Panels


def generate_pack(em: Emitter, scope: Scope, pack: Pack) -> None:
    """Emit one Pack at the emitter's current place."""
    buffer = scope.buffers[pack.buffer]
    copy_tile(em, scope, pack, buffer)


def padded_shape(buffer: Buffer) -> tuple[int, ...]:
    """The stored extent of each dimension, panel padding included."""
    shape = list(buffer.shape)
    if isinstance(buffer.layout, Panels):
        a, w = buffer.layout.axis, buffer.layout.width
        shape[a] = -(-shape[a] // w) * w
    return tuple(shape)


def contiguous_axis(buffer: Buffer) -> int:
    return buffer.layout.axis if isinstance(buffer.layout, Panels) else len(buffer.shape) - 1


def copy_tile(em: Emitter, scope: Scope, pack: Pack, buffer: Buffer) -> None:
    """The tile as a map of the source, then zeros behind each axis's stop."""
    inner = contiguous_axis(buffer)
    width = buffer.layout.width if isinstance(buffer.layout, Panels) else buffer.shape[inner]
    lanes = scope.lanes_f32
    while lanes > 1 and width % lanes:
        lanes //= 2
    axes = tuple(replace(a, unroll=1, lanes=lanes if i == inner else 1) for i, a in enumerate(pack.axes))
    target = Access(buffer.name, tuple(Binary("-", Name(a.name), a.start) for a in pack.axes), pack.span)
    ComputeGenerator(em, scope, Compute(target, pack.source, axes, span=pack.span)).generate()
    fill_zeros(em, scope, pack, buffer, axes, target)


def fill_zeros(em: Emitter, scope: Scope, pack: Pack, buffer: Buffer, axes: tuple[Axis, ...], target: Access) -> None:
    """Zero the tile behind each axis's stop: for axis i, all of the axes before it up to their stops."""
    for i, (axis, size) in enumerate(zip(axes, padded_shape(buffer), strict=True)):
        known = extent(axis, scope.facts)
        if known.lo is not None and known.lo >= size:
            continue
        end = Binary("+", axis.start, Num(size))
        behind = replace(axis, start=axis.stop, stop=end, block=size)
        others = [
            replace(a, stop=Binary("+", a.start, Num(n)), block=n) if j > i else a
            for j, (a, n) in enumerate(zip(axes, padded_shape(buffer), strict=True))
        ]
        others[i] = behind
        ComputeGenerator(
            em, scope, Compute(target, Num(0) if not buffer.dtype.is_float else Num(0.0), tuple(others))
        ).generate()
