"""Which columns of tensor memory the products beside other statements have, as an allocator gives registers.

    S = Q K        its result: from its product until it is loaded, when the first statement reads it
    P = exp(S)
    O += P V       P: from when it is stored, after the statement that made it, until the turn ends; O: all the time

What is not needed at the same time may lie in the same columns: P in those of S. Where it does, `Groups` sees that what
was there is over before anything is written. PTX ISA, "Tensor Memory".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.codegen.nvptx.products.tensor_group import TensorGroup
from tcomp.ir.tile import Compute, Loop, Statement
from tcomp.ir.walk import accesses_of, statements_in

ALWAYS = (-1, math.inf)
"""needed all the time"""


@dataclass(frozen=True)
class Need:
    """Columns that a product needs in its loop's turns, for its result or its left operand, from when to when: twice
    the number of a statement of the body, and one more for after it."""

    piece: TensorGroup
    left: bool
    columns: int
    body: int
    during: tuple[float, float]

    def beside(self, other: Need) -> bool:
        """Are both needed at some time? (Nothing is known of the order of different loops.)"""
        (a, b), (c, d) = self.during, other.during
        return self.body != other.body or (a < d and c < b)


def give_columns(phase: Sequence[Statement], pieces: Sequence[TensorGroup], first: int) -> int:
    """Columns from `first` on to all of them; gives how many. Each warpgroup's follow those of the one before."""
    taken: list[tuple[Need, int]] = []
    for need in sorted((n for p in pieces for n in _needs(phase, p)), key=lambda n: -n.columns):
        taken.append((need, _place(need, taken)))
    width = max((at + need.columns for need, at in taken), default=0)
    for need, at in taken:
        if need.left:
            need.piece.left_first = first + at
        else:
            need.piece.first = first + at
        need.piece.stride = width
    for piece in pieces:
        mine = [(at, at + n.columns) for n, at in taken if n.piece is piece]
        others = [(n, at) for n, at in taken if n.piece is not piece]
        met = {id(n.piece.node) for n, at in others if any(at < end and start < at + n.columns for start, end in mine)}
        piece.shares = frozenset(met)
    return width * max((p.groups for p in pieces), default=0)


def _place(need: Need, taken: Sequence[tuple[Need, int]]) -> int:
    """Where it adds the least to all columns; of such places the one that was needed last before it."""
    width = max((at + n.columns for n, at in taken), default=0)

    def met(at: int) -> list[Need]:
        return [n for n, start in taken if start < at + need.columns and at < start + n.columns]

    def cost(at: int) -> tuple[float, float, int]:
        before = max((n.during[1] for n in met(at)), default=-1.0)
        return max(width, at + need.columns), need.during[0] - before, at

    places = {0, *(at for _, at in taken), *(at + n.columns for n, at in taken)}
    return min((at for at in places if not any(need.beside(n) for n in met(at))), key=cost)


def _needs(phase: Sequence[Statement], piece: TensorGroup) -> list[Need]:
    node = piece.node
    loop = next((s for s in statements_in(phase) if isinstance(s, Loop) and any(x is node for x in s.body)), None)
    body = () if loop is None else loop.body
    number = next((n for n, s in enumerate(body) if s is node), 0)
    once = loop is None or any(isinstance(s, Compute) and s.late for s in body)  # (turns run into each other)
    result = left = ALWAYS
    readers = [n for n, s in enumerate(body) if n > number and node.target.tensor in _touched(s)]
    if readers and not once and not node.accumulate:
        result = (2 * number, 2 * readers[0])
    makers = [n for n, s in enumerate(body) if n < number and piece.match.a.buffer.name in _written(s)]
    if makers and not once:
        left = (2 * makers[-1] + 1, math.inf)
    found = [Need(piece, False, piece.match.n.block, id(loop), result)]
    return found + ([Need(piece, True, piece.packed, id(loop), left)] if piece.packed else [])


def _touched(s: Statement) -> set[str]:
    return {a.tensor for x in statements_in((s,)) if isinstance(x, Compute) for a in accesses_of(x)}


def _written(s: Statement) -> set[str]:
    return {x.target.tensor for x in statements_in((s,)) if isinstance(x, Compute)}
