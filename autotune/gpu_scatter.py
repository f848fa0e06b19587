"""What data decides and machine code does not say: how many contributions a block of a sorted scatter takes.

`dwte[ids[t], c] += dx[t, c] where ids[t] // rows == block`: over all blocks every t counts once, so a block takes its
share on the average. (Frequent rows take more; the blocks that own them are the last to end.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from tcomp.autotune.gpu_model import L2_LATENCY, MEMORY_LATENCY, BlockWork
from tcomp.dsl.ast import names_in
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.ir.tile import Compute, Loop, Statement

INSTRUCTIONS = 40.0
"""of one contribution, beside its memory accesses"""


def with_contributions(work: BlockWork, phase: tuple[Statement, ...]) -> BlockWork:
    """The block's work with the contributions that it takes on the average: each is read, and joined to its row in
    memory before the next."""
    for compute, loops in _scatters(phase, ()):
        assert compute.guard is not None
        named = names_in(compute.guard)
        owners = math.prod(_trips(loop) for loop in loops if loop.variable in named)
        points = math.prod(a.block for a in compute.axes if a.name in named)
        width = math.prod(a.block for a in compute.axes if a.name not in named)
        taken = points / owners
        work = replace(
            work,
            issue=work.issue + taken * INSTRUCTIONS,
            l2_bytes=work.l2_bytes + taken * width * 12,
            chain=work.chain + taken * (MEMORY_LATENCY + L2_LATENCY),
        )
    return work


def _scatters(body: tuple[Statement, ...], loops: tuple[Loop, ...]) -> Iterator[tuple[Compute, tuple[Loop, ...]]]:
    for s in body:
        if isinstance(s, Loop):
            yield from _scatters(s.body, (*loops, s))
        elif isinstance(s, Compute) and s.guard is not None and not s.distinct and not s.reduced:
            yield s, loops


def _trips(loop: Loop) -> int:
    """1 where the bounds follow from a loop around."""
    try:
        extent = int(evaluate_dim(loop.stop, {}) - evaluate_dim(loop.start, {}))
    except TcError:
        return 1
    return max(1, -(-extent // loop.step))
