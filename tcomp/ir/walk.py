"""The statements of tile IR, found in its loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tcomp.dsl.ast import Access, Name, accesses_in
from tcomp.ir.blocks import Stream
from tcomp.ir.tile import Compute, Kernel, Loop, Statement


def statements_in(body: Iterable[Statement]) -> Iterator[Statement]:
    """All statements, outer ones first."""
    for s in body:
        yield s
        if isinstance(s, Loop):
            yield from statements_in(s.body)


def loops_in(body: Iterable[Statement]) -> Iterator[Loop]:
    """All loops, outer ones first."""
    return (s for s in statements_in(body) if isinstance(s, Loop))


def grid_nest(phase: Sequence[Statement]) -> tuple[list[Loop], Sequence[Statement]]:
    """The grid loops of a phase, outermost first, and what is in them."""
    loops, body = [], phase
    while len(body) == 1 and isinstance(body[0], Loop) and body[0].level == "grid":
        loops.append(body[0])
        body = body[0].body
    return loops, body


def computes(statements: Iterable[Statement]) -> Iterator[Compute]:
    """All Computes, in order."""
    for s in statements:
        if isinstance(s, Compute):
            yield s
            yield from s.epilogue
        elif isinstance(s, Loop):
            yield from computes(s.body)


def accesses_of(c: Compute) -> Iterator[Access]:
    """All accesses of a Compute: the target first, then what it reads."""
    yield c.target
    yield from reads_of(c)


def reads_of(c: Compute) -> Iterator[Access]:
    """What is read to compute the values and to place them; not the old target of an accumulation."""
    for e in (c.value, *c.target.subscripts, *([] if c.guard is None else [c.guard])):
        yield from accesses_in(e)


def streams(s: Statement, stream: Stream) -> bool:
    """Are there loops of the stream in the statement?"""
    return isinstance(s, Loop) and (s.start == Name(stream.start) or any(streams(x, stream) for x in s.body))


def instruction_of(kernel: Kernel) -> str:
    """The instruction that the kernel's contractions are computed with; "" where that is none."""
    return next((c.instruction for phase in kernel.phases for c in computes(phase) if c.instruction), "")
