"""Whose share of the flat vectors an element is in, and the step as one of the ranks runs it: arithmetic alone.

Each parameter group of a flat vector is as long as so many equal shares; rank r has the r-th of each. Of a vector of
which a rank keeps its shares only, these lie side by side, group after group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tcomp.model.step import Division, Step


@dataclass(frozen=True)
class Owned:
    """Elements start .. stop - 1 of a tensor are with `rank`, from element `place` on of what it keeps."""

    rank: int
    start: int
    stop: int
    place: int


def owners(division: Division, at: int, elements: int) -> Iterator[Owned]:
    """Who has which part of a tensor that lies at element `at` of a flat vector, in order of the elements."""
    first, length = next(g for g in division.groups if g[0] <= at < g[0] + g[1])
    each = length // division.ranks
    for rank in range(division.ranks):
        begin = first + rank * each
        low, high = max(at, begin), min(at + elements, begin + each)
        if low < high:
            yield Owned(rank, low - at, high - at, first // division.ranks + low - begin)


def step_of(step: Step, rank: int) -> Step:
    """The step as a rank runs it: its own shares of whole vectors, and random numbers of their places."""
    d = step.division
    if d is None or rank == 0:
        return step
    programs = dict(step.programs)
    for (program, launch, operand), size in d.shifts.items():
        launches = list(programs[program])
        offsets = list(launches[launch].offsets)
        offsets[operand] += rank * size
        launches[launch] = replace(launches[launch], offsets=tuple(offsets))
        programs[program] = tuple(launches)
    firsts = {name: _int32(int(step.scalars[name]) + rank * elements) for name, elements in d.firsts.items()}
    return replace(step, programs=programs, scalars={**step.scalars, **firsts})


def _int32(value: int) -> int:
    """A number as 32-bit addition has it."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)
