"""Reductions along vectors at as many points at a time as a vector has lanes, whose results are one vector.

    m[q] = max k: s[q, k]     row by row:  log2(lanes) shuffles and maxima behind each other, one element stored
                              together:    accumulators of `lanes` rows exchange halves until one has a lane of each,
                                           lanes - 1 maxima and twice as many shuffles for all of them, one store

    s[q, k] = sum d: Q[q, d] * K[k, d]     q by 2, k by 4 (8 lanes): rows of Q and K as they lie in memory, one addition
                                           for 8 multiply-adds at D = 64, two stores of 4 elements side by side

Rows that are short in vectors only: in long ones the end does not count, and fewer rows at a time are easier on the
cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tcomp.codegen.cpu.addressing import Place
from tcomp.codegen.cpu.prefetch import WIDE
from tcomp.codegen.cpu.reducer import Reducer
from tcomp.codegen.cpu.transpose import exchanged
from tcomp.codegen.llvm.types import IrValue
from tcomp.dsl.ast import DType
from tcomp.ir.tile import Axis, Compute

SHORT_ROW = 16
"""vectors of a row"""
FREE = 8
"""registers beside the accumulators"""
WRITTEN_OUT = 8
"""steps of a contraction's sum up to which it has no loop"""


def side_by_side(
    node: Compute, parallel: list[Axis], reduced: list[Axis], target: Place, registers: int
) -> tuple[list[Axis], list[Axis], int]:
    """The parallel and the reduced axes of a reduction along vectors, and how many results of its register tile lie
    side by side where one vector has all of them, else 0. The tile is the schedule's, if that has as many points as a
    vector has lanes, or so many rows. (Narrower vectors gain nothing from rows: they have fewer steps behind each
    other, and a guard's lanes take a register a row.)"""
    apart = parallel, reduced, 0
    if len(reduced) != 1 or target.buffer.dtype is not DType.F32 or node.epilogue or not node.distinct:
        return apart
    counters = dict(target.counters)
    inner = [a for a in parallel if counters.get(a.name) == 1]
    if target.panel is not None or target.gathered or len(inner) != 1:
        return apart
    (along,), lanes, tile = reduced, reduced[0].lanes, math.prod(a.unroll for a in parallel)
    if tile == lanes and along.unroll == 1:
        steps = math.ceil(along.block / lanes)
        outer = [a for a in parallel if a is not inner[0]]
        return [*outer, *inner], [replace(along, unroll=steps if steps <= WRITTEN_OUT else 1)], inner[0].unroll
    if tile > 1 or lanes < WIDE or along.block > SHORT_ROW * lanes or lanes + FREE > registers:
        return apart
    if inner[0].block < lanes:
        return apart
    rows = [replace(a, unroll=lanes) if a is inner[0] else a for a in parallel]
    return rows, [replace(along, unroll=1)], lanes


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
