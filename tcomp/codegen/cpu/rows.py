"""Reductions along vectors for as many rows at a time as a vector has lanes, whose results are one vector.

    m[q] = max k: s[q, k]     row by row:  log2(lanes) shuffles and maxima behind each other, one element stored
                              together:    accumulators of `lanes` rows exchange halves until one has a lane of each,
                                           lanes - 1 maxima and twice as many shuffles for all of them, one store

Rows that are short in vectors only: in long ones the end does not count, and fewer rows at a time are easier on the
cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tcomp.codegen.cpu.addressing import Place
from tcomp.codegen.cpu.prefetch import WIDE
from tcomp.codegen.cpu.reducer import Reducer
from tcomp.codegen.cpu.transpose import exchanged
from tcomp.codegen.cpu.types import IrValue
from tcomp.dsl.ast import DType
from tcomp.ir.tile import Axis, Compute

SHORT_ROW = 16
"""vectors of a row"""
FREE = 8
"""registers beside the accumulators"""


def rows_together(
    node: Compute, parallel: Sequence[Axis], reduced: Sequence[Axis], target: Place, registers: int
) -> tuple[list[Axis], list[Axis]] | None:
    """The parallel and the reduced axes of a reduction along vectors with a register tile of whole vectors of results;
    None where results are not f32 side by side, or rows are long. (Narrower vectors gain nothing: they have fewer
    steps behind each other, and a guard's lanes take a register a row.)"""
    if len(reduced) != 1 or reduced[0].lanes < WIDE or target.buffer.dtype is not DType.F32:
        return None
    (along,), lanes = reduced, reduced[0].lanes
    if along.block > SHORT_ROW * lanes or lanes + FREE > registers or node.epilogue or not node.distinct:
        return None
    if target.panel is not None or target.gathered or any(a.unroll * a.lanes > 1 for a in parallel):
        return None
    inner = [a for a in parallel if dict(target.counters).get(a.name) == 1 and a.block >= lanes]
    if len(inner) != 1:
        return None
    rows = [replace(a, unroll=lanes) if a is inner[0] else a for a in parallel]
    return rows, [replace(along, unroll=1)]


def results_of_rows(reducer: Reducer, accumulators: Sequence[IrValue]) -> IrValue:
    """The reductions of as many registers as they have lanes, in the registers' order."""
    b = reducer.em.here()
    values = list(accumulators)
    step = 1
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [reducer.combine(*exchanged(b, x, y, step)) for x, y in pairs]
        step *= 2
    return values[0]
