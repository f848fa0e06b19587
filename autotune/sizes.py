"""Sizes at which a candidate is checked: an op's own dimensions, or smaller ones that the oracle can afford."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.dims import evaluate_dim, operand_shape
from tcomp.dsl.infer import dimensions, infer


def reduced(
    op: Op, module: Module, dims: Mapping[str, int], work: float, elements: float, aligned: bool
) -> dict[str, int]:
    """The dims, the largest halved as long as the op takes more than `work` points or tensors of more than `elements`.

    Halves are odd, so that tiles stay ragged; `aligned` keeps them multiples of 16, which copies of tiles need.
    """
    found = dict(dims)
    names = [n for n in dimensions(op) if n in found]
    least = 16 if aligned else 8
    while names and (work_of(op, module, found) > work or elements_of(op, module, found) > elements):
        largest = max(names, key=lambda n: found[n])
        n = found[largest]
        if n <= least:
            break
        smaller = {**found, largest: max(16, n // 2 // 16 * 16) if aligned else (n // 2) | 1}
        if not all(evaluate_dim(r, {**smaller}) for r in op.requires):
            names.remove(largest)
            continue
        found = smaller
    return found


def work_of(op: Op, module: Module, dims: Mapping[str, int]) -> float:
    """Points of the largest equation."""
    info = infer(op, module)
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    most = 1.0
    for eq, parallel in zip(op.equations, info.equation_indices, strict=True):
        summed = getattr(eq.value, "indices", ())
        most = max(most, math.prod(float(extents[i]) for i in (*parallel, *summed)))
    return most


def elements_of(op: Op, module: Module, dims: Mapping[str, int]) -> float:
    """Elements of the largest tensor, temporaries included."""
    info = infer(op, module)
    extents = {i: int(evaluate_dim(e, dims)) for i, e in info.ranges.items()}
    sizes = [math.prod(map(float, operand_shape(o, dims))) for o in op.operands]
    sizes += [math.prod(float(extents[i]) for i in t.indices) for t in info.temporaries.values()]
    return max(sizes, default=1.0)
