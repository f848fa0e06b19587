"""Filling a packed tile: copies, or transposes in registers where source and tile run along different axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tcomp.codegen.cpu.compute import ComputeGenerator
from tcomp.codegen.cpu.prefetch import WIDE
from tcomp.codegen.cpu.transpose import TransposedPack
from tcomp.codegen.llvm.domain import Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.integers import Known, affine_form, extent, length
from tcomp.codegen.llvm.types import kind_of
from tcomp.dsl.ast import Access, Binary, Expr, Name, Num, substitute
from tcomp.ir.tile import Axis, Buffer, Compute, Pack, Panels, Prefetch

TRANSPOSED = 4
"""Vectors of a transposed piece of a tile."""
SAME_SET = 4096
"""Bytes between lines that take turns in the few places of one set of the first-level cache."""
COPIED_REGISTERS = 12
"""How many registers a copy loads before it stores them."""


def generate_pack(em: Emitter, scope: Scope, pack: Pack) -> None:
    """Emit one Pack: the elements up to each axis's stop, then zeros to the tile's end."""
    buffer = scope.buffers[pack.buffer]
    target = target_in(buffer, pack.axes)
    single, copy = copied_axes(scope, pack.axes, buffer)
    transposed = _transposed(em, scope, pack)
    if transposed is not None:
        transposed.generate(whole_registers=isinstance(buffer.layout, Panels))
    else:
        ahead = next_rows(pack, buffer, copy, (pack.source,))
        ComputeGenerator(em, scope, Compute(target, pack.source, copy, prefetch=ahead, span=pack.span)).generate()
    fill_zeros(em, scope, buffer, single, target)


def generate_piece(em: Emitter, scope: Scope, pack: Pack, numbers: Sequence[Int]) -> None:
    """Emit a piece of a whole tile, in few registers: four vectors, transposed, or a row. `numbers` say which piece it
    is along each axis (0 along a row)."""
    height, columns = piece_sides(scope, pack)
    transposed = _transposed(em, scope, pack, columns, height)
    if transposed is not None:
        transposed.generate_block({a.name: n for a, n in zip(pack.axes, numbers, strict=True)})
        return
    buffer = scope.buffers[pack.buffer]
    inner = contiguous_axis(buffer)
    with numbered(em, scope, pack, numbers) as starts:
        rows = [
            a if i == inner else replace(a, start=s, stop=Binary("+", s, Num(1)), block=1)
            for i, (a, s) in enumerate(zip(pack.axes, starts, strict=True))
        ]
        _, copy = copied_axes(scope, tuple(rows), buffer)
        target = target_in(buffer, pack.axes)
        ComputeGenerator(em, scope, Compute(target, pack.source, copy, span=pack.span)).generate()


@contextmanager
def numbered(em: Emitter, scope: Scope, pack: Pack, numbers: Sequence[Int]) -> Iterator[list[Expr]]:
    """Where the elements of these numbers stand along a pack's axes; the numbers are variables for a while."""
    names = [f"number along {a.name}" for a in pack.axes]
    for name, number, a in zip(names, numbers, pack.axes, strict=True):
        scope.variables[name] = em.i64(number)
        scope.facts.symbols[name] = Known(0, a.block - 1)
    yield [Binary("+", a.start, Name(name)) for a, name in zip(pack.axes, names, strict=True)]
    for name in names:
        del scope.variables[name], scope.facts.symbols[name]


def piece_sides(scope: Scope, pack: Pack) -> tuple[int, int]:
    """Rows and columns of a transposed piece of a tile: four vectors of the tile, a few elements of each of many rows.
    Where those rows share a set of the first-level cache it does not keep them for the next few elements of each, so
    there a piece is four vectors of the source: whole lines of few rows."""
    buffer = scope.buffers[pack.buffer]
    lanes = transposed_lanes(scope, buffer, pack)
    along, across = source_axis(scope, pack), pack.axes[contiguous_axis(buffer)].name
    whole = lanes == WIDE and all(a.block % lanes == 0 for a in pack.axes if a.name == along)
    if whole and along not in (None, across) and _row_bytes(scope, pack, across) % SAME_SET == 0:
        return TRANSPOSED, lanes
    return lanes, TRANSPOSED


def _row_bytes(scope: Scope, pack: Pack, across: str) -> int:
    """From one row of the source to the next: what a step along `across` skips."""
    source = scope.buffers[pack.source.tensor]
    step, size = 0, source.dtype.bytes
    for subscript, n in zip(reversed(pack.source.subscripts), reversed(source.shape), strict=True):
        form = affine_form(subscript)
        step += size * form.coefficient(across) if form is not None else 0
        size *= n
    return step


def _transposed(em: Emitter, scope: Scope, pack: Pack, columns: int = 0, rows: int = 0) -> TransposedPack | None:
    """The pack by blocks of so many `columns` (0: as many as rows) and `rows` (0: as many as the tile's registers have
    lanes), where source and tile run along different axes."""
    buffer = scope.buffers[pack.buffer]
    across = pack.axes[contiguous_axis(buffer)].name
    along = source_axis(scope, pack)
    lanes = transposed_lanes(scope, buffer, pack) if along not in (None, across) else 0
    if not lanes or along is None:
        return None
    return TransposedPack(em, scope, pack, target_in(buffer, pack.axes), along, across, rows or lanes, columns or lanes)


def target_in(buffer: Buffer, axes: Sequence[Axis]) -> Access:
    """The element of a tile, which begins where these axes do."""
    return Access(buffer.name, tuple(Binary("-", Name(a.name), a.start) for a in axes))


def copied_axes(scope: Scope, axes: tuple[Axis, ...], buffer: Buffer) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """The axes along a tile's registers one by one, and as register tiles of a copy."""
    inner = contiguous_axis(buffer)
    width = buffer.layout.width if isinstance(buffer.layout, Panels) else buffer.shape[inner]
    lanes = _dividing(scope.lanes_f32, width)
    return _vectorised(axes, inner, lanes), _copied(axes, buffer, inner, lanes)


def padded_shape(buffer: Buffer) -> tuple[int, ...]:
    """The stored extent of each dimension, panel padding included."""
    shape = list(buffer.shape)
    if isinstance(buffer.layout, Panels):
        a, w = buffer.layout.axis, buffer.layout.width
        shape[a] = -(-shape[a] // w) * w
    return tuple(shape)


def contiguous_axis(buffer: Buffer) -> int:
    return buffer.layout.axis if isinstance(buffer.layout, Panels) else len(buffer.shape) - 1


def fill_zeros(em: Emitter, scope: Scope, buffer: Buffer, axes: tuple[Axis, ...], target: Access) -> None:
    """Zero the tile behind each axis's stop: for axis i, all of the axes before it up to their stops.

    Along the panels' axis only to the end of the panel in which it stops: nothing reads the ones behind.
    """
    zero = Num(0.0) if buffer.dtype.is_float else Num(0)
    width = buffer.layout.width if isinstance(buffer.layout, Panels) else 0
    for i, (axis, size) in enumerate(zip(axes, padded_shape(buffer), strict=True)):
        known = extent(axis, scope.facts)
        if known.lo is not None and known.lo >= size:
            continue
        end: Expr = Binary("+", axis.start, Num(size))
        if isinstance(buffer.layout, Panels) and i == buffer.layout.axis:
            if known.multiple_of(width):
                continue
            panels = Binary("//", Binary("+", length(axis), Num(width - 1)), Num(width))
            end, size = Binary("+", axis.start, Binary("*", panels, Num(width))), width
        domain = [
            replace(a, stop=Binary("+", a.start, Num(n)), block=n) if j > i else a
            for j, (a, n) in enumerate(zip(axes, padded_shape(buffer), strict=True))
        ]
        domain[i] = replace(axis, start=axis.stop, stop=end, block=size)
        ComputeGenerator(em, scope, Compute(target, zero, tuple(domain))).generate()


def _vectorised(axes: tuple[Axis, ...], inner: int, lanes: int) -> tuple[Axis, ...]:
    return tuple(replace(a, unroll=1, lanes=lanes if i == inner else 1) for i, a in enumerate(axes))


def _copied(axes: tuple[Axis, ...], buffer: Buffer, inner: int, lanes: int) -> tuple[Axis, ...]:
    """Register tiles of a copy: a few whole rows of one panel, which lie side by side in the tile.

    Row after row, each write would go to another panel, and panels are often a multiple of 4096 bytes apart, which
    puts them all on the same few cache sets.
    """
    if not isinstance(buffer.layout, Panels) or len(axes) < 2 or buffer.layout.width % lanes:
        return _vectorised(axes, inner, lanes)
    registers = buffer.layout.width // lanes
    rows = max(i for i in range(len(axes)) if i != inner)
    chosen = {inner: (registers, lanes), rows: (max(1, COPIED_REGISTERS // registers), 1)}
    tiled = [replace(a, unroll=chosen.get(i, (1, 1))[0], lanes=chosen.get(i, (1, 1))[1]) for i, a in enumerate(axes)]
    return (*(a for i, a in enumerate(tiled) if i != inner), tiled[inner])


def next_rows(pack: Pack, buffer: Buffer, copy: tuple[Axis, ...], sources: Iterable[Expr]) -> tuple[Prefetch, ...]:
    """What a copy's next register tile along its rows reads, where nothing has asked for the pack's source before: a
    register tile's piece of a row is too short for the processor to see where it goes on."""
    if pack.by != "copy" or not isinstance(buffer.layout, Panels) or len(copy) < 2:
        return ()
    rows = copy[-2]
    later: dict[str, Expr] = {rows.name: Binary("+", Name(rows.name), Num(rows.unroll))}
    moved = (substitute(s, later) for s in sources)
    return tuple(Prefetch(a, copy) for a in moved if isinstance(a, Access))


def _dividing(lanes: int, width: int) -> int:
    """The widest register that cuts a panel without remainder; the machine's own where none does."""
    fitting = lanes
    while fitting > 1 and width % fitting:
        fitting //= 2
    return fitting if fitting >= 4 else lanes


def source_axis(scope: Scope, pack: Pack) -> str | None:
    """The axis along which the source is contiguous: it stands alone in the last subscript, once."""
    source = scope.buffers[pack.source.tensor]
    if isinstance(source.layout, Panels) or not pack.source.subscripts:
        return None
    names = {a.name for a in pack.axes}
    found: list[str] = []
    for i, subscript in enumerate(pack.source.subscripts):
        form = affine_form(subscript)
        if form is None:
            return None
        used = [(n, c) for n, c in form.terms if n in names]
        last = i == len(pack.source.subscripts) - 1
        found += [n for n, c in used if last and c == 1]
        if last and len(used) != 1:
            return None
    return found[0] if len(found) == 1 and _uses(pack.source.subscripts[:-1], found[0]) == 0 else None


def _uses(subscripts: tuple[Expr, ...], name: str) -> int:
    forms = [affine_form(s) for s in subscripts]
    return sum(1 for f in forms if f is not None and f.coefficient(name))


def transposed_lanes(scope: Scope, buffer: Buffer, pack: Pack) -> int:
    """The side of the blocks to transpose; 0 where blocks do not fit the layout or the element types."""
    source = scope.buffers[pack.source.tensor].dtype
    if buffer.dtype.bytes != 4 or kind_of(source) != kind_of(buffer.dtype):
        return 0
    lanes = scope.lanes_f32
    if isinstance(buffer.layout, Panels):
        while lanes >= 4 and buffer.layout.width % lanes:
            lanes //= 2
    return lanes if lanes in (4, 8, 16) else 0
