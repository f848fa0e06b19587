"""The memory of gradients that are not there yet, as room for activations.

    launches       forward l0 ... forward lN | backward lN ... backward l0 | update
    activations    l0 ----------------------------------------->
                                  lN ----------->
    gradients                                 lN -------------------------->
                                                              l0 ---------->

Activations are at their most when the backward pass begins; of a gradient there is nothing until the launch that writes
it first. So the plan places activations around gradients (`placement.Fixed`), not beside them. The unit is what
launches touch at once: a layer's part of a tensor. Only where a step is one micro-batch:
later ones add to what is there.

An executor may leave the update's vectors to the next step, beside its forward pass. So a gradient counts as there,
too, until the last launch of a forward pass that reads its parameter: that one waits for the update anyway, and nothing
that is written over gradients waits longer. Where no launch waits for it (an embedding's table, of which only the rows
that the batch chooses are updated first) it is there always.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tcomp.ir.rows import chosen_rows
from tcomp.model.graph import Tensor
from tcomp.model.lowering import PlannedLaunch
from tcomp.model.placement import Block, Fixed, aligned
from tcomp.model.programs import Programs


@dataclass(frozen=True, slots=True)
class Piece:
    """`bytes` of the gradients' flat vector from `offset` on: of a gradient, or (None) of what lies between. There from
    launch `first` on, and until launch `used` that of the step before (-1: not needed; the end: always there)."""

    gradient: Tensor | None
    offset: int
    bytes: int
    used: int
    first: int


def gradient_pieces(programs: Programs, launches: Sequence[PlannedLaunch], forward: Collection[int]) -> list[Piece]:
    """The whole flat vector of gradients as pieces, by their offsets; `launches` are those of a micro-batch, at the
    positions `forward` those of a forward pass alone. Nothing where activations must leave it alone."""
    if not launches or not programs.gradients or programs.backward_next:
        return []
    found: list[Piece] = []
    size = next(iter(programs.gradients.values())).dtype.bytes
    for parameter, gradient in programs.gradients.items():
        start = programs.layout.offsets[parameter.name] * size
        written = list(_touching(launches, range(len(launches)), gradient))
        read = list(_touching(launches, [i for i in forward if not _by_rows(launches[i], parameter)], parameter))
        marks = {0, gradient.elements} | {m for _, a, b in (*written, *read) for m in (a, b)}
        for low, high in pairwise(sorted(marks)):
            first = min((i for i, a, b in written if a < high and low < b), default=0)
            used = max((i for i, a, b in read if a < high and low < b), default=len(launches))
            _check_written(launches[first], gradient)
            found.append(Piece(gradient, start + low * size, (high - low) * size, used, first))
    return _filled(sorted(found, key=lambda p: p.offset), aligned(programs.layout.elements * size))


def fixed(pieces: Sequence[Piece], launches: int) -> tuple[Fixed, ...]:
    """What stands in the way of activations, in a program of so many launches."""
    return tuple(Fixed(p.offset, Block(p.bytes, a, b)) for p in pieces for a, b in ranges(p, launches - 1))


def ranges(piece: Piece, end: int) -> Iterator[tuple[int, int]]:
    """The first and last launches between which it is there, in a program that ends at launch `end`."""
    if piece.used + 1 >= piece.first:
        yield 0, end
        return
    if piece.used >= 0:
        yield 0, piece.used
    yield piece.first, end


def _touching(launches: Sequence[PlannedLaunch], at: Collection[int], t: Tensor) -> Iterator[tuple[int, int, int]]:
    """The launches of those positions that touch a tensor, each with its first element and the one behind its last."""
    for i in at:
        for v in launches[i].views:
            if v.tensor is t:
                yield i, v.offset, v.offset + v.elements


def _by_rows(launch: PlannedLaunch, parameter: Tensor) -> bool:
    """Whether it reads only rows of the parameter that data choose: an executor may update those alone before it."""
    kernel = launch.kernel
    operands = (o.name for o, v in zip(kernel.operands, launch.views, strict=True) if v.tensor is parameter)
    return bool(kernel.gathered) and all(chosen_rows(kernel, name) is not None for name in operands)


def _check_written(launch: PlannedLaunch, gradient: Tensor) -> None:
    """Verify that who comes first to a gradient writes it: a fault of the compiler, not a user's."""
    views = zip(launch.kernel.operands, launch.views, strict=True)
    touching = [o.name for o, v in views if v.tensor is gradient]
    if touching and not any(name in launch.kernel.writes for name in touching):
        raise AssertionError(f"{launch.label} reads {gradient.name}, which nothing has written")


def _filled(pieces: Sequence[Piece], end: int) -> list[Piece]:
    """The pieces with what lies between them and before the `end`, which is zero and stays so."""
    found, at = [], 0
    for p in pieces:
        if p.offset > at:
            found.append(Piece(None, at, p.offset - at, -1, 0))
        found.append(p)
        at = p.offset + p.bytes
    if end > at:
        found.append(Piece(None, at, end - at, -1, 0))
    return found
