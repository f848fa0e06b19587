"""`overlap o`: the matrix product of one turn runs beside the next turn's statements, up to the first that needs it.

    each turn: s = Q K; p = softmax(s); o += p V        each turn: s = Q K; o += p' V'; p = softmax(s) meanwhile; p' = p
                                                        after the loop: o += p' V'

Results do not change, since nothing else in a turn comes between the product and the next turn's use of it. The product
must therefore be asynchronous, the last that touches its result in the turn, and read tiles that the copy engine fills.
Or it is the turn's only product and opens it: then turns go in pairs (`ir/pairs.py`), each with a result of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.dsl.ast import accesses_in
from tcomp.dsl.errors import TcError
from tcomp.instructions import INSTRUCTIONS
from tcomp.instructions.matching import match
from tcomp.ir.pairs import paired, tensors
from tcomp.ir.tile import Buffer, Compute, Kernel, Loop, Pack, Scope, Statement
from tcomp.ir.walk import computes, loops_in
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.tree.nest import TURN


def check_overlap(kernel: Kernel, plan: KernelPlan, target: str) -> None:
    """TcError at an `overlap` line that the lowered kernel cannot keep. (Its `use` lines have been checked.)"""
    buffers = kernel.buffers
    found = set()
    for phase in kernel.phases:
        for c in computes(phase):
            if not c.late:
                continue
            own = c.target.tensor.removesuffix(TURN)
            name = next(n for n in plan.overlap if own == n or own.startswith(f"{n}.sum"))
            found.add(name)
            around = [loop for loop in loops_in(phase) if loop.level != "grid" and c in computes(loop.body)]
            fault = _fault(c, around[-1], buffers, target) if around else None  # (a loop of one turn is none)
            if not fault and around and paired(around[-1]) is not None:
                fault = _read_elsewhere(c, around[-1], phase)
            if fault:
                message = f"'{name}' cannot overlap the next turn: {fault[0]}"
                raise TcError(message, plan.overlap[name].span, fault[1])
    for name, line in plan.overlap.items():
        if name not in found and line.number != 0:
            hint = "name an equation that a `use wgmma` line names"
            raise TcError(f"'{name}' is not a matrix product of this kernel", line.span, hint)


def _fault(c: Compute, loop: Loop, buffers: dict[str, Buffer], target: str) -> tuple[str, str] | None:
    """What is wrong with a product of the innermost loop's turns, and the remedy."""
    own = [s for s in loop.body if isinstance(s, Compute)]
    packs = {s.buffer: s.by for s in loop.body if isinstance(s, Pack)}
    if not _is_asynchronous(c, buffers, target):
        return f"{c.instruction} ends where it is issued", "overlap products by wgmma only"
    if loop.level != "pipe" or "tma" not in packs.values():
        return "it is not in a pipe loop of tensor copies", "map its loop to pipe(n, 2) and stage its operand by tma"
    if loop.stages < 2:
        return (
            "its pipe loop keeps one copy of its tiles, which the next turn fills again",
            "give it two stages: pipe(n, 2)",
        )
    shared = {a.tensor for a in accesses_in(c.value) if buffers[a.tensor].scope is Scope.SHARED}
    for name in sorted(shared & ({s.target.tensor for s in own} | {n for n, by in packs.items() if by != "tma"})):
        return f"the turn's own statements write its operand '{name}'", "stage it by tma, or leave the line out"
    if paired(loop) is c:  # (no barrier comes between the turns of a pair)
        kept = next((s for s in own if buffers[s.target.tensor].scope is Scope.SHARED), None)
        remedy = "let every equation that meets it divide it in the same way, or leave the line out"
        return (f"'{kept.target.tensor}' goes through shared memory in the same turn", remedy) if kept else None
    for s in loop.body[loop.body.index(c) + 1 :]:
        if isinstance(s, Loop) or (isinstance(s, Compute) and c.target.tensor in tensors(s)):
            return "a later statement of the turn needs its result", "leave the line out"
    if next(s for s in own if _is_asynchronous(s, buffers, target)) == c:
        return "no other product of the turn comes before it, beside which it could run", "leave the line out"
    return None


def _read_elsewhere(c: Compute, loop: Loop, phase: Sequence[Statement]) -> tuple[str, str] | None:
    """Is the result of a product that is computed for two turns at a time needed outside of the turns?"""
    inside = list(computes(loop.body))
    for s in computes(phase):
        if c.target.tensor in tensors(s) and not any(s is x for x in inside):
            return f"'{s.target.tensor}' needs the last turn's result behind the loop", "leave the line out"
    return None


def _is_asynchronous(c: Compute, buffers: dict[str, Buffer], target: str) -> bool:
    return bool(c.instruction) and match(c, buffers, target, INSTRUCTIONS).instruction.asynchronous
