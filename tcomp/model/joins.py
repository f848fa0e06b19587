"""What joins that which ranks have sent each other: nodes of ops of the compiler's own.

    op ranks.sum(X: f32[R, N]) -> Y: f32[N]:              op ranks.total(X: f32[R, S, G]) -> Y: f32[S]:
      Y[n] = sum r: X[r, n]                                 Y[s] = sum r, g: X[r, s, g]

and `ranks.max`, as `ranks.sum`. Row r is rank r's, and rows are added in their order, whoever adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcomp.dsl.ast import Access, DType, Equation, Name, Op, Operand, Reduction, Target
from tcomp.model.flat import FlatLayout
from tcomp.model.graph import Node, Tensor, View

RECEIVED = "received"
"""The kind of what comes from other ranks (and this one), before the launches that read it"""


@dataclass(frozen=True)
class Joins:
    """The program that joins what has come. `shares` has, for each parameter group, where the ranks' values of this
    rank's share of the gradients come to, [ranks, elements]; `news` those of what the backward pass says of each state
    of the model."""

    nodes: tuple[Node, ...]
    shares: tuple[Tensor, ...]
    news: Mapping[Tensor, Tensor]


def joins(layout: FlatLayout, gradients: Tensor, news: Mapping[Tensor, Tensor], ranks: int) -> Joins:
    """Sums of the first rank's share of each group of the flat vector of gradients; the largest values of `news`."""
    nodes: list[Node] = []
    shares: list[Tensor] = []
    for g in layout.groups:
        share = View(gradients, g.start, (g.elements // ranks,))
        shares.append(_received(f"gradients.{g.label}", gradients.dtype, (ranks, *share.shape)))
        nodes.append(_join("sum", shares[-1], share, f"gradients {g.label}"))
    rows = {new: _received(new.name, new.dtype, (ranks, *new.shape)) for new in news.values()}
    nodes += (_join("max", found, new.whole(), new.name) for new, found in rows.items())
    return Joins(tuple(nodes), tuple(shares), rows)


def _received(name: str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    return Tensor(f"{RECEIVED}.{name}".replace(" ", "."), dtype, shape, RECEIVED, "other ranks")


def _join(reducer: str, rows: Tensor, into: View, of: str) -> Node:
    """`into` is the sum, or the largest value, of all ranks' rows."""
    ranks, elements = rows.shape[0], into.elements
    op = _op(reducer, rows.dtype, ("n",), ("r",), ("r", "n"))
    operands = {"X": View(rows, 0, (ranks, elements)), "Y": View(into.tensor, into.offset, (elements,))}
    return Node(op, {"R": ranks, "N": elements}, operands, f"{reducer} of {of}".rstrip(), op.span)


def total(rows: Tensor, into: Tensor, label: str) -> Node:
    """The sums, over ranks and parameter groups, of rows [ranks, sums, groups]."""
    op = _op("sum", rows.dtype, ("s",), ("r", "g"), ("r", "s", "g"), "ranks.total")
    dims = dict(zip(("R", "S", "G"), rows.shape, strict=True))
    return Node(op, dims, {"X": rows.whole(), "Y": into.whole()}, label, op.span)


def _op(
    reducer: str, dtype: DType, kept: tuple[str, ...], reduced: tuple[str, ...], order: tuple[str, ...], name: str = ""
) -> Op:
    """`Y[kept] = reducer reduced: X[order]`; a dimension has the name of its index, in capitals."""
    value = Reduction(reducer, reduced, None, None, (Access("X", tuple(map(Name, order))),))
    equation = Equation((Target("Y", tuple(map(Name, kept))),), False, value)
    rows = Operand("X", dtype, tuple(Name(i.upper()) for i in order))
    result = Operand("Y", dtype, tuple(Name(i.upper()) for i in kept))
    return Op(name or f"ranks.{reducer}", (rows,), (result,), (), (), (), (equation,))
