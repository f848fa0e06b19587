"""One Compute statement of a block: under which conditions, in whose turn, and by which generator it is written.

A matrix instruction is written by `products/matrix.py`, all else element by element (`threads/compute.py`). A sum that
stays in tensor memory is scaled there (`products/sums_kept.py`); rescaling that seldom does anything is tested for
first (`products/rescaling.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tcomp.codegen.llvm.bounds import condition_value
from tcomp.codegen.nvptx.products.matrix import write_contraction
from tcomp.codegen.nvptx.products.rescaling import factor_of, long, where_any_grew
from tcomp.codegen.nvptx.products.sums_kept import factor_of_sum
from tcomp.codegen.nvptx.results.turn_taking import WarpTurns
from tcomp.codegen.nvptx.threads.compute import ComputeGenerator
from tcomp.dsl.ast import Num
from tcomp.ir.tile import Compute, Scope

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator


def write_compute(
    phase: PhaseGenerator,
    s: Compute,
    hold: Callable[[Callable[[], None]], bool] | None,
    beside: Callable[[], None] | None,
) -> None:
    """Write it; not in a block that only makes its cluster whole, where all that reaches is zeros, which do no harm in
    matrix instructions on registers (and those are not to be waited for under a condition). `hold` is the pipe's, where
    the Compute is all that its turns do but for what is written `beside` it."""
    rotated = phase.pipe is not None and phase.pipe.rotated
    write = partial(_by_threads, phase, s)
    if s.instruction:
        write = partial(write_contraction, phase.em, phase.scope, s, phase.groups, hold, rotated, beside)
    onto_registers = phase.scope.buffers[s.target.tensor].scope is Scope.REGISTERS
    if phase.inside is None or (s.instruction and onto_registers):
        write()
        return

    def write_whole() -> None:
        write()
        phase.groups.before(None)

    phase.groups.before(None)
    phase.em.here()
    phase.em.when(phase.inside, write_whole)


def _by_threads(phase: PhaseGenerator, s: Compute) -> None:
    """Element by element, in the order of warps if sums are taken in turns, where its condition holds."""
    em, scope = phase.em, phase.scope
    generate = partial(_elements, phase, s)
    if (turns := s.turns) is not None:

        def in_turn(adds: bool) -> None:
            ComputeGenerator(em, scope, replace(s, accumulate=adds, reducer="sum", turns=None)).generate()

        generate = partial(WarpTurns(em, scope, turns.flag.tensor).write, turns, in_turn)
    if s.only is None:
        generate()
    else:
        em.here()
        em.when(condition_value(em, s.only, scope), generate)


def _elements(phase: PhaseGenerator, s: Compute) -> None:
    em, scope = phase.em, phase.scope
    piece = phase.tensor.kept.get(s.target.tensor)
    if piece is not None and s.value == Num(0.0):
        piece.reset()
        return
    generate = ComputeGenerator(em, scope, s, joins=id(s) not in phase.joined_behind).generate
    seldom = s.only is None and phase.pipe is not None and long(phase.pipe.loop, scope)
    if piece is not None:
        piece.scale(factor_of_sum(phase.phase, piece.node, scope) or "", generate)
    elif seldom and (factor := factor_of(s, scope)):
        where_any_grew(em, scope, factor, generate)
    else:
        generate()
