"""Computes in a row, on register tiles, that ask whether their tile is cut: one test for all of them.

    if whole: m                if whole: m; p; l
    else: m, checked           else: m, p, l, each checked
    if whole: p        -->
    else: p, checked
    l

What the assembler may mix is what stands between two branches: exponentials, their sum and their casts keep different
units busy, one beside the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from tcomp.codegen.cpu.conditions import conditions
from tcomp.codegen.nvptx.compute import ComputeGenerator
from tcomp.codegen.nvptx.domain import GpuScope
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.phase_facts import as_long_as_its_block, touched
from tcomp.codegen.nvptx.plan import accesses_of, joins_warps, sharing_of
from tcomp.ir.tile import Compute, Scope, Statement

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.phase import PhaseGenerator


def run_of(phase: PhaseGenerator, body: Sequence[Statement], first: int, path: tuple[int, ...]) -> Sequence[Compute]:
    """The Computes of a body from number `first` on that may share a test: all on register tiles, with nothing to wait
    for between. Less than two of them with a test are no run."""
    if not phase.roles.computing or phase.inside is not None:
        return []
    found: list[Compute] = []
    for i in range(first, len(body)):
        s = body[i]
        if not isinstance(s, Compute) or not _in_registers(s, phase.scope):
            break
        if found and ((*path, i) in phase.sync.barriers or phase.groups.concerns(touched(s, phase.scope))):
            break
        found.append(s)
    return found if sum(_tested(s) for s in found) > 1 else []


def write_run(em: GpuEmitter, scope: GpuScope, run: Sequence[Compute], parts: Collection[int]) -> None:
    """Write a run. Of the sums with these numbers (`parts`) lanes keep parts."""

    def each(whole: bool) -> None:
        for s in run:
            ComputeGenerator(em, scope, s, id(s) not in parts).generate(whole)

    with em.frame():
        em.here()
        whole = None
        for s in run:
            test = ComputeGenerator(em, scope, s).whole()
            if test is not None:
                whole = test if whole is None else em.here().and_(whole, test)
        if whole is None:
            each(True)
        else:
            em.either(whole, lambda: each(True), lambda: each(False))


def _tested(s: Compute) -> bool:
    """May it be asked whether the tile is whole?"""
    return bool(conditions(s)) or not all(as_long_as_its_block(a) for a in s.axes)


def _in_registers(s: Compute, scope: GpuScope) -> bool:
    inside = all(scope.buffers[a.tensor].scope is Scope.REGISTERS for a in accesses_of(s))
    return inside and not s.instruction and s.only is None and not joins_warps(sharing_of(s, scope.threads))
