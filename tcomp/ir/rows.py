"""Operands of which a kernel reads chosen rows only: an embedding's table.

x[b, t, c] = wte[tokens[b, t], c] + wpe[t, c]   -->   wte's rows are chosen by tokens
"""

from __future__ import annotations

from collections.abc import Iterator

from tcomp.dsl.ast import Access, accesses_in
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Statement


def chosen_rows(kernel: Kernel, operand: str) -> str | None:
    """The operand whose values are the numbers of all rows that the kernel reads of `operand`; None where it reads
    others, or none."""
    found = [a for phase in kernel.phases for s in phase for a in accesses(s) if a.tensor == operand]
    operands = {o.name for o in kernel.operands}
    by = {a.subscripts[0].tensor if isinstance(a.subscripts[0], Access) else "" for a in found if a.subscripts}
    (name,) = by if len(by) == 1 else ("",)
    return name if name in operands and name not in kernel.writes and operand not in kernel.writes else None


def accesses(s: Statement) -> Iterator[Access]:
    """All that a statement reads and writes in buffers (what it prefetches is not read)."""
    if isinstance(s, Loop):
        for e in (s.start, s.stop):
            yield from accesses_in(e)
        for x in s.body:
            yield from accesses(x)
    elif isinstance(s, Compute):
        bounds = [e for a in s.axes for e in (a.start, a.stop)]
        conditions = [e for e in (s.guard, s.last, s.only, s.region) if e is not None]
        for e in (s.target, s.value, *bounds, *conditions):
            yield from accesses_in(e)
        for c in s.epilogue:
            yield from accesses(c)
    else:
        yield from accesses_in(s.source if isinstance(s, Pack) else s.target)
