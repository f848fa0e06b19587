"""Outputs that start at zero: those first accumulated into, and those whose equations leave elements out."""

from __future__ import annotations

from itertools import product

from tcomp.dsl.ast import Access, Equation, Expr, Name, Num
from tcomp.ir.tile import Axis, Compute, Loop, Spread, Statement
from tcomp.schedule.bounds import tile_stop


def needs_zero(name: str, shape: tuple[int, ...], equations: tuple[Equation, ...], extents: dict[str, int]) -> bool:
    """Whether an output must be cleared before its equations run.

    Not needed when assignments cover it: bare distinct indices over the whole of their axes, and constants
    that together take every value of theirs.
    """
    writers = [eq for eq in equations if any(t.name == name for t in eq.targets)]
    if not writers or writers[0].accumulate:
        return bool(writers)
    constant_axes: set[int] | None = None
    covered: set[tuple[int, ...]] = set()
    for eq in writers:
        if eq.accumulate:
            continue
        subs = next(t.subscripts for t in eq.targets if t.name == name)
        bare = [s.id for s in subs if isinstance(s, Name)]
        axes = {d for d, s in enumerate(subs) if isinstance(s, Num)}
        whole = len(set(bare)) == len(bare) and all(
            (isinstance(s, Name) and extents.get(s.id) == n) or isinstance(s, Num)
            for s, n in zip(subs, shape, strict=True)
        )
        if not whole or (constant_axes is not None and axes != constant_axes):
            return True
        constant_axes = axes
        covered.add(tuple(int(s.value) for s in subs if isinstance(s, Num)))
    every = product(*(range(shape[d]) for d in sorted(constant_axes or ())))
    return any(point not in covered for point in every)


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
            step = min(shape[0], 8192)
            stop = tile_stop(variable, step, Num(shape[0]), shape[0])
            body = Compute(Access(name, (names[0],)), Num(0.0), (last("z0", variable, stop, step),))
            return Loop("z0.0", Num(0), Num(shape[0]), step, level, (body,))
        body = Compute(Access(name, (names[0],)), Num(0.0), (last("z0", variable, Name("z0.0.stop"), shape[0]),))
        return Loop("z0.0", Num(0), Num(shape[0]), 8 * along if shape[0] >= along else 8, level, (body,), True)
    axes = [Axis(f"z{d}", Num(0), Num(n), n) for d, n in enumerate(shape)]
    axes[-1] = last(axes[-1].name, axes[-1].start, axes[-1].stop, axes[-1].block)
    body = Compute(Access(name, (Name("z0.0"), *names[1:])), Num(0.0), tuple(axes[1:]))
    return Loop("z0.0", Num(0), Num(shape[0]), 1, level, (body,))
