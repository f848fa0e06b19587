"""Outputs that start at zero: those first accumulated into, and those whose equations leave elements out."""

from __future__ import annotations

from itertools import product

from tcomp.dsl.ast import Access, Equation, Name, Num
from tcomp.ir.tile import Axis, Compute, Loop, Statement


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


def zero(name: str, shape: tuple[int, ...], lanes: int) -> Statement:
    """A core loop over the first axis that clears the tensor."""
    if not shape:
        return Loop("z0.0", Num(0), Num(1), 1, "core", (Compute(Access(name, ()), Num(0.0), ()),))
    names = [Name(f"z{d}") for d in range(len(shape))]
    axes = [Axis(f"z{d}", Num(0), Num(n), n) for d, n in enumerate(shape)]
    last = axes[-1]
    wide = lanes if last.block >= lanes else 1
    if len(shape) == 1:
        step = max(wide * 8, 1)
        body = Compute(
            Access(name, (names[0],)),
            Num(0.0),
            (Axis("z0", Name("z0.0"), Name("z0.0.stop"), shape[0], 1, wide),),
        )
        return Loop("z0.0", Num(0), Num(shape[0]), step, "core", (body,), True)
    axes[-1] = Axis(last.name, last.start, last.stop, last.block, 1, wide)
    subs = (Name("z0.0"), *names[1:])
    body = Compute(Access(name, subs), Num(0.0), tuple(axes[1:]))
    return Loop("z0.0", Num(0), Num(shape[0]), 1, "core", (body,))
