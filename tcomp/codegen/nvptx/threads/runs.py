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
from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.codegen.llvm.conditions import conditions, without
from tcomp.codegen.llvm.types import F32, I32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.phase_facts import as_long_as_its_block, touched
from tcomp.codegen.nvptx.threads.compute import ComputeGenerator
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.codegen.nvptx.threads.plan import joins_warps, sharing_of
from tcomp.dsl.ast import Access, Expr, Num, conjuncts, product_factors
from tcomp.ir.tile import Compute, Scope, Statement
from tcomp.ir.walk import accesses_of

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
        if s.target.tensor in phase.tensor.kept:
            break
        if found and ((*path, i) in phase.sync.barriers or phase.groups.concerns(touched(s, phase.scope))):
            break
        found.append(s)
    return found if sum(tested(s) for s in found) > 1 else []


def write_run(em: GpuEmitter, scope: GpuScope, run: Sequence[Compute], parts: Collection[int]) -> None:
    """Write a run. Of the sums with these numbers (`parts`) lanes keep parts."""

    def each(whole: bool) -> None:
        for s in run:
            ComputeGenerator(em, scope, s, id(s) not in parts).generate(whole)

    def cut() -> None:
        asked = {e: s for s in run for e in conditions(s)}
        left = without_points(run, *asked) if len(asked) == 1 else None
        if left is None:
            each(False)
            return
        ((condition, one),) = asked.items()
        with em.frame():
            none = ComputeGenerator(em, scope, one).none(condition)

            def rest() -> None:
                for original, s in left:
                    ComputeGenerator(em, scope, s, id(original) not in parts).generate()

            em.either(none, rest, lambda: each(False))

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
            em.either(whole, lambda: each(True), cut)


def without_points(run: Sequence[Compute], condition: Expr) -> list[tuple[Compute, Compute]] | None:
    """What is left to do where the condition holds at no point of the tile, each with the Compute that it comes from:
    sums and maxima that it guards stay as they are, and so do sums of what it makes zero. None where a result that
    begins here would be left without a value."""
    zeros: set[str] = set()
    left: list[tuple[Compute, Compute]] = []
    for s in run:
        value = without(s.value, (), (condition,))
        zero = (isinstance(value, Num) and value.value == 0) or (
            bool(s.reduced) and any(_is_of(f, zeros) for f in product_factors(value))
        )
        if condition in conjuncts(s.guard) or (zero and s.reduced and s.reducer == "sum"):
            if not s.accumulate:
                return None
            continue
        if zero and not s.reduced and not s.accumulate:
            zeros.add(s.target.tensor)
        else:
            zeros.discard(s.target.tensor)
        left.append((s, replace(s, value=value)))
    return left


def _is_of(e: Expr, tensors: set[str]) -> bool:
    return isinstance(e, Access) and e.tensor in tensors


def written(phase: PhaseGenerator, s: Compute) -> tuple[IrValue, ...]:
    """The registers of a Compute that was just written, if products may run and there was no branch in it."""
    slots = phase.scope.fragments.get(s.target.tensor, ())
    plain = not s.instruction and not tested(s) and all(x.allocated_type in (F32, I32) for x in slots)
    return tuple(slots) if plain and phase.groups.pending else ()


def tested(s: Compute) -> bool:
    """May it be asked whether the tile is whole?"""
    return bool(conditions(s)) or not all(as_long_as_its_block(a) for a in s.axes)


def _in_registers(s: Compute, scope: GpuScope) -> bool:
    inside = all(scope.buffers[a.tensor].scope is Scope.REGISTERS for a in accesses_of(s))
    plain = not s.instruction and s.only is None and s.turns is None
    return inside and plain and not joins_warps(sharing_of(s, scope.threads))
