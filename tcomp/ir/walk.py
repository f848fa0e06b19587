"""The statements of tile IR, found in its loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tcomp.dsl.ast import Name
from tcomp.ir.tile import Compute, Kernel, Loop, Statement, Stream


def computes(statements: Iterable[Statement]) -> Iterator[Compute]:
    """All Computes, in order."""
    for s in statements:
        if isinstance(s, Compute):
            yield s
            yield from s.epilogue
        elif isinstance(s, Loop):
            yield from computes(s.body)


def streams(s: Statement, stream: Stream) -> bool:
    """Are there loops of the stream in the statement?"""
    return isinstance(s, Loop) and (s.start == Name(stream.start) or any(streams(x, stream) for x in s.body))


def instruction_of(kernel: Kernel) -> str:
    """The instruction that the kernel's contractions are computed with; "" where that is none."""
    return next((c.instruction for phase in kernel.phases for c in computes(phase) if c.instruction), "")
