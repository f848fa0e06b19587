"""Outputs that start at zero: those first accumulated into, and those whose equations leave elements out."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod

from tcomp.dsl.ast import Access, Equation, Expr, Name, Num
from tcomp.dsl.extents import polynomial
from tcomp.ir.tile import Axis, Compute, Loop, Spread, Statement
from tcomp.schedule.tree.bounds import linear, tile_stop

Box = tuple[tuple[int, int], ...]
"""Elements from start to stop (exclusive) along each axis."""
_MOST_CELLS = 4096
FILLED = 2048
"""elements of a vector that a GPU's block clears"""


def needs_zero(name: str, shape: tuple[int, ...], equations: tuple[Equation, ...], extents: dict[str, int]) -> bool:
    """Whether an output must be cleared before its equations run.

    Not needed when assignments cover it: each writes a box (an index, an index plus a constant, a constant or blocks of
    an index, as `128 * t + r` for r below 128, on every axis), and together the boxes leave nothing out.
    """
    writers = [eq for eq in equations if any(t.name == name for t in eq.targets)]
    if not writers or writers[0].accumulate:
        return bool(writers)
    boxes = []
    for eq in writers:
        if not eq.accumulate:
            box = _written(next(t.subscripts for t in eq.targets if t.name == name), extents)
            if box is None:
                return True
            boxes.append(box)
    return not _cover(boxes, shape)


def _written(subscripts: tuple[Expr, ...], extents: dict[str, int]) -> Box | None:
    """The box that a target with these subscripts writes; None when it is none."""
    box: list[tuple[int, int]] = []
    used: set[str] = set()
    for s in subscripts:
        form = linear(polynomial(s))
        if form is None or any(i in used for i in form[0]):
            return None
        length = 1
        for index, step in sorted(form[0].items(), key=lambda x: x[1]):
            if step != length or isinstance(index, Access) or index not in extents:
                return None
            used.add(index)
            length *= extents[index]
        box.append((form[1], form[1] + length))
    return tuple(box)


def _cover(boxes: list[Box], shape: tuple[int, ...]) -> bool:
    """Whether the boxes together hold every element: the cells between their edges are looked at one by one."""
    edges = [sorted({0, n} | {e for box in boxes for e in box[axis] if 0 <= e <= n}) for axis, n in enumerate(shape)]
    cells = [list(pairwise(e)) for e in edges]
    if prod(map(len, cells)) > _MOST_CELLS:
        return False
    return all(
        any(all(a <= start and stop <= b for (a, b), (start, stop) in zip(box, cell, strict=True)) for box in boxes)
        for cell in product(*cells)
    )


def zero(name: str, shape: tuple[int, ...], level: str, along: Spread | int) -> Statement:
    """A parallel loop over the first axis that clears the tensor; the last axis is a vector of `along` lanes, or
    is divided among a block's threads."""
    if not shape:
        return Loop("z0.0", Num(0), Num(1), 1, level, (Compute(Access(name, ()), Num(0.0), ()),))

    def last(axis: str, start: Expr, stop: Expr, block: int) -> Axis:
        if isinstance(along, Spread):
            return Axis(axis, start, stop, block, spread=along)
        return Axis(axis, start, stop, block, 1, along if block >= along else 1)

    names = [Name(f"z{d}") for d in range(len(shape))]
    if len(shape) == 1:
        variable = Name("z0.0")
        if isinstance(along, Spread):
            step = min(shape[0], FILLED)
            stop = tile_stop(variable, step, Num(shape[0]), shape[0])
            body = Compute(Access(name, (names[0],)), Num(0.0), (last("z0", variable, stop, step),))
            return Loop("z0.0", Num(0), Num(shape[0]), step, level, (body,))
        body = Compute(Access(name, (names[0],)), Num(0.0), (last("z0", variable, Name("z0.0.stop"), shape[0]),))
        return Loop("z0.0", Num(0), Num(shape[0]), 8 * along if shape[0] >= along else 8, level, (body,), True)
    axes = [Axis(f"z{d}", Num(0), Num(n), n) for d, n in enumerate(shape)]
    axes[-1] = last(axes[-1].name, axes[-1].start, axes[-1].stop, axes[-1].block)
    body = Compute(Access(name, (Name("z0.0"), *names[1:])), Num(0.0), tuple(axes[1:]))
    return Loop("z0.0", Num(0), Num(shape[0]), 1, level, (body,))
