"""How an axis is cut into register tiles: full tiles in a loop, then what remains.

    0 ............ full tiles of unroll * lanes ............ | remainder | stop

A remainder of known size is one smaller tile; one that is known only at run time is a loop over single
registers, the last one masked. What the bounds say of the length decides which of these exist at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.domain import AxisState, Scope, lane_numbers
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.integers import Known, extent
from tcomp.codegen.llvm.types import I1, I32, I64, IrValue
from tcomp.ir.tile import Axis


@dataclass(frozen=True)
class Span:
    """An axis's start and length as values, and what is known of the length."""

    start: IrValue
    length: Int
    known: Known


@dataclass(frozen=True)
class Variant:
    """A loop over register tiles of one axis: from `start` to `stop`, `unroll` registers each.

    `partial` says that the last register's lanes may run past the axis's end. Where only part of the axis's loop is
    left, `grid` is where the whole of it started.
    """

    start: Int
    stop: Int
    unroll: int
    partial: bool
    nonempty: bool
    grid: Int | None = None


def surely_empty(axis: Axis, scope: Scope) -> bool:
    """Is it known that the axis has no values?"""
    hi = extent(axis, scope.facts).hi
    return hi is not None and hi <= 0


def span_of(em: Emitter, axis: Axis, scope: Scope) -> Span:
    """Start and length, emitted where the builder stands."""
    known = extent(axis, scope.facts)
    start = integer_value(em, axis.start, scope)
    if known.value is not None:
        return Span(em.i64(start), max(0, known.value), known)
    stop = integer_value(em, axis.stop, scope)
    if isinstance(start, int) and isinstance(stop, int):
        return Span(em.i64(start), max(0, stop - start), known)
    if isinstance(start, int) and start == 0:
        return Span(em.i64(0), stop, known)
    return Span(em.i64(start), em.builder.sub(em.i64(stop), em.i64(start), flags=("nsw",)), known)


def cut(em: Emitter, axis: Axis, span: Span) -> list[Variant]:
    """The axis's loops, in order; their bounds are emitted where the builder stands."""
    lanes, known, length = axis.lanes, span.known, span.length
    if isinstance(length, int):
        unroll = max(1, min(axis.unroll, -(-length // lanes)))
        tile = unroll * lanes
        full, rest = length // tile * tile, length % tile
        out = [Variant(0, full, unroll, False, True)] if full else []
        if rest:
            out.append(Variant(full, length, -(-rest // lanes), rest % lanes != 0, True))
        return out
    most = axis.block if known.hi is None else known.hi
    unroll = max(1, min(axis.unroll, -(-most // lanes)))
    tile = unroll * lanes
    length = em.i64(length)
    if tile == 1 or known.multiple_of(tile):
        return [Variant(0, length, unroll, False, (known.lo or 0) > 0)]
    out = []
    full_stop = ir.Constant(I64, 0)
    if most >= tile:
        rest_value = em.builder.srem(length, ir.Constant(I64, tile))
        full_stop = em.builder.sub(length, rest_value, flags=("nsw",))
        out.append(Variant(0, full_stop, unroll, False, False))
    out.append(Variant(full_stop, length, 1, not known.multiple_of(lanes), False))
    return out


def tile_state(em: Emitter, axis: Axis, span: Span, v: Variant, base: Int) -> AxisState:
    """The axis inside a variant's loop, with the lanes' masks, in the innermost frame."""
    masks: list[IrValue | None] = [None] * v.unroll
    if v.partial:
        masks[-1] = remaining_lanes(em, axis.lanes, span.length, em.add(base, (v.unroll - 1) * axis.lanes))
    if isinstance(base, int):
        multiple = base
    else:
        # A remainder's loop starts where full tiles end, at a multiple of the full tile.
        tile, whole = v.unroll * axis.lanes, axis.unroll * axis.lanes
        grid = v.start if v.grid is None else v.grid
        starts_at_zero = isinstance(grid, int) and grid % tile == 0
        multiple = tile if whole % tile == 0 or starts_at_zero else axis.lanes
    return AxisState(em.depth, base, v.unroll, axis.lanes, multiple, tuple(masks))


def remaining_lanes(em: Emitter, lanes: int, length: Int, base: Int) -> IrValue:
    """Which of the lanes base, base + 1, ... lie below length."""
    b = em.here()
    if isinstance(length, int) and isinstance(base, int):
        bits = [ir.Constant(I1, int(base + n < length)) for n in range(lanes)]
        return ir.Constant(ir.VectorType(I1, lanes), bits)
    left = b.trunc(b.sub(em.i64(length), em.i64(base), flags=("nsw",)), I32)
    return b.icmp_signed("<", lane_numbers(lanes), splat(em, left, lanes))


def splat(em: Emitter, scalar: IrValue, lanes: int) -> IrValue:
    """A scalar in all lanes, emitted where the builder stands."""
    t = ir.VectorType(scalar.type, lanes)
    b = em.builder
    first = b.insert_element(ir.Constant(t, ir.Undefined), scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(first, ir.Constant(t, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), None))


def when_some(em: Emitter, lengths: Sequence[Int], body: Callable[[], None]) -> None:
    """Emit `body`, to be run if none of these axes is empty."""
    if not lengths:
        body()
        return
    b = em.here()
    some: IrValue = ir.Constant(I1, 1)
    for length in lengths:
        some = b.and_(some, b.icmp_signed(">", em.i64(length), em.i64(0)))
    em.when(some, body)
