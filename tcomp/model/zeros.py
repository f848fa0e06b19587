"""Zeros where a gradient is read and no contribution has come: nodes of an op of the compiler's own.

    op gradient.zeros(; N) -> Z: f32[N]:
      Z[n] = 0.0

Where only a slice of an activation has a gradient, the rest of it is zero; where a tensor is used whole as well as in
slices, the whole's contribution is added to what the slices gave, and to zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tcomp.dsl.ast import DType, Equation, Name, Num, Op, Operand, Target
from tcomp.model.graph import Node, Tensor, View

NAME = "gradient.zeros"
"""(A name that no text can give an op.)"""


def gaps(view: View, written: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The regions (in elements of the tensor) of a view that are not among the written ones, ascending."""
    at, end = view.offset, view.offset + view.elements
    for start, stop in sorted(written):
        if at < min(start, end):
            yield at, min(start, end)
        at = max(at, stop)
    if at < end:
        yield at, end


def zeros(tensor: Tensor, start: int, stop: int, reader: Node) -> Node:
    """The node that makes a region of a tensor zero, before the backward of `reader` reads it or adds to it."""
    view = View(tensor, start, (stop - start,))
    label = f"{reader.label} (zeros in {tensor.name})"
    return Node(_op(tensor.dtype), {"N": stop - start}, {"Z": view}, label, reader.span)


def _op(dtype: DType) -> Op:
    equation = Equation((Target("Z", (Name("n"),)),), False, Num(0.0))
    return Op(NAME, (), (Operand("Z", dtype, (Name("N"),)),), ("N",), (("n", Name("N")),), (), (equation,))
